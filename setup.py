"""Packages, which setup.cfg cannot say: the top-level folder `recipes` is installed as `kit.recipes`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["kit", "kit.*"]), "kit.recipes"],
    package_dir={"kit.recipes": "recipes"},
)
