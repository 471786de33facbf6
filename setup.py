"""Packages, which setup.cfg cannot say: the top-level folders `recipes` and `weights` are installed inside `kit`."""

import sys

from setuptools import find_packages, setup

# pip compares python_requires late, after it has downloaded torch
if sys.version_info < (3, 11):  # noqa: UP036
    raise SystemExit(f"kit needs Python 3.11 to 3.14; this is {sys.version.split()[0]}")

setup(
    packages=[*find_packages(include=["kit", "kit.*"]), "kit.recipes", "kit.weights"],
    package_dir={"kit.recipes": "recipes", "kit.weights": "weights"},
)
