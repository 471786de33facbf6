"""Stages of a solution: their keys, their state, and what a change reaches."""

from dataclasses import replace
from pathlib import Path

import pytest
from factories import TINY_RECIPE
from solution_files import THREE, write_solution

from kit.errors import RunError
from kit.paths import Paths
from kit.solutions.rounds import Solution
from kit.solutions.stages import Planner, SolutionInputs, read_records, write_record

INPUTS = SolutionInputs("tier1", (0, 1), {"data tier1": "a", "recipe tiny": "b", "chips": "c"}, {"precision": ""})


@pytest.fixture
def solution(tmp_path: Path) -> Solution:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.py").write_text(TINY_RECIPE)
    return write_solution(tmp_path, THREE)


def done(planner: Planner, folder: Path) -> None:
    """Notes all stages as done."""
    for stage in planner.stages:
        write_record(folder, stage, done=True)
        for file in stage.outputs:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("")


def undone(planner: Planner, folder: Path) -> list[str]:
    states = planner.states(read_records(folder))
    return [str(stage) for stage, state in zip(planner.stages, states, strict=True) if state != "done"]


def test_the_stages_of_three_rounds(tmp_path: Path, solution: Solution):
    planner = Planner(solution, Paths(tmp_path), INPUTS)
    assert [f"{stage.round}: {stage}" for stage in planner.stages] == [
        "one: train plan-one-tiny", "one: export plan-one", "one: score one",
        "two: label plan-two-from-one", "two: train plan-two-tiny", "two: export plan-two", "two: score two",
        "three: label plan-three-from-two", "three: train plan-three-tiny", "three: train plan-three-tiny-seed1",
        "three: export plan", "three: score three", "three: submit plan",
    ]  # fmt: skip
    assert planner.states({}) == ["missing"] * 13
    results = [file.relative_to(tmp_path).as_posix() for file in planner.stages[9].outputs]
    assert results == [f"runs/plan-three-tiny-seed1/fold{k}/result.json" for k in (0, 1)]


def test_a_change_reaches_what_depends_on_it_alone(tmp_path: Path, solution: Solution):
    paths = Paths(tmp_path)
    planner, folder = Planner(solution, paths, INPUTS), paths.solution("plan")
    done(planner, folder)
    assert undone(planner, folder) == []
    one, two, three = solution.rounds
    longer = replace(two, trainings=[replace(two.trainings[0], steps=9)])
    changed = Planner(replace(solution, rounds=(one, longer, three)), paths, INPUTS)
    assert undone(changed, folder) == [str(stage) for stage in planner.stages[4:]]
    weighted = replace(three, learns=[replace(three.pseudo[0], weight=0.5)])
    changed = Planner(replace(solution, rounds=(one, two, weighted)), paths, INPUTS)
    assert undone(changed, folder) == [str(stage) for stage in planner.stages[8:]]  # the labels stay
    views = replace(three, views="d4")
    changed = Planner(replace(solution, rounds=(one, two, views)), paths, INPUTS)
    assert undone(changed, folder) == ["export plan", "submit plan"]
    chips = replace(INPUTS, checksums={**INPUTS.checksums, "chips": "others"})
    assert undone(Planner(solution, paths, chips), folder) == [str(stage) for stage in planner.stages[3:]]
    recipe = replace(INPUTS, checksums={**INPUTS.checksums, "recipe tiny": "others"})
    assert len(undone(Planner(solution, paths, recipe), folder)) == 13


def test_a_file_that_is_gone_is_made_again(tmp_path: Path, solution: Solution):
    paths = Paths(tmp_path)
    planner, folder = Planner(solution, paths, INPUTS), paths.solution("plan")
    done(planner, folder)
    planner.stages[7].outputs[0].unlink()
    states = planner.states(read_records(folder))
    assert states[:8] == ["done"] * 7 + ["missing"]
    assert set(states[8:]) == {"stale"}


def test_a_stage_that_was_begun_is_unfinished(tmp_path: Path, solution: Solution):
    paths = Paths(tmp_path)
    planner, folder = Planner(solution, paths, INPUTS), paths.solution("plan")
    write_record(folder, planner.stages[0], done=False)
    assert planner.states(read_records(folder))[0] == "unfinished"


def test_a_round_that_lost_passes_on_the_weights_before_it(tmp_path: Path, solution: Solution):
    planner = Planner(solution, Paths(tmp_path), INPUTS, lost=["two", "three"])
    by_name = {str(stage): stage for stage in planner.stages}
    assert [str(each) for each in by_name["label plan-three-from-two"].inputs] == ["export plan-one"]
    assert [str(each) for each in by_name["submit plan"].inputs] == ["export plan-one"]
    assert by_name["score three"].settings == {"with": "one"}
    assert Planner(solution, Paths(tmp_path), INPUTS, lost=["one"]).kept == "three"  # nothing stands before the first


def test_damaged_records(tmp_path: Path):
    (tmp_path / "stages.json").write_text('{"train a": {"key": 3}}')
    with pytest.raises(RunError, match=r"stages.json is damaged"):
        read_records(tmp_path)
