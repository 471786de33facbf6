"""Adaptive votes: skip passes of the ensemble where they would hardly change the mask."""
