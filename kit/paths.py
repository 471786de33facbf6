"""Folders below the working root. The only module that knows their names."""

from dataclasses import dataclass
from pathlib import Path

from kit.outputs import check_name


@dataclass(frozen=True)
class Paths:
    """The folders of one working root."""

    root: Path  # the folder given by `--root` or `KIT_ROOT`; the current folder by default

    @property
    def sample(self) -> Path:
        """The embedded sample city."""
        return self.root / "sample"

    @property
    def recipes(self) -> Path:
        """The user's own recipes, searched before the installed ones."""
        return self.root / "recipes"

    @property
    def weights(self) -> Path:
        """Exported weights, their cards and `index.csv`."""
        return self.root / "weights"

    def hub(self, name: str) -> Path:
        """The folder of weights as model hubs expect it."""
        return self.root / "hub" / check_name(name)

    @property
    def data_folder(self) -> Path:
        """The prepared data sets."""
        return self.root / "data"

    def data(self, name: str) -> Path:
        """A prepared data set."""
        return self.data_folder / check_name(name, "data set")

    def data_names(self) -> list[str]:
        """Names of the data sets that are prepared here, sorted."""
        return sorted(p.parent.name for p in self.data_folder.glob("*/index.csv"))

    def run(self, recipe: str, fold: int | str) -> Path:
        """The folder of one fold of one recipe; `fold` is a number or `all`."""
        return self.root / "runs" / check_name(recipe, "recipe") / check_name(f"fold{fold}", "fold")

    def run_folders(self) -> list[Path]:
        """Folders of all runs, sorted by recipe, then fold: numbers first, then `all`."""

        def place(folder: Path) -> tuple[str, float, str]:
            fold = folder.name.removeprefix("fold")
            return folder.parent.name, float(fold) if fold.isdecimal() else float("inf"), fold

        return sorted((p for p in (self.root / "runs").glob("*/fold*") if p.is_dir()), key=place)

    def check_sheet(self, recipe: str) -> Path:
        """The picture of a recipe's crops that `kit check` draws."""
        return self.root / "runs" / recipe / "check.png"

    def rate_curve(self, recipe: str) -> Path:
        """The picture of loss over learning rate that `kit lr-find` draws."""
        return self.root / "runs" / recipe / "lr_find.png"

    def mosaics(self, name: str) -> Path:
        """The folder of the mosaics of a test set."""
        return self.root / "mosaics" / check_name(name)

    def submission(self, name: str) -> Path:
        """The folder of one submission."""
        return self.root / "submissions" / check_name(name)

    def solution(self, name: str) -> Path:
        """The folder of a solution: the state of its stages, and the score of each round."""
        return self.root / "solutions" / check_name(name)

    def report(self, name: str) -> Path:
        """The page of one report."""
        return self.root / "reports" / f"{check_name(name)}.html"

    def map(self, name: str) -> Path:
        """The folder of one map."""
        return self.root / "maps" / check_name(name)
