"""Recipes: each module defines `data`, `learner` and `fit` for one encoder, see docs/recipes.md."""
