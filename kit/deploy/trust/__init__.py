"""Checks of a weights file before anything in it runs."""
