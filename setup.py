"""Packages, which setup.cfg cannot say: the top-level folders `recipes` and `weights` are installed inside `kit`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["kit", "kit.*"]), "kit.recipes", "kit.weights"],
    package_dir={"kit.recipes": "recipes", "kit.weights": "weights"},
)
