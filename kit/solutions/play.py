"""Plays a solution, from prepared tiles to a checked submission (`kit run SOLUTION`)."""

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from kit.console import say, table
from kit.data.added import AddedSet
from kit.data.sources.chips import find_chips
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.proof.images import SMALL_CASES
from kit.deploy.submission.checks import check
from kit.deploy.submission.submit import SubmitOptions, submit
from kit.deploy.weights.load import named_weights, read_card
from kit.paths import Paths
from kit.pipeline.export_runs import FileOptions, export_runs
from kit.pipeline.pseudo_quality import quality_line
from kit.pipeline.pseudo_set import label_chips
from kit.pipeline.run import RunOptions, find_data, run, run_side_by_side
from kit.solutions.preflight import check_solution, find_inputs, recipes_of
from kit.solutions.round_scores import COLUMNS, read_score, score_round
from kit.solutions.rounds import Pseudo, Round, Solution, Training, titled
from kit.solutions.stages import Planner, Stage, named, read_records, score_file, write_record
from kit.system.devices import release_freed_memory
from kit.system.files import locked, remove_leftovers
from kit.system.processes import joined
from kit.system.ranks import agreed, rank, wait_for_all
from kit.training.fit import Setup
from kit.training.length import LengthOptions


@dataclass(frozen=True)
class SolutionOptions:
    """The options of `kit run` for a solution."""

    data: str = ""  # name of the data set; empty for the only one that no solution made
    test: Path | None = None  # the chips to label and to submit; None for those of the sample
    keep_if_better: bool = False  # a round that scores worse than the one before is left out: its weights are not used
    restart: bool = False  # forgets what was done
    device: str = ""  # empty for the best there is
    workers: int | None = None  # loader processes; None: as many as suit the machine
    # how each fold is trained; its length, teacher and added sets come from the rounds
    setup: Setup = field(default_factory=Setup)
    at_once: int = 1  # folds that are trained side by side, each in a process of its own


def play(solution: Solution, paths: Paths, options: SolutionOptions) -> Path:
    """Plays what is not done yet, and returns the submission's archive.

    Where a launcher started several processes, all of them work on each stage together.

    Raises:
        KitError: of a stage; the message names it.
    """
    folder = paths.solution(solution.name)
    with joined(options.device) as device, locked(folder) if rank() == 0 else nullcontext():
        if rank() == 0:
            find_data(solution.sample, paths, options.data)
        wait_for_all()
        player = Player(solution, paths, options, str(device))
        if rank() == 0:
            check_solution(player.planner, player.recipes, options.data, options.test)
            if options.restart:
                player.forget()
        while (stage := agreed(player.next_stage() if rank() == 0 else None)) is not None:
            with named(stage):
                player.play(stage)
            release_freed_memory()
        if rank() == 0:
            player.show_scores()
    return player.planner.stages[-1].outputs[0]


class Player:
    """Plays the stages of a solution.

    Args:
        solution: whose.
        paths: of the working root.
        options: of the command.
        device: that this process predicts on.
    """

    def __init__(self, solution: Solution, paths: Paths, options: SolutionOptions, device: str = "cpu") -> None:
        self.solution, self.paths, self.options, self.device = solution, paths, options, device
        self.folder = paths.solution(solution.name)
        self.recipes = recipes_of(solution, paths)
        self.inputs = find_inputs(solution, paths, self.recipes, options.data, options.test, options.setup)
        self.test = options.test or paths.sample / "test"
        self.planner = self._planned()

    def _planned(self) -> Planner:
        """Returns the stages; with `keep_if_better`, of which rounds the weights are used depends on their scores."""
        planner = Planner(self.solution, self.paths, self.inputs)
        if not self.options.keep_if_better:
            return planner
        lost: list[str] = []
        for round_ in self.solution.rounds:
            states = dict(zip(map(str, planner.stages), planner.states(read_records(self.folder)), strict=True))
            score = read_score(score_file(self.paths, self.solution, round_.name))
            if states[f"score {round_.name}"] != "done":
                break
            if score is not None and score.lost:
                lost.append(round_.name)
                planner = Planner(self.solution, self.paths, self.inputs, lost)
        return planner

    def next_stage(self) -> Stage | None:
        """Returns the first stage that is not done."""
        self.planner = self._planned()
        states = self.planner.states(read_records(self.folder))
        return next((stage for stage, state in zip(self.planner.stages, states, strict=True) if state != "done"), None)

    def forget(self) -> None:
        """Removes what was made."""
        for stage in self.planner.stages:
            self._clear(stage)
        (self.folder / "stages.json").unlink(missing_ok=True)

    def play(self, stage: Stage) -> None:
        """Plays one stage. All ranks call it."""
        if rank() == 0:
            say(f"{titled(stage.round)}: {stage}")
            record = read_records(self.folder).get(str(stage))
            if record is not None and record.key != stage.key:
                self._clear(stage)
            write_record(self.folder, stage, done=False)
        wait_for_all()
        round_ = self.solution.round(stage.round)
        if isinstance(stage.source, Training):
            self._train(stage, round_, stage.source)
        elif isinstance(stage.source, Pseudo):
            self._label(stage, round_, stage.source)
        elif stage.kind == "submit":
            self._submit(stage)
        elif rank() == 0 and stage.kind == "export":
            runs = [f"{each.name}/{file.parent.name}" for each in stage.inputs for file in each.outputs]
            cases = SMALL_CASES if self.options.setup.tiny else ()
            export_runs(runs, stage.name, self.paths, round_.views, FileOptions(cases=cases))
        elif rank() == 0:
            folders = [file.parent for each in stage.inputs if each.kind == "train" for file in each.outputs]
            before = str(stage.settings["with"])
            say(str(score_round(
                round_.name, folders, self.paths, self.inputs.data, stage.outputs[0],
                score_file(self.paths, self.solution, before) if before else None,
            )))  # fmt: skip
        wait_for_all()
        if rank() == 0:
            write_record(self.folder, stage, done=True)

    def _clear(self, stage: Stage) -> None:
        """Removes what a stage made with other settings; the other kinds replace it themselves."""
        if str(stage) not in read_records(self.folder):
            return  # it may be somebody else's
        folders = []
        if stage.kind == "train":
            folders = [each for each in self.paths.run_folders() if each.parent.name == stage.name]
        elif stage.kind == "label":
            folders = [stage.outputs[0].parent]
        elif stage.kind == "submit":
            stage.outputs[0].unlink(missing_ok=True)
            folders = [self.paths.submission(stage.name)]
        for folder in folders:
            remove_leftovers(folder.parent, folder.name)
            if folder.is_dir():  # renamed first: half of a folder would not be known as kit's
                aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
                folder.rename(aside)
                shutil.rmtree(aside)

    def _train(self, stage: Stage, round_: Round, training: Training) -> None:
        teacher = self._weights(stage, round_.teacher) if round_.teacher else None
        labels = [AddedSet(each.name, each.source.weight) for each in stage.inputs if isinstance(each.source, Pseudo)]
        setup = replace(
            self.options.setup, length=LengthOptions(epochs=training.epochs or None, steps=training.steps or None)
        )
        options = RunOptions(
            data=self.inputs.data, added=(*round_.added, *labels), folds=tuple(stage.settings["folds"]),
            seed=training.seed, device=self.options.device, workers=self.options.workers, setup=setup, teacher=teacher,
            name=stage.name, export=False,
        )  # fmt: skip
        if self.options.at_once > 1 and len(options.folds) > 1:
            arguments = as_arguments(training.recipe, self.paths, options)
            run_side_by_side(training.recipe, self.paths, options, arguments, self.options.at_once)
        else:
            run(training.recipe, self.paths, options)

    def _label(self, stage: Stage, round_: Round, pseudo: Pseudo) -> None:
        weights = self._weights(stage, pseudo.of)
        options = pseudo.options(prediction=self._prediction(), round=self.solution.rounds.index(round_))
        labels = label_chips(self.test, weights, self.paths, stage.name, options)
        if rank() == 0:
            for line in (*labels.lines(), quality_line(read_card(weights), self.paths, options)):
                say(line)

    def _submit(self, stage: Stage) -> None:
        weights = stage.inputs[0].outputs[0]
        folder = self.paths.submission(stage.name)
        summary = submit(self.test, weights, folder, self._prediction())
        if rank() == 0:
            check(summary.path, find_chips(self.test)).require()
            say(f"{summary.chips} chips checked, weights {weights.name}: {summary.building_fraction:.1%} building")

    def _prediction(self) -> SubmitOptions:
        """Returns how chips are predicted: untuned, so that the same inputs give the same bytes."""
        return SubmitOptions(EngineOptions(self.device, tuning=False))

    def _weights(self, stage: Stage, name: str) -> Path:
        """Returns the weights that a stage uses: of an earlier round, or those of that name."""
        exports = [each.outputs[0] for each in stage.inputs if each.kind == "export"]
        return exports[0] if exports else named_weights(name, self.paths.weights)

    def show_scores(self) -> None:
        """Prints a row a round."""
        files = [(each.name, score_file(self.paths, self.solution, each.name)) for each in self.solution.rounds]
        scores = [(self.planner.exports[name].round, score) for name, file in files if (score := read_score(file))]
        table(COLUMNS, [score.cells(kept) for kept, score in scores])


def as_arguments(recipe: str, paths: Paths, options: RunOptions) -> Sequence[str]:
    """Returns a training as arguments of `kit`."""
    setup = options.setup
    arguments = [
        "run", recipe, "--name", options.name, "--data", options.data, "--root", paths.root, "--seed", options.seed,
        *(("--epochs", setup.length.epochs) if setup.length.epochs else ()),
        *(("--steps", setup.length.steps) if setup.length.steps else ()),
        "--checkpoint-minutes", setup.checkpoint_minutes,
        *(word for each in options.added for word in ("--add", f"{each.name}={each.weight!r}")),
        *(("--device", options.device) if options.device else ()),
        *(("--precision", setup.precision) if setup.precision else ()),
        *(("--teacher", options.teacher) if options.teacher else ()),
        *(("--workers", options.workers) if options.workers is not None else ()),
        *(("--encoder-weights", setup.source.file) if setup.source.file else ()),
        *([] if setup.source.pretrained else ["--no-pretrained"]),
        *(["--compile"] if setup.compiled else []), *(["--track", ",".join(setup.track)] if setup.track else []),
        *(["--resume"] if setup.resume else []),
    ]  # fmt: skip
    return [str(argument) for argument in arguments]
