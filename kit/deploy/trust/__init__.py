"""Checks of weights files before they are loaded."""
