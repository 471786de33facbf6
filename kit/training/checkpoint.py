"""Where a run stands, on disk: written while it trains, and taken up again, bit for bit, after it was cut short."""

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
TIMED_STEPS = 5  # from which a step's time is known
# what fastai's own callbacks hold from step to step; what they hold from epoch to epoch is found again by replaying
HELD = {"gradient_accumulation": ("count",)}


def plain(value: Any) -> Any:
    """Returns a value made of tensors, numbers, strings, lists and dicts alone: what loads with weights_only."""
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
    """Returns the states of all random generators of this process, plain."""
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
    """Returns the checkpoint of a run, on the CPU; None where there is none.

    Raises:
        RunError: it cannot be read.
    """
    file = folder / CHECKPOINT
    if not file.is_file():
        return None
    try:
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch and pickle have many
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise RunError(f"{file} cannot be read: {reason}", "train from the start: --restart") from cause
    if not isinstance(saved, dict) or "fit" not in saved:
        raise RunError(f"{file} was written by an older kit, which could not resume", "train from the start: --restart")
    return saved


class Checkpoint(Callback):
    """Writes the checkpoint: at the end of each epoch, and every few minutes between two batches.

    All that a later step depends on is in it: network, optimizer, schedule, callbacks with a `state_dict`, and the
    random states of all ranks. A new one takes the place of the last by renaming.

    Args:
        folder: of the run.
        minutes: between two of them within an epoch; 0 for none.
    """

    order = 80  # after EMA has put the live weights back

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes = folder, minutes

    def before_train(self) -> None:
        """Starts to time the steps."""
        self.seen, self.every, self.start = 0, 0, time.monotonic()

    def after_batch(self) -> None:
        """Writes it every so many steps; ranks agree on how many, since their clocks do not."""
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
            packed = io.BytesIO()  # torch's own writer tells a full disk as a fault of the archive
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
        """Replays an epoch that was finished before; else restores what the checkpoint holds, and goes on."""
        self.replaying = False
        if self.fits == 1 and self.epoch == 0:
            seed_everything(self.seed + rank())  # a Budget has drawn from it, or not
        if self.saved is None:
            return
        done = min(self.saved["epoch"], self.n_epoch)
        saved = self.saved
        if self.epoch >= min(done, self.n_epoch - 1):  # not before: trackers that are replayed touch the optimizer
            self._restore(saved)
            if done == self.n_epoch:
                self.saved = None  # the next fit begins anew
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
                f"the checkpoint does not fit the recipe any more: {(str(cause) or 'its optimizer').splitlines()[0]}",
                "train from the start: --restart",
            ) from cause
        for name, values in saved["held"].items():
            for key, value in values.items():
                setattr(getattr(self.learn, name), key, value)
        self.recorder.smooth_loss.val = saved["recorder"]["smooth"].to(self.dls.device)
        self.recorder.smooth_loss.count = saved["recorder"]["count"]
        done = saved["iteration"] * saved["ranks"] // ranks()  # other ranks take other steps for the same crops
        self.skip = self.learn.deal.skip = min(done, len(self.dls.train) - 1) if saved["epoch"] < self.n_epoch else 0
        if not self.skip:
            self._restore_random(saved)
        epochs = len(self.learn.run_log.rows)
        step = f" and {self.skip} steps" if self.skip else ""
        say(f"resuming after {epochs} epoch{'s' * (epochs != 1)}{step} of an earlier session")

    def _restore_random(self, saved: dict[str, Any]) -> None:
        states = saved["random"]
        if len(states) == ranks():  # with other ranks, nothing is as it was
            restore_random_states(states[rank()])

    def before_batch(self) -> None:
        """Counts on from the step of the checkpoint; what the loader drew when it started is taken back."""
        if not self.training:
            return
        if self.skip and self.iter == 0:
            assert self.saved is not None
            self._restore_random(self.saved)
            for name, value in self.saved["progress"].items():
                setattr(self.learn, name, value)
        self.learn.iter = self.iter + self.skip

    def after_train(self) -> None:
        """Forgets the checkpoint: from here on the run is as if it had never been cut short."""
        self.skip, self.saved = 0, None


def seed_everything(seed: int) -> None:
    """Seeds what builds and trains the network; samples are seeded one by one, see `TileDataset`."""
    random.seed(seed)
    np.random.seed(seed)  # libraries draw from it
    torch.manual_seed(seed)
