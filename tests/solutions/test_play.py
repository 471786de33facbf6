"""Solutions are played: in order, resumed, and only what a change reaches again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from deploy_fakes import noise, write_tiff
from solution_files import THREE, write_solution

from kit.data.dataset import Fold
from kit.errors import KitError, RunError
from kit.paths import Paths
from kit.pipeline import run as running
from kit.solutions import play as playing
from kit.solutions.play import SolutionOptions, as_arguments, play
from kit.solutions.round_scores import RoundScore
from kit.solutions.rounds import Solution
from kit.training.fit import Setup

pytestmark = pytest.mark.usefixtures("one_thread")
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(workplace: Path) -> Path:
    for number in range(2):
        write_tiff(workplace / "test" / f"chip{number}.tif", noise(64, 64, seed=number))
    return workplace


class Stubs:
    """Stands for what stages call: writes their outputs, and remembers the calls."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths, self.calls, self.fail_at = Paths(root), [], ""
        self.gains: dict[str, float] = {}
        for name in ("run", "label_chips", "export_runs", "submit", "score_round"):
            monkeypatch.setattr(playing, name, getattr(self, name))
        monkeypatch.setattr(playing, "read_card", lambda _: None)
        monkeypatch.setattr(playing, "quality_line", lambda *_: "")
        monkeypatch.setattr(playing, "check", lambda *_: self)

    def note(self, call: str) -> None:
        if call == self.fail_at:
            raise RunError("killed", "again")
        self.calls.append(call)

    def write(self, file: Path, text: str = "") -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def run(self, recipe: str, paths: Paths, options: Any) -> None:
        added = [str(each) for each in options.added]
        self.note(" ".join([options.name, *map(str, options.folds), *added]))
        for fold in options.folds:
            self.write(paths.run(options.name, fold) / "result.json")

    def label_chips(self, test: Path, weights: Path, paths: Paths, name: str, options: Any) -> Any:
        self.note(f"{name} with {weights.stem}")
        self.write(paths.data(name) / "index.csv")
        self.write(paths.data(name) / "pseudo.csv")
        return self

    def lines(self) -> list[str]:
        return []

    def export_runs(self, runs: list[str], name: str, paths: Paths, views: str, cases: Any) -> None:
        self.note(f"{name} of {' '.join(runs)}")
        self.write(paths.weights / f"{name}.pt")

    def score_round(self, name: str, folders: Any, paths: Paths, data: str, file: Path, before: Path | None) -> Any:
        score = RoundScore(name, len(folders), 3, 0.5, before.stem if before else "", self.gains.get(name))
        self.note(f"score {name}{f' beside {before.stem}' if before else ''}")
        self.write(file, json.dumps(vars(score)))
        return score

    def submit(self, test: Path, weights: Path, folder: Path, options: Any) -> Any:
        self.note(f"submit {weights.stem}")
        self.write(folder.with_name(f"{folder.name}.tgz"))
        self.path, self.chips, self.building_fraction = folder, 2, 0.1
        return self

    def require(self) -> None:
        pass


@pytest.fixture
def stubs(root: Path, monkeypatch: pytest.MonkeyPatch) -> Stubs:
    return Stubs(root, monkeypatch)


ALL = [
    "plan-one-tiny 0",
    "plan-one of plan-one-tiny/fold0",
    "score one",
    "plan-two-from-one with plan-one",
    "plan-two-tiny 0 1 plan-two-from-one=1",
    "plan-two of plan-two-tiny/fold0 plan-two-tiny/fold1",
    "score two beside one",
    "plan-three-from-two with plan-two",
    "plan-three-tiny all plan-three-from-two=1",
    "plan-three-tiny-seed1 0 1 plan-three-from-two=1",
    "plan of plan-three-tiny/foldall plan-three-tiny-seed1/fold0 plan-three-tiny-seed1/fold1",
    "score three beside two",
    "submit plan",
]


def played(root: Path, rounds: str, **options: Any) -> Path:
    return play(write_solution(root, rounds), Paths(root), SolutionOptions(test=root / "test", **options))


def test_stages_are_played_once_and_in_order(root: Path, stubs: Stubs):
    assert played(root, THREE) == root / "submissions" / "plan.tgz"
    assert stubs.calls == ALL
    played(root, THREE)
    assert stubs.calls == ALL
    played(root, THREE, restart=True)
    assert stubs.calls == ALL + ALL


def test_a_killed_solution_goes_on_where_it_was(root: Path, stubs: Stubs):
    for call in (ALL[4], ALL[9]):
        stubs.fail_at = call
        with pytest.raises(
            RunError, match=r"round (two, train plan-two-tiny|three, train plan-three-tiny-seed1): kill"
        ):
            played(root, THREE)
    stubs.fail_at = ""
    played(root, THREE)
    assert stubs.calls == ALL


@pytest.mark.slow
def test_a_changed_round_is_trained_again_from_the_start(root: Path, stubs: Stubs):
    played(root, THREE)
    mine = root / "runs" / "tiny" / "fold0" / "settings.json"
    stubs.write(mine)
    rest = root / "runs" / "plan-two-tiny" / "fold1" / "checkpoint.pt"
    stubs.write(rest)
    kept = root / "runs" / "plan-one-tiny" / "fold0" / "checkpoint.pt"
    stubs.write(kept)
    longer = THREE.replace('Training("tiny", folds=(0, 1))', 'Training("tiny", folds=(0, 1), steps=9)')
    stubs.calls.clear()
    stubs.fail_at = ALL[4]
    with pytest.raises(RunError):
        played(root, longer)
    assert not rest.exists()
    stubs.write(rest)  # a checkpoint of the new training
    stubs.fail_at = ""
    played(root, longer)
    assert stubs.calls == ALL[4:]
    assert rest.exists()
    assert kept.exists()
    assert mine.exists()


def test_runs_of_somebody_else_are_not_removed(root: Path, stubs: Stubs):
    other = root / "runs" / "plan-one-tiny" / "fold0" / "checkpoint.pt"
    stubs.write(other)
    played(root, THREE, restart=True)
    assert other.exists()


@pytest.mark.slow
def test_a_round_that_loses_falls_back(root: Path, stubs: Stubs, capsys: pytest.CaptureFixture[str]):
    stubs.gains = {"two": -0.01, "three": -0.02}
    played(root, THREE, keep_if_better=True)
    assert "plan-three-from-two with plan-one" in stubs.calls
    assert stubs.calls[-2:] == ["score three beside one", "submit plan-one"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-1] for row in rows[1:]] == ["one", "one", "one"]
    before = len(stubs.calls)
    played(root, THREE, keep_if_better=True)
    assert len(stubs.calls) == before
    stubs.calls.clear()
    played(root, THREE)  # without it, round three learns from round two
    assert stubs.calls == ALL[7:]


def test_equal_and_better_rounds_are_kept(root: Path, stubs: Stubs):
    stubs.gains = {"two": 0.0, "three": 0.01}
    played(root, THREE, keep_if_better=True)
    assert stubs.calls == ALL


def test_two_commands_at_once(root: Path, stubs: Stubs, monkeypatch: pytest.MonkeyPatch):
    stubs.run = lambda *_: played(root, THREE)  # type: ignore[method-assign]
    monkeypatch.setattr(playing, "run", stubs.run)
    with pytest.raises(KitError, match=r"another process writes .*solutions/plan"):
        played(root, THREE)


@pytest.mark.slow
def test_folds_side_by_side(root: Path, stubs: Stubs, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []

    def side(recipe: str, paths: Paths, options: Any, arguments: list[str], at_once: int) -> None:
        seen.append(arguments)
        stubs.run(recipe, paths, options)

    monkeypatch.setattr(playing, "run_side_by_side", side)
    played(root, THREE, at_once=2, setup=Setup(precision="fp32"), device="cpu", workers=0)
    assert stubs.calls == ALL
    assert [arguments[3] for arguments in seen] == ["plan-two-tiny", "plan-three-tiny-seed1"]
    assert seen[1] == [
        "run", "tiny", "--name", "plan-three-tiny-seed1", "--data", "train_tier_1", "--root", str(root), "--seed", "1",
        "--checkpoint-minutes", "10.0", "--add", "plan-three-from-two=1.0",
        "--device", "cpu", "--precision", "fp32", "--workers", "0",
    ]  # fmt: skip


def test_arguments_parse(root: Path):
    import typer

    from kit.cli import app
    from kit.pipeline.run import RunOptions

    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    setup = Setup(compiled=True, track=("tensorboard", "mlflow"), resume=True)
    arguments = as_arguments("tiny", Paths(root), RunOptions(name="x", teacher=root / "w.pt", setup=setup))[1:]
    params = command.make_context("run", list(arguments)).params
    assert (params["name"], params["compiled"], params["resume"]) == ("x", True, True)
    assert params["track"] == "tensorboard,mlflow"


def test_no_pseudo_label_is_ever_validated_on(root: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli):
    """Played for real, with tiny networks: three rounds, from tiles to a checked submission."""
    folds: list[Fold] = []
    fit_fold = running.fit_fold

    def watched(recipe: Any, fold: Fold, *others: Any) -> Any:
        folds.append(fold)
        return fit_fold(recipe, fold, *others)

    monkeypatch.setattr(running, "fit_fold", watched)
    write_solution(root, THREE)
    code, out, err = cli("run", "plan", "--test", root / "test", "--root", root, "--device", "cpu", "--no-pretrained")
    assert code == 0, err
    assert out.splitlines()[-1] == str(root / "submissions" / "plan.tgz")
    assert [fold.number for fold in folds] == [0, 0, 1, "all", 0, 1]
    index = pd.read_csv(root / "data" / "train_tier_1" / "index.csv").set_index("tile")
    for number, fold in enumerate(folds):
        pseudo = "" if number == 0 else "plan-two-from-one" if number < 3 else "plan-three-from-two"
        assert set(fold.train["data"]) == {"train_tier_1", pseudo} - {""}
        assert set(fold.valid["data"]) <= {"train_tier_1"}
        assert (fold.valid["fold"] == fold.number).all()
        assert not set(fold.train["tile"]) & set(fold.valid["tile"])
    runs = Paths(root).run_folders()
    assert len(runs) == 6
    for run in runs:
        if run.name != "foldall":
            held_out = pd.read_csv(run / "oof.csv")["tile"]
            assert len(held_out)
            assert (index.loc[held_out, "fold"] == int(run.name[-1])).all()
    scored = pd.read_csv(root / "solutions" / "plan" / "three.csv")
    assert sorted(scored["tile"]) == sorted(index[index["fold"] >= 0].index)
    assert "round one: out-of-fold Jaccard" in err
    rows = [line.split() for line in out.splitlines() if line.startswith(("one", "two", "three"))]
    assert [row[0] for row in rows] == ["one", "two", "three"]
    assert rows[1][4] == "one"


def test_what_the_rounds_say_is_no_option(root: Path, cli: Cli):
    write_solution(root, THREE)
    for option in (("--fold", "0"), ("--steps", "3"), ("--seed", "1"), ("--add", "x"), ("--name", "x")):
        code, _, err = cli("run", "plan", *option, "--root", root)
        assert code == 2
        assert "the rounds of plan set folds" in " ".join(err.replace("│", "").split())
    code, _, err = cli("run", "tiny", "--plan", "--root", root)
    assert code == 2


def test_a_named_run(root: Path, cli: Cli):
    code, out, err = cli("run", "tiny", "--name", "other", "--fold", "0", "--no-pretrained", "--root", root)
    assert code == 0, err
    assert out.splitlines()[-1] == str(root / "weights" / "other.pt")
    assert (root / "runs" / "other" / "fold0" / "result.json").is_file()
    assert not (root / "runs" / "tiny").exists()
    code, _, err = cli("export", "other/fold0", "--name", "again", "--root", root)
    assert code == 0, err
    (root / "runs" / "other" / "fold0" / "best.safetensors").write_bytes(b"")
    code, _, err = cli("export", "other/fold0", "--name", "again", "--root", root)
    assert code == 1
    assert "train again: kit run tiny --fold 0 --name other --restart" in err


def test_a_solution_draws_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[bool] = []
    monkeypatch.setattr(playing, "find_data", lambda sample, *_: drawn.append(sample))
    from kit.solutions.rounds import load_solution

    solution: Solution = replace(load_solution("nano", Paths(tmp_path)))
    with pytest.raises(KitError, match="round1, train nano-round1-lite0: no data set is prepared here"):
        play(solution, Paths(tmp_path), SolutionOptions())
    assert drawn == [True]
