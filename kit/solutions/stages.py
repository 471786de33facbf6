"""The stages of a solution: what each makes, what it depends on, and whether it is done.

Rounds learn from earlier rounds alone, so the order of the file is the order of the work. The key of a stage is a
hash of its settings and of its inputs' keys: a change reaches what depends on it, and nothing else.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kit.errors import KitError, RunError
from kit.paths import Paths
from kit.solutions.rounds import Pseudo, Round, Solution, Training, titled
from kit.system.files import read_json, write_json

Kind = Literal["label", "train", "export", "score", "submit"]
State = Literal["done", "stale", "unfinished", "missing"]


@dataclass(frozen=True)
class Stage:
    """One step of a solution."""

    round: str  # its round
    kind: Kind  # what it does
    name: str  # of what it makes: data set, runs, weights, score or submission
    settings: Mapping[str, Any]  # what its result depends on, beside the inputs
    inputs: tuple["Stage", ...]  # stages whose results it reads
    outputs: tuple[Path, ...]  # files that stand when it is done
    source: Training | Pseudo | None = None  # the `Training` or `Pseudo` that asks for it

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @cached_property
    def key(self) -> str:
        """Hash of settings and inputs."""
        text = json.dumps([self.kind, self.name, self.settings, [each.key for each in self.inputs]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class SolutionInputs:
    """What the stages of a solution depend on from outside; empty where it is not known yet."""

    data: str = ""  # name of the data set with the true labels
    folds: tuple[int | str, ...] = ()  # its folds
    # of `data NAME`, `recipe NAME`, `weights NAME` that are here already, and `chips`
    checksums: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)  # what trainings share, such as the precision


@dataclass(frozen=True)
class StageRecord:
    """What is known of a stage that was begun."""

    key: str  # that it was begun with
    done: bool  # whether it has ended


class Planner:
    """Makes the stages of a solution.

    Args:
        solution: whose.
        paths: of the working root.
        inputs: from outside.
        lost: rounds whose weights are not used, because those before them scored better.
    """

    def __init__(self, solution: Solution, paths: Paths, inputs: SolutionInputs, lost: Collection[str] = ()) -> None:
        self.solution, self.paths, self.inputs = solution, paths, inputs
        self.exports: dict[str, Stage] = {}  # of each round, those of the round that stands for it
        self.kept = ""  # the round whose weights are the last to be used
        self.scored: tuple[Stage, ...] = ()
        self.stages: list[Stage] = []
        for round_ in solution.rounds:
            self._plan(round_, lost)
        last = solution.rounds[-1].name
        archive = paths.submission(solution.name)
        self._add(last, "submit", solution.name, self._checksums("chips"), (self.exports[last],),
                  (archive.with_name(f"{archive.name}.tgz"),))  # fmt: skip

    def _plan(self, round_: Round, lost: Collection[str]) -> None:
        solution, paths, name = self.solution, self.paths, round_.name
        labels = [self._label(round_, pseudo) for pseudo in round_.pseudo]
        learns: list[Any] = [asdict(each) for each in round_.added]
        learns += [[str(label), pseudo.weight] for label, pseudo in zip(labels, round_.pseudo, strict=True)]
        trained = []
        for training in round_.trainings:
            run = solution.run(round_, training)
            folds = tuple(training.folds) or self.inputs.folds
            sets = [f"data {name}" for name in (self.inputs.data, *(each.name for each in round_.added))]
            names = [f"recipe {training.recipe}", f"weights {round_.teacher}", *sets]
            settings = {**asdict(training), "folds": folds, "learns": learns, "teacher": round_.teacher}
            settings |= {**self.inputs.training, **self._checksums(*names), "data": self.inputs.data}
            results = tuple(paths.run(run, fold) / "result.json" for fold in folds)
            inputs = (*labels, *([self.exports[round_.teacher]] if round_.teacher in self.exports else []))
            trained.append(self._add(name, "train", run, settings, inputs, results, training))
        weights = solution.weights(round_)
        file = paths.weights / f"{weights}.pt"
        export = self._add(name, "export", weights, {"views": round_.views}, tuple(trained), (file,))
        compared = {"with": self.kept}
        score = self._add(name, "score", name, compared, (*trained, *self.scored), (score_file(paths, solution, name),))
        if name not in lost or not self.kept:
            self.kept, self.exports[name], self.scored = name, export, (score,)
        else:
            self.exports[name] = self.exports[self.kept]

    def _label(self, round_: Round, pseudo: Pseudo) -> Stage:
        name = self.solution.labels(round_, pseudo)
        before = (self.exports[pseudo.of],) if pseudo.of in self.exports else ()
        options = {key: value for key, value in asdict(pseudo).items() if key != "weight"}
        settings = {**options, **self._checksums("chips", f"weights {pseudo.of}")}
        return self._add(round_.name, "label", name, settings, before, (self.paths.data(name) / "index.csv",), pseudo)

    def _checksums(self, *names: str) -> dict[str, str]:
        return {name: self.inputs.checksums.get(name, "") for name in names}

    def _add(self, round_: str, kind: Kind, name: str, settings: Mapping[str, Any], inputs: tuple[Stage, ...],
             outputs: tuple[Path, ...], source: Training | Pseudo | None = None) -> Stage:  # fmt: skip
        self.stages.append(Stage(round_, kind, name, settings, inputs, outputs, source))
        return self.stages[-1]

    def states(self, records: Mapping[str, StageRecord]) -> list[State]:
        """Returns the state of each stage: stale is one that was made with other settings or inputs."""
        states: dict[int, State] = {}
        for stage in self.stages:
            record = records.get(str(stage))
            if record is None:
                state: State = "missing"
            elif record.key != stage.key:
                state = "stale"
            elif not record.done:
                state = "unfinished"
            elif not all(file.exists() for file in stage.outputs):
                state = "missing"
            else:
                state = "done" if all(states[id(each)] == "done" for each in stage.inputs) else "stale"
            states[id(stage)] = state
        return list(states.values())


@contextmanager
def named(stage: Stage) -> Iterator[None]:
    """Lets an error say which round and stage it belongs to."""
    try:
        yield
    except KitError as error:
        error.message = f"{titled(stage.round)}, {stage}: {error.message}"
        error.args = (error.message,)
        raise


def score_file(paths: Paths, solution: Solution, round_: str) -> Path:
    """Returns where the score of a round is kept."""
    return paths.solution(solution.name) / f"{round_}.json"


def read_records(folder: Path) -> dict[str, StageRecord]:
    """Returns what is known of the stages of a solution, by `str(stage)`.

    Raises:
        RunError: the file is damaged.
    """
    file = folder / "stages.json"
    if not file.is_file():
        return {}
    hint = f"remove {file}: runs that are finished are kept"
    return read_json(file, dict[str, StageRecord], error=RunError, hint=hint)  # type: ignore[arg-type]


def write_record(folder: Path, stage: Stage, done: bool) -> None:
    """Notes that a stage was begun or has ended."""
    records = {**read_records(folder), str(stage): StageRecord(stage.key, done)}
    write_json(folder / "stages.json", {name: asdict(record) for name, record in records.items()})
