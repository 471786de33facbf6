"""Checkpoints: an interrupted run resumes from the last one, bit for bit."""

import io
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from fastcore.foundation import L

from kit.console import say
from kit.errors import RunError
from kit.system.files import replacing
from kit.system.ranks import agreed, gathered, rank, ranks
from kit.training.divergence import all_finite

CHECKPOINT = "checkpoint.pt"
TIMED_STEPS = 5  # to measure the time of a step
# state of fastai's callbacks within an epoch; their state between epochs is restored by replaying epochs
HELD = {"gradient_accumulation": ("count",)}


def plain(value: Any) -> Any:
    """Returns a value as tensors, numbers, strings, lists and dicts, which load with weights_only."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | L):
        return [plain(part) for part in value]
    return value


def random_states() -> dict[str, Any]:
    """Returns the states of all random generators of this process, as plain values."""
    return {
        "python": plain(random.getstate()),
        "numpy": plain(np.random.get_state()),  # libraries draw from it
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Sets all random generators of this process."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    for device, state in enumerate(states["cuda"]):
        torch.cuda.set_rng_state(state, device)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Returns the checkpoint of a run, on the CPU; None if there is none.

    Raises:
        RunError: it cannot be read.
    """
    file = folder / CHECKPOINT
    if not file.is_file():
        return None
    try:
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch and pickle raise many kinds
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise RunError(f"{file} cannot be read: {reason}", "train from the start: --restart") from cause
    if not isinstance(saved, dict) or "fit" not in saved:
        raise RunError(f"{file} was written by an older version of kit", "train from the start: --restart")
    return saved


class Checkpoint(Callback):
    """Writes a checkpoint at the end of each epoch and every few minutes in between.

    It contains everything that later steps depend on: network, optimizer, schedule, callbacks with a `state_dict`, and
    the random states of all ranks. It replaces the previous one atomically.

    Args:
        folder: of the run.
        minutes: between checkpoints within an epoch; 0 for none.
    """

    order = 80  # after EMA has restored the current weights

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes = folder, minutes

    def before_train(self) -> None:
        """Starts to measure the time of steps."""
        self.seen, self.every, self.start = 0, 0, time.monotonic()

    def after_batch(self) -> None:
        """Writes a checkpoint every so many steps; rank 0 decides how many."""
        if not (self.training and self.minutes):
            return
        self.seen += 1
        if self.seen == TIMED_STEPS:
            step_s = (time.monotonic() - self.start) / self.seen
            self.every = agreed(max(1, round(self.minutes * 60 / step_s)))
        if self.every and self.seen % self.every == 0 and self.iter + 1 < self.n_iter:
            self.write(self.epoch, self.iter + 1)

    def after_epoch(self) -> None:
        """Writes it."""
        if not self.resume.replaying:
            self.write(self.epoch + 1, 0)

    def write(self, epoch: int, iteration: int) -> None:
        """Writes the checkpoint.

        Args:
            epoch: that comes next, of this fit.
            iteration: that comes next, of that epoch.
        """
        if not all_finite(self.model.parameters()):
            return  # the last finite state stays
        accumulating = bool(getattr(getattr(self.learn, "gradient_accumulation", None), "count", 0))
        parameters = dict(self.model.named_parameters())
        state = {
            "fit": self.resume.fits - 1,
            "epoch": epoch,
            "iteration": iteration,
            "ranks": ranks(),
            "model": self.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "gradients": {k: p.grad for k, p in parameters.items() if p.grad is not None} if accumulating else {},
            "progress": {"pct_train": self.pct_train, "train_iter": self.train_iter},
            "recorder": {
                "values": self.recorder.values,
                "smooth": self.recorder.smooth_loss.val,
                "count": self.recorder.smooth_loss.count,
            },
            "callbacks": {cb.name: cb.state_dict() for cb in self.learn.cbs if _saves(cb)},
            "held": {
                name: {key: getattr(getattr(self.learn, name), key) for key in keys}
                for name, keys in HELD.items()
                if hasattr(self.learn, name)
            },
            "random": gathered(random_states()),
        }
        if rank() == 0:
            packed = io.BytesIO()  # torch's own writer reports a full disk as a damaged archive
            torch.save(plain(state), packed)
            with replacing(self.folder / CHECKPOINT) as file, file.open("wb") as stream:
                stream.write(packed.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())  # before it takes the last one's name: power may fail, too


def _saves(callback: Callback) -> bool:
    return hasattr(type(callback), "state_dict")  # of an instance, it would be that of the network


class Resume(Callback):
    """Takes a run up where its checkpoint was written.

    Earlier fits of the recipe are left out. Earlier epochs of the fit are replayed: they do not train, but callbacks
    that watch the log, such as early stopping, see each epoch's values again.

    Args:
        saved: what `read_checkpoint` returned; None begins from the start.
        seed: of the random states that the first fit begins with.
    """

    order = -100  # before all others

    def __init__(self, saved: dict[str, Any] | None, seed: int) -> None:
        self.saved, self.seed = saved, seed
        self.fits = self.skip = 0
        self.replaying = False

    def before_fit(self) -> None:
        """Leaves out a fit that was finished before."""
        self.fits += 1
        if self.saved and self.fits - 1 < self.saved["fit"]:
            raise CancelFitException

    def before_epoch(self) -> None:
        """Skips an epoch that was finished before; else restores the checkpoint."""
        self.replaying = False
        if self.fits == 1 and self.epoch == 0:
            seed_everything(self.seed + rank())  # a time budget may have drawn from it
        if self.saved is None:
            return
        done = min(self.saved["epoch"], self.n_epoch)
        saved = self.saved
        if self.epoch >= min(done, self.n_epoch - 1):  # not earlier: replayed trackers change the optimizer
            self._restore(saved)
            if done == self.n_epoch:
                self.saved = None  # the next fit starts without
        if self.epoch < done:
            self.replaying = True
            self.recorder.log = L(self.epoch, *saved["recorder"]["values"][self.epoch])
            raise CancelEpochException

    def _restore(self, saved: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(saved["model"])
            self.opt.load_state_dict(saved["optimizer"])
            for name, parameter in self.model.named_parameters():
                if name in saved["gradients"]:
                    parameter.grad = saved["gradients"][name].to(parameter.device)
            for callback in self.learn.cbs:
                if _saves(callback) and callback.name in saved["callbacks"]:
                    callback.load_state_dict(saved["callbacks"][callback.name])
        except (RuntimeError, ValueError, KeyError, AssertionError) as cause:
            raise RunError(
                f"the checkpoint no longer fits the recipe: {(str(cause) or 'its optimizer').splitlines()[0]}",
                "train from the start: --restart",
            ) from cause
        for name, values in saved["held"].items():
            for key, value in values.items():
                setattr(getattr(self.learn, name), key, value)
        self.recorder.smooth_loss.val = saved["recorder"]["smooth"].to(self.dls.device)
        self.recorder.smooth_loss.count = saved["recorder"]["count"]
        # with another number of ranks, the same crops take another number of steps
        done = saved["iteration"] * saved["ranks"] // ranks()
        self.skip = self.learn.deal.skip = min(done, len(self.dls.train) - 1) if saved["epoch"] < self.n_epoch else 0
        if not self.skip:
            self._restore_random(saved)
        epochs = len(self.learn.run_log.rows)
        step = f" and {self.skip} steps" if self.skip else ""
        say(f"resuming after {epochs} epoch{'s' * (epochs != 1)}{step} of an earlier session")

    def _restore_random(self, saved: dict[str, Any]) -> None:
        states = saved["random"]
        if len(states) == ranks():  # with another number of ranks, the state cannot be restored
            restore_random_states(states[rank()])

    def before_batch(self) -> None:
        """Continues at the checkpoint's step; restores the random state that starting the loader changed."""
        if not self.training:
            return
        if self.skip and self.iter == 0:
            assert self.saved is not None
            self._restore_random(self.saved)
            for name, value in self.saved["progress"].items():
                setattr(self.learn, name, value)
        self.learn.iter = self.iter + self.skip

    def after_train(self) -> None:
        """Drops the checkpoint: from here on, the run is like an uninterrupted one."""
        self.skip, self.saved = 0, None


def seed_everything(seed: int) -> None:
    """Seeds the generators that build and train the network; `TileDataset` seeds each sample."""
    random.seed(seed)
    np.random.seed(seed)  # libraries draw from it
    torch.manual_seed(seed)
