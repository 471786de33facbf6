"""Whether a frozen file says what its networks said."""
