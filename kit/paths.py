"""Where everything lives below the root folder: the only place that knows folder names."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kit.errors import KitError
from kit.outputs import check_name


@dataclass(frozen=True)
class Paths:
    """The folders of one working root.

    Args:
        root: the folder given by `--root` or `KIT_ROOT`; the current folder by default.
    """

    root: Path

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
        """Folders of all runs here, by recipe, then fold: numbers first, `all` behind them."""

        def place(folder: Path) -> tuple[str, float, str]:
            fold = folder.name.removeprefix("fold")
            return folder.parent.name, float(fold) if fold.isdecimal() else float("inf"), fold

        return sorted((p for p in (self.root / "runs").glob("*/fold*") if p.is_dir()), key=place)

    def check_sheet(self, recipe: str) -> Path:
        """The picture that `kit check` draws of a recipe's crops."""
        return self.root / "runs" / recipe / "check.png"

    def rate_curve(self, recipe: str) -> Path:
        """The picture that `kit lr-find` draws of the loss over the rate."""
        return self.root / "runs" / recipe / "lr_find.png"

    def mosaics(self, name: str) -> Path:
        """The folder of the mosaics that a test set's chips make."""
        return self.root / "mosaics" / check_name(name)

    def submission(self, name: str) -> Path:
        """The folder of one submission."""
        return self.root / "submissions" / check_name(name)

    def map(self, name: str) -> Path:
        """The folder of one map."""
        return self.root / "maps" / check_name(name)


def cache_folder() -> Path:
    """Returns the user's folder for what can be made again: `KIT_CACHE`, else where the XDG specification places it."""
    if given := os.environ.get("KIT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kit"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process while the block runs, by a lock beside it that ends with the process.

    Where the system has no such locks (Windows, some network disks) nothing is kept.

    Raises:
        KitError: another process has it, or it cannot be written.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        opened = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as cause:
        raise KitError(f"cannot write {folder}: {cause.strerror}", "choose another --root") from cause
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise KitError(f"another process writes {folder}", "wait for it, or end it") from cause
        except OSError:
            pass  # a disk without locks
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` that becomes `path` when the block ends well, and is removed when not.

    Works for a file and for a folder (an existing folder of that name is replaced).

    Raises:
        KitError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as cause:
        if cause.errno is None or isinstance(cause, FileNotFoundError):
            raise
        raise KitError(f"cannot write {path}: {cause.strerror}", "free some space or choose another --root") from cause
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
