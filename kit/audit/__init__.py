"""Comparing the labels of a data set with what trained weights predict: `kit audit`."""
