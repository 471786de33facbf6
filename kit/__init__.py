"""From drone imagery of a city to building masks: train, freeze, submit, map."""

__version__ = "0.1.0"
