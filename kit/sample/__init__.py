"""The sample city: planned, painted and written like the challenge's data."""
