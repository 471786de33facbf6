"""Tracks a training with TensorBoard, MLflow or Trackio, each with the settings of its own environment variables.

fastai's callbacks for trackers start another run when a training is resumed, and log every step; this one continues.
"""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from fastai.callback.core import Callback

from kit.console import muted, say
from kit.errors import RunError

__all__ = ["TRACKERS", "Tracking"]

EVERY = 10  # steps between two points of the training loss
PROJECT = "kit"  # of Trackio; the experiment of MLflow


@dataclass(frozen=True)
class Opening:
    """What a tracker opens."""

    folder: Path  # of the run
    name: str  # shown for the run, such as `lite0/fold0`
    settings: dict[str, Any]  # of the run
    run: str  # the tracker's identifier of a run to continue; empty for a new one


class Tracker(Protocol):
    """One tracked run. Any method may raise any exception."""

    module: str  # that it imports
    run: str  # identifier with which a resumed training continues it

    def __init__(self, opening: Opening) -> None: ...

    def log(self, values: dict[str, float], step: int) -> None:
        """Adds values by name."""

    def close(self, finished: bool) -> None:
        """Ends the session; the run may continue if it is not finished."""


class TensorBoard:
    """Events in the run's folder."""

    module, run = "torch.utils.tensorboard", ""

    def __init__(self, opening: Opening) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(opening.folder / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        """Adds values by name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, finished: bool) -> None:
        """Closes the file."""
        self.writer.close()


class MLflow:
    """A run of MLflow's experiment `kit`."""

    module = "mlflow"

    def __init__(self, opening: Opening) -> None:
        import mlflow
        from mlflow.entities import Param

        self.client = mlflow.MlflowClient()
        if opening.run:
            self.run = opening.run
            self.client.update_run(self.run, status="RUNNING")
            return
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        self.run = self.client.create_run(experiment.experiment_id, run_name=opening.name).info.run_id
        settings = [Param(name, str(value)[:500]) for name, value in opening.settings.items()]
        self.client.log_batch(self.run, params=settings)

    def log(self, values: dict[str, float], step: int) -> None:
        """Adds values by name."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run, [Metric(name, value, now, step) for name, value in values.items()])

    def close(self, finished: bool) -> None:
        """Sets the run's status."""
        self.client.set_terminated(self.run, "FINISHED" if finished else "FAILED")


class Trackio:
    """A run of Trackio's project `kit`."""

    module = "trackio"

    def __init__(self, opening: Opening) -> None:
        import trackio

        # Trackio continues the latest run of a name: it must not be one of another folder
        self.run = opening.run or f"{opening.name} {secrets.token_hex(2)}"
        resume = "must" if opening.run else "never"
        self.tracked = trackio.init(PROJECT, self.run, config=opening.settings, resume=resume)

    def log(self, values: dict[str, float], step: int) -> None:
        """Adds values by name."""
        self.tracked.log(values, step)

    def close(self, finished: bool) -> None:
        """Writes what is left."""
        import trackio

        trackio.finish()  # `tracked.finish` would be called again when Python exits


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "trackio": Trackio}


class Tracking(Callback):
    """Logs the training loss every few steps, and the rows of `log.csv`. For rank 0.

    A tracker that fails is left out of the rest of the training, with one notice. A resumed training continues its
    runs.

    Args:
        names: of trackers, keys of `TRACKERS`.
        folder: of the run.

    Raises:
        RunError: a tracker is not installed.
    """

    order = 61  # after RunLog has its row

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        for name in names:
            try:
                import_module(TRACKERS[name].module)
            except ImportError as cause:
                title, hint = TRACKERS[name].__name__, f"pip install {name}, or leave --track {name} out"
                raise RunError(f"{title} is not installed", hint) from cause
        self.names, self.folder = list(names), folder
        self.trackers: dict[str, Tracker] = {}
        self.runs: dict[str, str] = {}

    def after_batch(self) -> None:
        """Logs the training loss every few steps."""
        if self.training:
            log = self.learn.run_log
            step = sum(int(row["steps"]) for row in log.rows) + log.steps
            if step % EVERY == 0:
                self._log({"step/train_loss": log.smooth}, step)

    def after_epoch(self) -> None:
        """Logs the last row of `log.csv`."""
        if not self.resume.replaying:
            row = dict(self.learn.run_log.rows[-1])
            epoch = int(row.pop("epoch"))
            self._log({f"epoch/{name}": value for name, value in row.items()}, epoch)

    def _log(self, values: dict[str, float], step: int) -> None:
        self._open()
        for name in list(self.names):
            with self._tolerated(name):
                self.trackers[name].log(values, step)

    def _open(self) -> None:
        """Opens the trackers at the first values: by then the settings are whole, and a checkpoint is restored."""
        for name in [name for name in self.names if name not in self.trackers]:
            run = self.runs.get(name, "")
            settings = asdict(self.learn.run_log.settings)
            opening = Opening(self.folder, f"{self.folder.parent.name}/{self.folder.name}", settings, run)
            with self._tolerated(name):
                self.trackers[name] = TRACKERS[name](opening)
                self.runs[name] = self.trackers[name].run

    @contextmanager
    def _tolerated(self, name: str) -> Iterator[None]:
        """Leaves a tracker out that fails; hides what it prints."""
        try:
            with muted():
                yield
        except Exception as cause:  # of a library, a database or a server
            self.names.remove(name)
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            say(f"tracking with {name} failed, the training goes on without: {reason}")

    def close(self, finished: bool) -> None:
        """Closes the trackers.

        Args:
            finished: whether the training is; else it may be resumed.
        """
        if self.runs:  # also those of a training that was interrupted after its last epoch
            self._open()
        for name in [name for name in self.names if name in self.trackers]:
            with self._tolerated(name):
                self.trackers.pop(name).close(finished)

    def state_dict(self) -> dict[str, Any]:
        """Returns the identifiers of the runs."""
        return {"runs": self.runs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them."""
        self.runs = dict(state["runs"])
