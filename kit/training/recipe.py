"""Recipes: lookup by name, loading, checks."""

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import kit
from kit.errors import KitError, RecipeError, nearest
from kit.paths import Paths

PACKAGE = "kit.recipes"
ROUNDS = re.compile(r"^ROUNDS\b[^=\n]*=", re.M)
SIGNATURES = {
    "data": "def data(fold) -> DataLoaders",
    "learner": "def learner(dls) -> Learner",
    "fit": "def fit(learn) -> None",
}


@dataclass(frozen=True)
class Recipe:
    """A loaded recipe file."""

    name: str  # the file's stem
    path: Path  # the file
    module: ModuleType  # the loaded module
    parents: tuple[Path, ...] = ()  # files of the recipes that it imports, and of theirs

    @property
    def purpose(self) -> str:
        """First line of the docstring."""
        return (self.module.__doc__ or "").strip().split("\n")[0].rstrip(".")

    @property
    def sha256(self) -> str:
        """Checksum of the recipe's text and its parents'."""
        return hashlib.sha256(b"".join(file.read_bytes() for file in (self.path, *self.parents))).hexdigest()

    def option(self, name: str, default: Any) -> Any:
        """Returns an optional constant of the recipe, such as SAMPLE."""
        return getattr(self.module, name, default)

    def data(self, fold: Any) -> Any:
        """Returns the recipe's DataLoaders of a fold."""
        from fastai.data.core import DataLoaders

        return self._call("data", fold, DataLoaders)

    def learner(self, dls: Any) -> Any:
        """Returns the recipe's Learner."""
        from fastai.learner import Learner

        from kit.models.unet import PixelNet

        learn = self._call("learner", dls, Learner)
        if not isinstance(learn.model, PixelNet):
            raise RecipeError(
                f"{self.path.name}: learner() trains a {type(learn.model).__name__}, expected a PixelNet of kit.models",
                "build it with unet() or dynamic_unet(), or derive it",
            )
        return learn

    def fit(self, learn: Any) -> None:
        """Trains."""
        self._call("fit", learn, object)

    def _call(self, name: str, argument: Any, kind: type) -> Any:
        function: Callable[[Any], Any] = getattr(self.module, name)
        try:
            returned = function(argument)
        except (KitError, KeyboardInterrupt):
            raise
        except (Exception, SystemExit) as cause:
            full = type(cause).__name__ == "OutOfMemoryError"  # torch's, of a GPU
            raise RecipeError(
                f"{self.path.name}: {name}() failed{_where(cause, self.path)}: {type(cause).__name__}: {cause}",
                "use smaller batches, and GradientAccumulation" if full else "--debug shows the traceback",
            ) from cause
        if not isinstance(returned, kind):
            raise RecipeError(
                f"{self.path.name}: {name}() returned {type(returned).__name__}, expected {kind.__name__}",
                f"expected: {SIGNATURES[name]}",
            )
        return returned


@contextmanager
def strict_augmentation() -> Iterator[None]:
    """Makes unknown arguments of augmentations an error; albumentations only warns and ignores them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not valid for transform.*")
        yield


def _where(cause: BaseException, path: Path) -> str:
    lines = [f.lineno for f in traceback.extract_tb(cause.__traceback__) if Path(f.filename) == path]
    return f" at line {lines[-1]}" if lines else ""


def installed_recipes() -> Path:
    """Returns the folder of the installed recipes, the package `kit.recipes`."""
    for parent in kit.__path__:
        if (folder := Path(parent, "recipes")).is_dir():
            return folder
    raise RecipeError(f"no recipes in {Path(kit.__file__).parent}, where kit is installed", "install kit again")


def known_recipes(paths: Paths) -> dict[str, Path]:
    """Returns recipe files by name: those in `./recipes` take precedence over installed ones."""
    return {name: file for name, file in _known(paths).items() if not is_solution(file)}


def known_solutions(paths: Paths) -> dict[str, Path]:
    """Returns the files that hold a whole solution, likewise."""
    return {name: file for name, file in _known(paths).items() if is_solution(file)}


def _known(paths: Paths) -> dict[str, Path]:
    folders = [installed_recipes(), paths.recipes]
    return {
        file.stem: file
        for folder in folders
        for file in sorted(folder.glob("*.py"))
        if not file.stem.startswith("_") and file.is_file()
    }  # fmt: skip


def is_solution(file: Path) -> bool:
    """Returns whether a recipe file is a solution: it sets ROUNDS. The file is not run."""
    try:
        return bool(ROUNDS.search(file.read_text(errors="replace")))
    except OSError:
        return False


def is_known_solution(name: str, paths: Paths) -> bool:
    """Returns whether a name or path is that of a solution; False if there is no such file."""
    try:
        return is_solution(find_recipe(name, paths))
    except RecipeError:
        return False


def find_recipe(name: str, paths: Paths) -> Path:
    """Returns the file of a recipe's or a solution's name or path.

    Raises:
        RecipeError: there is none.
    """
    known = _known(paths)
    path = Path(name) if name.endswith(".py") else known.get(name)
    if path is None or not path.exists():
        raise RecipeError(f"no recipe {name!r}", nearest(Path(name).stem, known))
    if not path.is_file():
        raise RecipeError(f"recipe {name!r} is not a regular file", "expected recipes/NAME.py")
    return path.resolve()


def load_recipe(name: str, paths: Paths) -> Recipe:
    """Returns the recipe of a path or a name.

    Raises:
        RecipeError: there is none, it cannot be imported, or a function is missing or misshapen.
    """
    path = find_recipe(name, paths)
    if is_solution(path):
        raise RecipeError(
            f"{path.name} is a solution of several rounds, expected a recipe",
            f"kit run {path.stem} --plan shows its recipes",
        )
    module, parents = load_module(path)
    _check(path, module)
    return Recipe(path.stem, path, module, parents)


def load_module(path: Path) -> tuple[ModuleType, tuple[Path, ...]]:
    """Returns a recipe file as a module, and the files of the recipes that it imports.

    Raises:
        RecipeError: it cannot be imported.
    """
    spec = importlib.util.spec_from_file_location(f"kit_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path} is not a Python file", "expected recipes/NAME.py")
    module = importlib.util.module_from_spec(spec)
    try:
        with strict_augmentation(), _importable(path.parent) as parents:
            spec.loader.exec_module(module)
    except KitError:
        raise
    except (Exception, SystemExit) as cause:
        parent = (cause.name or "") if isinstance(cause, ModuleNotFoundError) else ""
        raise RecipeError(
            f"{path.name} cannot be imported{_where(cause, path)}: {type(cause).__name__}: {cause}",
            f"import a parent with: from {PACKAGE} import NAME" if parent.startswith(("recipes", PACKAGE))
            else "--debug shows the traceback",
        ) from cause  # fmt: skip
    return module, tuple(parents)


@contextmanager
def _importable(folder: Path) -> Iterator[list[Path]]:
    """Makes `from kit.recipes import NAME` find installed recipes, then those of `folder`.

    Yields a list that holds, after the block, the files imported this way. These modules are removed from
    `sys.modules`, since the next recipe may be in another folder, or a file may change. `import recipes` is disabled.
    """
    package = ModuleType(PACKAGE)
    package.__path__ = [str(installed_recipes()), str(folder)]

    def names() -> list[str]:
        return [name for name in sys.modules if f"{name}.".startswith((f"{PACKAGE}.", "recipes."))]

    known = {name: sys.modules.pop(name) for name in names()}
    sys.modules |= {PACKAGE: package, "recipes": None}  # type: ignore[dict-item]
    files: list[Path] = []
    try:
        yield files
        files.extend(
            Path(str(sys.modules[name].__file__)) for name in sorted(names()) if name.startswith(f"{PACKAGE}.")
        )
    finally:
        for name in names():
            del sys.modules[name]
        sys.modules.update(known)


def _check(path: Path, module: ModuleType) -> None:
    for name, signature in SIGNATURES.items():
        function = getattr(module, name, None)
        if not callable(function):
            raise RecipeError(f"{path.name} has no function `{name}`", f"expected: {signature}")
        try:
            inspect.signature(function).bind(object())
        except TypeError as cause:
            raise RecipeError(
                f"{path.name}: `{name}{inspect.signature(function)}` cannot be called with one argument",
                f"expected: {signature}",
            ) from cause
