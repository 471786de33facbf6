"""One fit: recipe x fold x seed, from data loaders to a finished run folder."""

import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kit import __version__
from kit.console import say
from kit.data.dataset import Fold
from kit.data.masks import Counts, pool
from kit.errors import RunError
from kit.models.devices import keep_freed_memory
from kit.models.pretrained import Source, encoder_source, weights_used
from kit.paths import replacing
from kit.training.curves import draw_curves
from kit.training.harness import Budget, EpochCount, Precision, RunLog
from kit.training.oof import predict_fold
from kit.training.recipe import Recipe

SETTINGS, RESULT, BEST = "settings.json", "result.json", "best.safetensors"
# settings that make two runs the same; the rest is told, not compared
IDENTITY = ("recipe_sha256", "data", "data_sha256", "fold", "seed", "minutes", "encoder_source", "teacher_sha256")


@dataclass(frozen=True)
class Setup:
    """How fits are done, beside what the recipe says.

    Args:
        minutes: wall time of a fit; 0 lets the recipe decide.
        source: where the encoder's weights come from.
        compiled: runs the network through torch.compile: for GPUs, it takes minutes to start.
        teacher: members' probabilities for pixels, see `Distillation`; for recipes that learn from one.
        teacher_sha256: checksum of the teacher's file.
    """

    minutes: float = 0.0
    source: Source = field(default_factory=Source)
    compiled: bool = False
    teacher: Callable[[Tensor], Tensor] | None = None
    teacher_sha256: str = ""


@dataclass(frozen=True)
class Result:
    """What a finished run scored on its held-out fold.

    Args:
        recipe: its name.
        fold: number, or `all`.
        score: pooled Jaccard of the held-out tiles; None where nothing was held out.
        scenes: counts per `area/scene`.
        seconds: of the fit, validation included.
        epoch: the one whose weights were kept.
    """

    recipe: str
    fold: int | str
    score: float | None
    scenes: dict[str, Counts]
    seconds: float
    epoch: int


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    with replacing(path) as file:
        file.write_text(json.dumps(record, indent=1) + "\n")


def read_result(folder: Path) -> Result | None:
    """Returns the result of a finished run, or None."""
    file = folder / RESULT
    if not file.is_file():
        return None
    record = json.loads(file.read_text())
    record["scenes"] = {name: Counts(**counts) for name, counts in record["scenes"].items()}
    return Result(**record)


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the settings of a run.

    Raises:
        RunError: there is no such run.
    """
    file = folder / SETTINGS
    if not file.is_file():
        raise RunError(f"no run at {folder}", "train it first: kit run RECIPE")
    settings: dict[str, Any] = json.loads(file.read_text())
    return settings


def seed_everything(seed: int) -> None:
    """Seeds what builds the network; samples are seeded one by one, see `TileDataset`."""
    random.seed(seed)
    np.random.seed(seed)  # libraries draw from it
    torch.manual_seed(seed)


def fit_fold(recipe: Recipe, fold: Fold, folder: Path, data: str, data_sha256: str, setup: Setup) -> Result:
    """Trains one fold into `folder`, or returns the result that is there already.

    Args:
        recipe: what to train.
        fold: on what.
        folder: of the run.
        data: name of the data set, for the settings.
        data_sha256: of its index.
        setup: how.

    Raises:
        RunError: the folder holds a run with other settings, or the recipe and `setup.teacher` do not agree.
    """
    settings: dict[str, Any] = {
        "kit_version": __version__,
        "recipe": recipe.name,
        "recipe_path": str(recipe.path),
        "recipe_sha256": recipe.sha256,
        "data": data,
        "data_sha256": data_sha256,
        "fold": fold.number,
        "seed": fold.seed,
        "minutes": setup.minutes,
        "encoder_source": _in_words(setup.source),
        "teacher_sha256": setup.teacher_sha256,
        "compiled": setup.compiled,
        "gsd_m": round(float(fold.train["gsd_m"].median()), 6),
    }
    earlier = _earlier(folder, settings)
    finished = read_result(folder)
    if earlier and finished:
        say(f"{recipe.name} fold {fold.number}: finished before, kept")
        return finished
    learn = _build(recipe, fold, folder, settings, setup)
    epochs = count_epochs(recipe, learn)
    learn.add_cb(RunLog(folder, f"{recipe.name} fold {fold.number}", settings, epochs))
    if setup.minutes:
        learn.add_cb(Budget(setup.minutes, epochs, earlier.get("steps_per_epoch", 0)))
    start = time.monotonic()
    train(recipe, learn)
    seconds = time.monotonic() - start
    load_best(learn.model, folder)
    draw_curves(learn.run_log.rows, folder / "curves.png")
    scenes = predict_fold(learn.model, learn.precision, fold, folder)
    score = pool(scenes.values()).jaccard if scenes else None
    result = Result(recipe.name, fold.number, score, scenes, round(seconds, 1), learn.run_log.best_epoch)
    write_json(folder / RESULT, asdict(result))
    return result


def _earlier(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of an earlier run in the folder, which must be the same run; empty when there is none."""
    if not (folder / SETTINGS).is_file():
        return {}
    earlier = read_settings(folder)
    changed = [key for key in IDENTITY if earlier.get(key) != settings[key]]
    if changed:
        told = ", ".join(f"{key} {earlier.get(key)!r} is now {settings[key]!r}" for key in changed)
        raise RunError(
            f"{folder} holds a run with other settings: {told}", "train it anew with --restart, or move the folder away"
        )
    return earlier


def _in_words(source: Source) -> str:
    return str(source.file) if source.file else ("pretrained" if source.pretrained else "random")


def build(recipe: Recipe, fold: Fold, setup: Setup) -> Any:
    """Returns the recipe's Learner, on the fold's device and silent: kit shows the progress.

    Raises:
        RunError: the recipe and `setup.teacher` do not agree.
    """
    keep_freed_memory()
    seed_everything(fold.seed)
    with encoder_source(setup.source):
        dls = recipe.data(fold)
        learn = recipe.learner(dls)
    learn.model.to(fold.device)
    if setup.compiled:
        learn.model.compile()  # in place: the names of its tensors stay
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
    learn.logger = lambda _: None
    learn.add_cbs([EpochCount(), Precision()])
    if hasattr(learn, "distillation"):
        learn.distillation.teacher = setup.teacher
    elif setup.teacher:
        raise RunError(
            f"{recipe.name} learns from no teacher", "leave --teacher out, or add Distillation() to its callbacks"
        )
    return learn


class _Rehearsal(Callback):
    """Counts the epochs of each fit, and lets none begin."""

    order = -100

    def __init__(self) -> None:
        self.epochs = 0

    def before_fit(self) -> None:
        """Counts."""
        self.epochs += self.n_epoch
        raise CancelFitException


def train(recipe: Recipe, learn: Any) -> None:
    """Runs the recipe's `fit`; a failure leaves no autocast behind."""
    try:
        recipe.fit(learn)
    finally:
        learn.precision.leave()


def count_epochs(recipe: Recipe, learn: Any) -> int:
    """Returns how many epochs a recipe's `fit` trains, over all its fits, without training."""
    rehearsal = _Rehearsal()
    learn.add_cb(rehearsal)
    recipe.fit(learn)
    learn.remove_cb(rehearsal)
    return rehearsal.epochs


def _build(recipe: Recipe, fold: Fold, folder: Path, settings: dict[str, Any], setup: Setup) -> Any:
    """Returns `build`'s Learner, with what was found out in the settings, and makes the run's folder."""
    learn = build(recipe, fold, setup)
    dls = learn.dls
    settings |= {
        "encoder": learn.model.encoder_name,
        "encoder_weights": weights_used(),
        "batch_size": dls.train.bs,
        "workers": dls.train.fake_l.num_workers,
        "device": str(fold.device),
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
    }
    say(f"{recipe.name} fold {fold.number}: {settings['encoder']}, encoder weights from {settings['encoder_weights']}")
    folder.mkdir(parents=True, exist_ok=True)
    return learn


def load_best(model: nn.Module, folder: Path) -> None:
    """Loads the run's best weights into a model of the same recipe.

    Raises:
        RunError: there are none, or they do not fit.
    """
    file = folder / BEST
    if not file.is_file():
        raise RunError(f"{folder} holds no {BEST}", "the run did not finish an epoch: run it again")
    try:
        model.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError) as cause:
        raise RunError(
            f"{file} does not fit its recipe: {str(cause).splitlines()[0]}",
            "the recipe was changed after training: train again with --restart",
        ) from cause


def rebuild(recipe: Recipe) -> Any:
    """Returns the recipe's Learner without data and with random weights: to count, to check, to load weights into."""
    none = DataLoaders([], [])
    with encoder_source(Source(pretrained=False)):
        return recipe.learner(none)


def file_sha256(path: Path) -> str:
    """Returns the checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
