"""Pipelines that join the rooms: train and export, check a recipe, compare runs."""
