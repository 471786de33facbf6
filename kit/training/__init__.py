"""Training: recipes, callbacks and one fit."""
