"""Proof that a weights file predicts what its trained networks predict."""
