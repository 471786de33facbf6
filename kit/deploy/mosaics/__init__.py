"""Mosaics: find test chips that lie side by side, and read chips across their seams."""
