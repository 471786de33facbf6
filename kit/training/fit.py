"""One training: a recipe on one fold, from data loaders to a finished run folder."""

import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import TrackerCallback
from fastai.data.core import DataLoaders
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kit import __version__
from kit.console import say
from kit.data.added import AddedSet
from kit.data.dataset import Fold
from kit.data.folds.leaks import ADDED
from kit.data.masks import pool
from kit.errors import RecipeError, RunError
from kit.models.losses import check_soft_targets
from kit.models.metrics import PooledLoss
from kit.models.pretrained import Source, encoder_source, weights_used
from kit.outputs import check_unclaimed
from kit.system.devices import keep_freed_memory
from kit.system.files import locked, sha256_of, write_json
from kit.system.ranks import agreed, as_first, gathered, rank, ranks
from kit.training.checkpoint import Checkpoint, Resume, read_checkpoint, seed_everything
from kit.training.curves import draw_curves
from kit.training.distributed import Distributed
from kit.training.divergence import DivergenceStop
from kit.training.draws import Deal, Draw
from kit.training.length import Length, LengthOptions, StepCount, TimeBudget, count_epochs, override_epochs, share_out
from kit.training.oof import predict_fold
from kit.training.precision import LossScale, Precision
from kit.training.recipe import Recipe
from kit.training.run_files import (
    BEST,
    RESULT,
    SETTINGS,
    Result,
    RunSettings,
    check_best,
    compared,
    read_result,
    read_settings,
)
from kit.training.runlog import RunLog
from kit.training.tiny import TinyBatches
from kit.training.tracking import Tracking

# settings that must be equal to resume a run
IDENTITY = (
    "recipe_sha256", "data", "data_sha256", "added", "fold", "seed", "minutes", "epochs_option", "steps_option",
    "precision_option", "encoder_source", "start_sha256", "teacher_sha256",
)  # fmt: skip
EXACT = ("threads", "ranks")  # and, for an unfinished run, those that change rounding
NOTHING = None, None, ""  # of an earlier run


@dataclass(frozen=True)
class Setup:
    """Options of a fit that are not part of the recipe."""

    length: LengthOptions = field(default_factory=LengthOptions)  # how long a fold trains
    source: Source = field(default_factory=Source)  # where the encoder's weights come from
    compiled: bool = False  # runs the network through torch.compile: for GPUs, it takes minutes to start
    precision: str = ""  # `fp32`, `bf16` or `fp16`; empty for what trains fastest
    # members' probabilities for pixels, see `Distillation`; for recipes that learn from one
    teacher: Callable[[Tensor], Tensor] | None = None
    teacher_sha256: str = ""  # of the teacher's file
    teacher_weights: tuple[float, ...] = ()  # of its members' votes; empty where all count the same
    # data sets that train beside that of `--data`, for the settings: the fold has their tiles already
    added: tuple[AddedSet, ...] = ()
    start_from: Path | None = None  # safetensors of the whole network to begin with, instead of those of the encoder
    checkpoint_minutes: float = 10.0  # between two checkpoints within an epoch; 0 for none
    track: tuple[str, ...] = ()  # trackers that log it, see `TRACKERS`
    resume: bool = False  # resume an unfinished run although settings changed
    restart: bool = False  # delete an earlier run
    tiny: bool = False  # trains on tiny crops, see `TinyBatches`


def fit_fold(recipe: Recipe, fold: Fold, folder: Path, data: str, data_sha256: str, setup: Setup) -> Result:
    """Trains one fold, resumes an unfinished run, or returns the result of a finished one.

    All ranks call it with the same arguments; each validates its share of the tiles.

    Args:
        recipe: to train.
        fold: tiles to train and validate on.
        folder: of the run.
        data: name of the data set, for the settings.
        data_sha256: of its index.
        setup: options.

    Raises:
        RunError: the folder holds a run with other settings, another process trains into it, or the recipe and
            `setup.teacher` do not agree.
    """
    settings = RunSettings(
        kit_version=__version__,
        recipe=recipe.name,
        recipe_path=str(recipe.path),
        recipe_sha256=recipe.sha256,
        data=data,
        data_sha256=data_sha256,
        added=setup.added,
        fold=fold.number,
        seed=fold.seed,
        minutes=setup.length.minutes or 0.0,
        epochs_option=setup.length.epochs or 0,
        steps_option=setup.length.steps or 0,
        precision_option=setup.precision,
        encoder_source=_in_words(setup.source),
        start_from=str(setup.start_from or ""),
        start_sha256=sha256_of(setup.start_from) if setup.start_from else "",
        teacher_sha256=setup.teacher_sha256,
        compiled=setup.compiled,
        threads=torch.get_num_threads(),
        ranks=ranks(),
        gsd_m=round(float(fold.train["gsd_m"][fold.train["fold"] != ADDED].median()), 6),
    )
    _agree(compared(settings, IDENTITY))
    with locked(folder) if rank() == 0 else nullcontext():
        # rank 0 decides: on another machine the folder may look different
        finished, saved, precision = agreed(_standing(fold, folder, settings, setup) if rank() == 0 else NOTHING)
        if finished:
            say(f"{recipe.name} fold {fold.number}: finished before, kept")
            return finished
        share = replace(fold, valid=fold.valid.iloc[rank() :: ranks()])
        learn = build(recipe, share, setup)
        settings = _as_built(settings, learn, setup)
        if rank() == 0:
            _clear(folder, setup.restart)
        if fold.number == "all":
            _stop_watching(learn)
        learn.precision.earlier = precision
        learn.path = folder  # where callbacks of the recipe save files
        length = _length(recipe, learn, setup.length, folder)
        learn.add_cbs([
            Resume(saved, fold.seed), RunLog(folder, f"{recipe.name} fold {fold.number}", settings, length.epochs),
            Checkpoint(folder, setup.checkpoint_minutes), length, DivergenceStop(),
        ])  # fmt: skip
        if setup.track and rank() == 0:
            learn.add_cb(Tracking(setup.track, folder))
        train(recipe, learn)
        if rank() == 0:
            load_best(learn.model, folder)
            draw_curves(learn.run_log.rows, folder / "curves.png")
        as_first(list(learn.model.state_dict().values()))
        seconds = round(learn.run_log.seconds, 1)
        scenes = predict_fold(learn.model, learn.precision, share, folder) if len(fold.valid) else {}
        score = pool(scenes.values()).jaccard if scenes else None
        sha256 = agreed(sha256_of(folder / BEST) if rank() == 0 else "")
        result = Result(folder.parent.name, fold.number, score, scenes, seconds, learn.run_log.best_epoch, sha256)
        if rank() == 0:
            write_json(folder / RESULT, asdict(result))
        return result


def _length(recipe: Recipe, learn: Any, options: LengthOptions, folder: Path) -> Length:
    """Returns the callback that sets the length of epochs; applies `--epochs` to the recipe's fits."""
    fits = count_epochs(recipe, learn)
    if options.epochs:
        fits = share_out(options.epochs, fits)
        override_epochs(learn, fits)
    if options.minutes:
        return TimeBudget(options.minutes, fits, folder)
    return StepCount(options.steps, fits) if options.steps else Length(fits)


def _agree(own: dict[str, Any]) -> None:
    """Raises RunError if the settings of the ranks differ."""
    first, *others = gathered(own)
    for number, other in enumerate(others, start=1):
        different = [f"{key} {_short(other[key])}, not {_short(first[key])}" for key in own if other[key] != first[key]]
        if different:
            raise RunError(
                f"rank {number} has other settings than rank 0: {', '.join(different)}",
                "all ranks need the same command, recipe and data",
            )


def _standing(
    fold: Fold, folder: Path, settings: RunSettings, setup: Setup
) -> tuple[Result | None, dict[str, Any] | None, str]:
    """Returns result, checkpoint and precision of an earlier run, empty if missing; RunError if its settings differ."""
    if setup.restart or not (folder / SETTINGS).is_file():
        return NOTHING
    earlier, finished = read_settings(folder), read_result(folder)
    keys = IDENTITY if finished else IDENTITY + (EXACT if fold.device.type == "cpu" else EXACT[1:])
    before, now = compared(earlier, keys), compared(settings, keys)
    changed = [key for key in keys if before[key] is not None and before[key] != now[key]]
    changes = ", ".join(f"{key} {_short(before[key], key)} is now {_short(now[key], key)}" for key in changed)
    if changed and (finished or not setup.resume):
        same = f"OMP_NUM_THREADS={earlier.threads} for the same threads; " if "threads" in changed else ""
        resume = "" if finished else "--resume continues with the changes, "
        raise RunError(
            f"{folder} holds {'a finished' if finished else 'an unfinished'} run with other settings: {changes}",
            f"{same}{resume}--restart trains from the start, or move the folder away",
        )
    if changed:
        say(f"resuming although {changes}")
    if finished:
        check_best(folder, finished)
    return finished, None if finished else read_checkpoint(folder), (earlier.precision or "").partition(" ")[0]


def _short(value: Any, key: str = "") -> str:
    """Returns a setting as text; of a checksum, the first digits."""
    if key in ("minutes", "epochs_option", "steps_option") and not value:
        return "auto"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return repr(value[:8] if isinstance(value, str) and len(value) == 64 else value)


def _stop_watching(learn: Any) -> None:
    """Removes callbacks that monitor a score, such as early stopping: without validation there is none."""
    watching = [cb for cb in learn.cbs if isinstance(cb, TrackerCallback)]
    for callback in watching:
        say(f"{type(callback).__name__} is disabled: it monitors {callback.monitor}, and nothing is held out")
    learn.remove_cbs(watching)


def _clear(folder: Path, restart: bool) -> None:
    """Creates the run's folder; removes temporary files of killed processes, or with `restart` everything."""
    if not (folder / SETTINGS).is_file():
        check_unclaimed(folder, "kit run", "recipe name or --root")
    if restart and folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.rglob(".*.part*"):
        left.unlink(missing_ok=True)


def _in_words(source: Source) -> str:
    return str(source.file) if source.file else ("pretrained" if source.pretrained else "random")


def build(recipe: Recipe, fold: Fold, setup: Setup) -> Any:
    """Returns the recipe's Learner on the fold's device, without fastai's progress bar.

    Raises:
        RecipeError: a tile has soft labels but a loss does not accept them; or a data set has a weight but the recipe
            has no `BalancedSampler`.
        RunError: a teacher is given but the recipe does not use one.
    """
    keep_freed_memory()
    seed_everything(fold.seed)
    with encoder_source(Source(pretrained=False) if setup.start_from else setup.source):
        dls = recipe.data(fold)
        learn = recipe.learner(dls)
    if setup.start_from:
        _load(learn.model, setup.start_from, "start from a run of the same encoder, decoder and outputs")
    _check_fits_data(recipe, fold, learn)
    learn.model.to(fold.device)
    if setup.compiled:
        learn.model.compile()  # in place: the names of its tensors stay
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
    learn.logger = lambda _: None
    learn.recorder.loss = PooledLoss()
    precision = Precision(setup.precision)
    learn.add_cbs([Draw(), Deal(), precision, LossScale(), *([Distributed()] if ranks() > 1 else [])])
    if setup.tiny:
        learn.add_cb(TinyBatches())
    if hasattr(learn, "distillation"):
        learn.distillation.teacher, learn.distillation.teacher_weights = setup.teacher, setup.teacher_weights
    elif setup.teacher:
        raise RunError(
            f"{recipe.name} does not use a teacher", "leave --teacher out, or add Distillation() to its callbacks"
        )
    return learn


def _check_fits_data(recipe: Recipe, fold: Fold, learn: Any) -> None:
    """Checks that the recipe's losses accept the labels of the training tiles, and that a sampler applies weights."""
    if getattr(learn.dls.train.dataset, "soft", False):
        check_soft_targets(learn.loss_func)
        if hasattr(learn, "loss_switch"):
            check_soft_targets(learn.loss_switch.later)
    if "weight" in fold.train and (fold.train["weight"] != 1).any() and not hasattr(learn, "balanced_sampler"):
        raise RecipeError(
            f"{recipe.name} uses every tile once per epoch, and ignores the weights of data sets",
            "leave the weights of --add out, or add BalancedSampler() to the recipe's callbacks",
        )


def train(recipe: Recipe, learn: Any) -> None:
    """Runs the recipe's `fit`, with fastai's output on stderr; leaves autocast even if it fails."""
    finished = False
    try:
        with redirect_stdout(sys.stderr):
            recipe.fit(learn)
        finished = True
    finally:
        learn.precision.leave()
        if hasattr(learn, "run_log"):
            learn.run_log.after_fit()  # fastai does not call it when a fit fails
        if hasattr(learn, "tracking"):
            learn.tracking.close(finished)


def _as_built(settings: RunSettings, learn: Any, setup: Setup) -> RunSettings:
    """Returns the settings completed from the recipe's Learner, and prints encoder and weights."""
    dls, start = learn.dls, str(setup.start_from) if setup.start_from else ""
    settings = replace(
        settings,
        encoder=learn.model.encoder_name,
        encoder_weights=start or weights_used(),
        batch_size=dls.train.bs,
        workers=dls.train.fake_l.num_workers,
        device=str(dls.device),
        torch_version=str(torch.__version__),
    )
    together = f", {ranks()} ranks" if ranks() > 1 else ""
    weights = f"all weights from {start}" if start else f"encoder weights from {settings.encoder_weights}"
    say(f"{settings.recipe} fold {settings.fold}: {settings.encoder}, {weights}{together}")
    return settings


def load_best(model: nn.Module, folder: Path) -> None:
    """Loads the run's best weights into a model of the same recipe.

    Raises:
        RunError: there are none, or they do not fit.
    """
    file = folder / BEST
    if not file.is_file():
        raise RunError(f"{folder} holds no {BEST}", "no epoch was finished: run it again")
    _load(model, file, "the recipe was changed after training: train again with --restart")


def _load(model: nn.Module, file: Path, hint: str) -> None:
    """Loads safetensors into a model; RunError with the hint where they do not fit."""
    try:
        model.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError) as cause:
        reason = " ".join(str(cause).split())
        raise RunError(f"{file} does not fit the recipe's network: {reason[:200]}", hint) from cause


def rebuild(recipe: Recipe) -> Any:
    """Returns the recipe's Learner without data and with random weights, for example to load weights into."""
    none = DataLoaders([], [])
    with encoder_source(Source(pretrained=False)):
        return recipe.learner(none)
