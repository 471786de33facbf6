"""A vote that ends where it is clear: by block, with bounds that are learnt at export and held against what comes."""
