"""Adaptive votes: skip passes of the ensemble that would hardly change the mask."""
