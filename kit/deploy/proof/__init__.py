"""Proof that a frozen file predicts what its networks predict."""
