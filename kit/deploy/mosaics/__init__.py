"""Mosaics: finds test chips that lie side by side, lays them out, reads chips across their seams."""
