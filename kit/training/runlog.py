"""Writes settings, log and best weights of a run, and shows its progress."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from fastai.callback.core import Callback
from safetensors.torch import save

from kit.console import Meter
from kit.models.metrics import PooledJaccard
from kit.system.files import replacing
from kit.system.ranks import gathered, rank
from kit.training.run_files import BEST, LOG, RunSettings, write_settings


class RunLog(Callback):
    """Writes `settings.json`, `log.csv` and `best.safetensors`; shows a progress bar, and a table with a row per epoch.

    The best epoch has the highest Jaccard index; without validation, it is the last. Epochs are counted over all fits
    of a recipe. Rank 0 writes.
    """

    order = 60  # after the Recorder, before EMA restores the current weights

    def __init__(self, folder: Path, title: str, settings: RunSettings, epochs: int) -> None:
        self.folder, self.title, self.settings, self.epochs = folder, title, settings, epochs
        self.bar: Meter | None = None
        self.rows: list[dict[str, float]] = []
        self.headed = False
        self.steps = 0  # done of the epoch
        self.best, self.best_epoch, self.start, self.smooth = -1.0, -1, monotonic(), math.nan

    def before_fit(self) -> None:
        """Writes the settings, now that the number of steps is known."""
        self.recorder.add_time = False
        self._write_settings()
        held_out = gathered(sorted(set(map(str, self.dls.valid.dataset.rows["area"]))))
        self.areas = sorted({area for areas in held_out for area in areas})

    def _write_settings(self) -> None:
        precision = self.learn.precision.name_of_precision
        self.settings = replace(self.settings, **self.learn.length.settings(), precision=precision)
        if rank() == 0:
            write_settings(self.folder, self.settings)

    def before_train(self) -> None:
        """Starts the bar, and in a new run the time."""
        self.steps = 0
        if not self.rows and not self.learn.deal.skipped:
            self.start = monotonic()
        if self.bar is None:
            self.bar = Meter(self.title, self.learn.length.total)
            self.bar.skip(sum(int(row["steps"]) for row in self.rows) + self.learn.deal.skipped)

    def after_batch(self) -> None:
        """Advances the bar; writes the settings again once the precision is known."""
        if self.training:
            if self.settings.precision != self.learn.precision.name_of_precision:
                self._write_settings()
            self.smooth = self.recorder.smooth_loss.value.item()
            assert self.bar is not None
            self.steps = int(self.iter) + 1
            self.bar.total = self.learn.length.total
            self.bar.advance(1, self._note())

    def _note(self) -> str:
        best = f" best jaccard {self.best:.4f}" if self.best >= 0 else ""
        return f"epoch {min(len(self.rows) + 1, self.epochs)}/{self.epochs} loss {self.smooth:.4f}{best}"

    def after_epoch(self) -> None:
        """Adds a row to log and table, and saves the best weights."""
        if self.resume.replaying:
            return
        self.rows.append(self._row())
        jaccard = self.rows[-1]["jaccard"]
        # without a score, only the first epoch is saved
        better = self.best < 0 if math.isnan(jaccard) else jaccard > self.best
        if better:
            self.best, self.best_epoch = (-1.0 if math.isnan(jaccard) else jaccard), len(self.rows) - 1
        self._show()
        if rank() == 0:
            with replacing(self.folder / LOG) as file, file.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
            if better:
                weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
                with replacing(self.folder / BEST) as file:
                    file.write_bytes(save(weights))  # save_file reports a full disk as an error of the format

    def _row(self) -> dict[str, float]:
        # recorder.log: epoch, train loss, valid loss, metrics; values of cancelled phases are missing
        log = [math.nan if value is None else float(value) for value in self.recorder.log[1:]]
        train_loss = math.nan if self.recorder.cancel_train else log.pop(0)
        valid_loss, jaccard = ([] if self.recorder.cancel_valid else log + [math.nan] * 2)[:2] or [math.nan] * 2
        return {
            "epoch": len(self.rows),
            "train_loss": train_loss,
            "valid_loss": valid_loss,
            "jaccard": math.nan if math.isnan(valid_loss) else jaccard,
            **self._by_area(),
            "lr": float(self.opt.hypers[-1]["lr"]),
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
        }

    def _by_area(self) -> dict[str, float]:
        by_area = [metric.by_area for metric in self.learn.metrics if isinstance(metric, PooledJaccard)]
        counts = {} if self.recorder.cancel_valid or not by_area else by_area[0]
        return {f"jaccard_{area}": counts[area].jaccard if area in counts else math.nan for area in self.areas}

    @property
    def seconds(self) -> float:
        """Seconds of training so far, validation and earlier sessions included."""
        return monotonic() - self.start

    def _show(self) -> None:
        """Prints the next row of the table above the bar; first the header."""
        row, done = self.rows[-1], len(self.rows)
        areas = {key.removeprefix("jaccard_"): value for key, value in row.items() if key.startswith("jaccard_")}
        head = ["epoch", "train", "validation", "jaccard", *areas, "rate", "time", "left"]
        cells = [
            f"{done}/{self.epochs}",
            *(f"{row[key]:.4f}" for key in ("train_loss", "valid_loss", "jaccard")),
            *(f"{value:.4f}" for value in areas.values()),
            f"{row['lr']:.1e}",
            clock(row["seconds"]),
            clock(self.learn.length.time_left(row["seconds"], done)),
        ]
        widths = [max(8, len(name)) for name in head]
        assert self.bar is not None
        if not self.headed:
            self.headed = True
            self.bar.line(" ".join(name.rjust(width) for name, width in zip(head, widths, strict=True)))
        self.bar.line(" ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
        self.bar.advance(0, self._note())

    def after_fit(self) -> None:
        """Closes the bar, also after an interruption or failure."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the log, the best epoch, and the time so far."""
        return {"rows": self.rows, "best": self.best, "best_epoch": self.best_epoch, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state."""
        # missing in checkpoints of older versions
        self.rows = [{**row, "steps": row.get("steps", 0)} for row in state["rows"]]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.start = monotonic() - state["seconds"]


def clock(seconds: float) -> str:
    """Returns minutes and seconds, `3:05`, or with hours, `2:03:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
