"""The sample city: a small synthetic data set in the layout of the challenge's data."""
