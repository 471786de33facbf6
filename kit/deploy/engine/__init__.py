"""Prediction of images with exported weights, tuned to the machine."""
