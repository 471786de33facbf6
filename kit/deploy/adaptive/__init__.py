"""Ends the ensemble's vote early where the mask is clear, as far as some of the images allow."""
