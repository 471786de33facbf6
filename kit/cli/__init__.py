"""Commands: each parses its options, calls one function, and prints the result."""

from kit.cli.application import app, main

# isort: off
from kit.cli import data_commands, training_commands, weights_commands, prediction_commands, environment_commands

# in the order of --help
__all__ = [
    "app", "data_commands", "environment_commands", "main", "prediction_commands", "training_commands",
    "weights_commands",
]  # fmt: skip
