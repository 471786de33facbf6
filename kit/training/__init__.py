"""Training: recipes, callbacks, and one training from DataLoaders to a finished run."""
