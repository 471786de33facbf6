"""How long a fold trains: for the recipe's epochs, other epochs, a number of steps, or a time budget in minutes."""

import csv
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback, CancelValidException

from kit.console import say
from kit.errors import RecipeError, RunError
from kit.system.files import replacing
from kit.system.ranks import agreed, gathered, rank, ranks

PLAN = "plan.csv"  # of a run with a time budget


@dataclass(frozen=True)
class LengthOptions:
    """How long a fold trains; None leaves it to the recipe."""

    minutes: float | None = None  # wall time, validation included
    epochs: int | None = None  # over all fits of the recipe, in the recipe's proportion
    steps: int | None = None  # batches of each rank, over all epochs


def count_epochs(recipe: Any, learn: Any) -> list[int]:
    """Returns the epochs of each fit that a recipe's `fit` starts, without training.

    Raises:
        RecipeError: there are none.
    """
    epochs: list[int] = []

    def fit(n_epoch: int, *_: Any, **__: Any) -> None:
        epochs.append(n_epoch)

    learn.fit = fit  # in place of the method, which fastai's other ways to fit call
    try:
        recipe.fit(learn)
    finally:
        del learn.fit
    if not sum(epochs):
        raise RecipeError(f"{recipe.name}: fit() trains no epoch", "expected for example learn.fit_one_cycle(12, 1e-3)")
    return epochs


def share_out(epochs: int, fits: Sequence[int]) -> list[int]:
    """Returns `epochs` divided among the fits of a recipe in the recipe's proportion, at least 1 each.

    Args:
        epochs: over all fits.
        fits: epochs of each fit, as the recipe has them.

    Raises:
        RunError: there are fewer epochs than fits.
    """
    if epochs < len(fits):
        raise RunError(f"--epochs {epochs}: the recipe trains in {len(fits)} fits", f"give {len(fits)} or more")
    ends = [0]
    for number, done in enumerate(accumulate(fits), start=1):
        end = round(epochs * done / sum(fits))
        ends.append(min(max(end, ends[-1] + 1), epochs - (len(fits) - number)))
    return [end - start for start, end in pairwise(ends)]


def override_epochs(learn: Any, epochs: Sequence[int]) -> None:
    """Makes the coming fits of a Learner train so many epochs each.

    `learn.stretch` is then the fit's number of epochs divided by the recipe's: what a recipe does at a given epoch
    (`LossSwitch`, `SWA`) moves with it.
    """
    own, left = learn.fit, iter(epochs)

    def fit(n_epoch: int, *args: Any, **options: Any) -> None:
        new = next(left)
        learn.stretch = new / n_epoch
        own(new, *args, **options)

    learn.fit = fit


class Length(Callback):
    """Trains epochs as long as the sampler makes them.

    Args:
        fits: epochs of each fit of the recipe.
    """

    order = -5  # after Deal, which makes whole batches of the recipe's own epochs
    name = "length"
    open_ended = False  # whether an epoch's draw has no end

    def __init__(self, fits: Sequence[int]) -> None:
        self.fits = fits
        self.epochs = sum(fits)

    @property
    def total(self) -> int:
        """Steps of all epochs, as far as is known."""
        return self.epochs * len(self.dls.train)

    @property
    def epochs_done(self) -> int:
        """Finished epochs, over all fits; a fit that stopped early counts in full."""
        return sum(self.fits[: self.resume.fits - 1]) + int(self.epoch)

    def settings(self) -> dict[str, int]:
        """Returns what the run's settings say about the length."""
        return {"epochs": self.epochs, "steps_per_epoch": len(self.dls.train)}

    def time_left(self, seconds: float, epochs_done: int) -> float:
        """Returns the seconds that are left, for the table.

        Args:
            seconds: since training began.
            epochs_done: at least 1.
        """
        return seconds / epochs_done * (self.epochs - epochs_done)


class StepCount(Length):
    """Trains a number of steps, spread evenly over all epochs.

    Args:
        steps: over all epochs.
        fits: see `Length`.

    Raises:
        RunError: there are fewer steps than epochs.
    """

    def __init__(self, steps: int, fits: Sequence[int]) -> None:
        super().__init__(fits)
        if steps < self.epochs:
            raise RunError(
                f"--steps {steps}: the recipe has {self.epochs} epochs, and each takes a step at least",
                f"give {self.epochs} steps or more, or fewer --epochs",
            )
        self.steps = steps

    @property
    def total(self) -> int:
        """Steps of all epochs."""
        return self.steps

    def before_fit(self) -> None:
        """Sets the length of the first epoch, for the settings."""
        self._set(0)

    def before_epoch(self) -> None:
        """Sets the length of the epoch."""
        self._set(self.epochs_done)

    def _set(self, epoch: int) -> None:
        train = self.dls.train
        train.n = (self.steps * (epoch + 1) // self.epochs - self.steps * epoch // self.epochs) * train.bs


@dataclass(frozen=True)
class StepPlan:
    """The plan of an epoch, computed at one of its steps.

    Between two plans, schedules advance by equal shares a step.
    """

    epoch: int  # over all fits, from 0
    step: int  # steps of the epoch that were done
    share: float  # 0 to 1, how far the schedules had advanced within the epoch
    seconds: float  # of the budget that were used
    step_seconds: float  # that a step took lately; 0 where unknown
    epoch_seconds: float  # that an epoch takes beside its steps: validation, saving
    steps: int  # of the epoch, in all
    next_step: int  # at which it is recomputed
    total: int  # steps of all epochs, if the machine stays as fast

    def share_at(self, step: int) -> float:
        """Returns how far schedules have advanced within the epoch before a step, 0 to 1."""
        if not self.step_seconds:
            return self.share  # they wait until a step's time is known
        return self.share + (1 - self.share) * (step - self.step) / (self.steps - self.step)


class TimeBudget(Length):
    """Trains for a number of minutes, validation included.

    Every epoch gets an equal share of the time. Its number of steps is planned at its beginning and again every
    hundredth of the budget, from the time of a step as it was since the last plan: where the machine becomes slower or
    faster, the epoch gets fewer or more steps. A validation is expected to slow down as steps do. Schedules follow the
    plan, so that they reach their end with the budget. Rank 0 plans for all ranks. Where validations would take more
    than half of the time that is left, some epochs are not validated; the last one always is. Plans that change the
    number of steps are written to `plan.csv`, and kept in the checkpoint.

    Args:
        minutes: wall time of all fits.
        fits: see `Length`.
        folder: of the run.
    """

    run_valid = False
    open_ended = True
    TARGET = 0.99  # share of the minutes that is planned
    PLANS = 100  # in a budget, about
    FIRST = 2  # steps before the first plan: the first one compiles, and fills caches
    KNOWN = 8  # steps before the total is reported
    NEWS = 0.25  # a total that differs by a larger share is reported again

    def __init__(self, minutes: float, fits: Sequence[int], folder: Path) -> None:
        super().__init__(fits)
        self.budget_s, self.folder = minutes * 60 * self.TARGET, folder
        self.plans: list[StepPlan] = []
        self.epoch_seconds, self.pace = 0.0, 0.0  # that an epoch took beside its steps, and that its steps took
        self.trained_at: float | None = None  # seconds when the last epoch's steps ended
        self.trained_pace = 0.0  # that those steps took
        self.began: tuple[float, int] = (0.0, 0)  # seconds and step since which these are timed
        self.mark: tuple[float, int] | None = None  # seconds and step since which steps are timed
        self.session_steps = 0  # steps done by this process
        self.steps_done = 0  # of finished epochs
        self.reported = 0  # the total last reported

    @property
    def total(self) -> int:
        """Steps of all epochs, as planned."""
        return self.plans[-1].total if self.plans else self.epochs * self.FIRST

    def settings(self) -> dict[str, int]:
        """Returns the epochs: the steps are in `plan.csv`."""
        return {"epochs": self.epochs}

    def time_left(self, seconds: float, epochs_done: int) -> float:
        """Returns what is left of the budget."""
        return max(0.0, self.budget_s - seconds) if epochs_done < self.epochs else 0.0

    def before_fit(self) -> None:
        """Times the validation of a tile; lets a plan end an epoch."""
        if not self.epoch_seconds:
            self.epoch_seconds = max(gathered(validation_seconds(self.learn)))
        self.learn.all_batches = self._all_batches
        self._set_steps(self.plans[-1].steps if self.plans else self.FIRST)

    def _all_batches(self) -> None:
        """Does as `Learner.all_batches`, and ends an epoch's training after the planned number of steps."""
        self.learn.n_iter = len(self.dl)
        for number, batch in enumerate(self.dl):
            self.learn.one_batch(number, batch)
            if self.training and self.iter + 1 >= self.n_iter:
                return

    def before_epoch(self) -> None:
        """Plans the epoch, unless a checkpoint brought its plan along."""
        done = self.learn.deal.skip
        if not done or not self.plans:
            self._plan(done, 0.0)

    def before_batch(self) -> None:
        """Sets how far the schedules have advanced; notes when the first step of an epoch begins."""
        if self.mark is None:
            seconds = self.run_log.seconds
            if self.trained_at is not None:
                if not self.recorder.cancel_valid:
                    self.epoch_seconds, self.pace = seconds - self.trained_at, self.trained_pace
                self.trained_at = None
            self.mark = self.began = seconds, int(self.iter)
        self.learn.pct_train = (self.epoch + self.plans[-1].share_at(self.iter)) / self.n_epoch

    def after_batch(self) -> None:
        """Recomputes the plan at the step that the last plan names."""
        plan, done = self.plans[-1], int(self.iter) + 1
        self.session_steps += 1
        if self.session_steps == 1:
            self.mark = self.began = self.run_log.seconds, done
        if done == plan.next_step and done < plan.steps:
            self._plan(done, plan.share_at(done))

    def after_train(self) -> None:
        """Notes when the epoch's steps ended."""
        if self.plans:
            self.steps_done += self.plans[-1].steps
        self.trained_at, self.mark = self.run_log.seconds, None
        (since, step), done = self.began, int(self.iter) + 1
        self.trained_pace = (self.trained_at - since) / (done - step) if done > step else self._step_seconds

    @property
    def _step_seconds(self) -> float:
        """That a step took lately; 0 where unknown."""
        return self.plans[-1].step_seconds if self.plans else 0.0

    def before_validate(self) -> None:
        """Leaves a validation out where all of them would not fit."""
        ahead = self.epochs - self.epochs_done
        if agreed(ahead > self._validations(ahead, self.run_log.seconds, self._expected(self._step_seconds))):
            raise CancelValidException

    def _expected(self, step_s: float) -> float:
        """Returns the seconds that an epoch takes beside its steps, where a step takes `step_s` (0: unknown)."""
        return self.epoch_seconds * (step_s / self.pace if step_s and self.pace else 1.0)

    def _validations(self, ahead: int, now: float, epoch_s: float) -> int:
        """Returns how many of the next epochs can be validated in half of the time that is left, at least 1."""
        return max(1, min(ahead, int((self.budget_s - now) / 2 / epoch_s))) if epoch_s else ahead

    def _plan(self, done: int, share: float) -> None:
        """Plans the rest of the epoch."""
        now = self.run_log.seconds
        plan = agreed(self._planned(done, share, now) if rank() == 0 else None)
        assert plan is not None
        last = self.plans[-1] if self.plans else None
        if last and done and last.steps == plan.steps and last.step_seconds:
            self.plans[-1] = replace(plan, step=last.step, share=last.share, seconds=last.seconds)  # as planned before
        else:
            self.plans.append(plan)
        self.mark = (now, done) if done else None
        self._set_steps(plan.steps)
        self._report(plan)
        if rank() == 0:
            write_plans(self.plans, self.folder / PLAN)

    def _planned(self, done: int, share: float, now: float) -> StepPlan:
        """Returns the plan of the rest of the epoch.

        Args:
            done: steps of the epoch that were done.
            share: how far schedules have advanced within it.
            now: seconds of the budget that were used.
        """
        epoch = self.epochs_done
        step_s = self._step_seconds
        if self.mark is not None and done > self.mark[1]:
            step_s = (now - self.mark[0]) / (done - self.mark[1])
        if not step_s:
            steps = done + self.FIRST
            total = self.steps_done + steps * (self.epochs - epoch)
            return StepPlan(epoch, done, share, now, 0.0, self.epoch_seconds, steps + 1, steps, total)
        self.pace = self.pace or step_s
        epoch_s = self._expected(step_s)
        ahead = self.epochs - epoch  # epochs that are not finished
        train_s = max(0.0, self.budget_s - now - self._validations(ahead, now, epoch_s) * epoch_s)
        rest = max(1, round(train_s * (1 - share) / (ahead - share) / step_s))
        every = max(1, round(self.budget_s / self.PLANS / step_s))
        steps = done + rest
        # soon after the first step, and towards the end of an epoch, plans come closer
        following = done + max(1, min(every, rest // 2, done or every))
        total = self.steps_done + steps + max(ahead - 1, round(train_s * (ahead - 1) / (ahead - share) / step_s))
        return StepPlan(epoch, done, share, now, step_s, epoch_s, steps, following, total)

    def _set_steps(self, steps: int) -> None:
        self.dls.train.n = steps * self.dls.train.bs
        self.learn.n_iter = steps

    def _report(self, plan: StepPlan) -> None:
        """Prints how many steps are planned: once that is known, and when an epoch begins with another number."""
        if self.reported:
            if plan.step or abs(plan.total - self.reported) <= self.NEWS * self.reported:
                return
            changed = f" instead of {self.reported}"
        elif not plan.step_seconds or (plan.epoch == 0 and plan.step < self.KNOWN):
            return
        else:
            changed = ""
        self.reported = plan.total
        say(
            f"planned {plan.total} steps in {self.epochs} epochs{changed}: {plan.step_seconds:.2g} s a step, "
            f"{plan.epoch_seconds:.2g} s a validation"
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the plans, and what the next one needs."""
        return {
            "plans": [asdict(plan) for plan in self.plans],
            "epoch_seconds": self.epoch_seconds,
            "pace": self.pace,
            "trained_at": self.trained_at,
            "trained_pace": self.trained_pace,
            "steps_done": self.steps_done,
            "said": self.reported,
            "ranks": ranks(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes the last plan; with another number of ranks, its steps are counted in theirs."""
        self.plans = [StepPlan(**plan) for plan in state["plans"]]
        self.epoch_seconds, self.trained_at = state["epoch_seconds"], state["trained_at"]
        self.pace, self.trained_pace = state.get("pace", 0.0), state.get("trained_pace", 0.0)
        self.steps_done, self.reported, self.mark = state["steps_done"], state["said"], None
        if state["ranks"] != ranks():
            self.plans[-1] = _recounted(self.plans[-1], state["ranks"], ranks())
        self._set_steps(self.plans[-1].steps)


def _recounted(plan: StepPlan, before: int, now: int) -> StepPlan:
    """Returns a plan whose steps are those of another number of ranks, for the same crops."""
    step, steps, following = (count * before // now for count in (plan.step, plan.steps, plan.next_step))
    return replace(plan, step=step, steps=max(step + 1, steps), next_step=max(step + 1, following))


def write_plans(plans: Sequence[StepPlan], path: Path) -> None:
    """Writes plans as CSV, one row each."""
    with replacing(path) as file, file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(StepPlan)])
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in asdict(plan).items()}
            for plan in plans
        )


def validation_seconds(learn: Any) -> float:
    """Returns about how long this rank's validation takes: a tile's time, measured once, times the number of tiles."""
    dataset, device = learn.dls.valid.dataset, learn.dls.device
    if not len(dataset):
        return 0.0
    training = learn.model.training
    learn.model.eval()
    seconds = 0.0
    for _ in range(2):  # the first one fills caches
        start = time.perf_counter()
        image = dataset[0][0][None].to(device)
        with torch.inference_mode(), learn.precision.context():
            learn.model(image.contiguous(memory_format=torch.channels_last))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    learn.model.train(training)
    return seconds * len(dataset)
