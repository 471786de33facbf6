"""`kit export --adaptive` and `kit submit --adaptive`, from a trained run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from deploy_fakes import noise, write_tiff

from kit.deploy.weights.load import read_card
from kit.pipeline.learn_bounds import best_of_each

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trained(cli: Cli, workplace: Path) -> Path:
    assert cli("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", "0", "--no-export")[0] == 0
    return workplace


def test_bounds_are_learnt_and_used(cli: Cli, trained: Path, tmp_path: Path):
    wanted = ("export", "tiny/fold0", "--name", "early", "--adaptive", "--root", trained)
    code, _, err = cli(*wanted)
    assert code == 0, err
    learnt = read_card(trained / "weights/early.pt").adaptive
    assert learnt
    assert (learnt.order, len(learnt.settled)) == ((0,), 2)
    assert learnt.score >= learnt.score_full - 0.002
    assert 0.25 <= learnt.cost <= 1
    assert f"adaptive: {learnt.cost:.0%} of the time by count" in err
    assert json.loads((trained / "weights/early.json").read_text())["adaptive"]["cost"] == learnt.cost
    write_tiff(tmp_path / "chips/a.tif", noise(100, 90))
    code, out, err = cli("submit", tmp_path / "chips", "--adaptive", "--no-tune", "--root", trained)
    assert (code, Path(out.strip()).name) == (0, "early-chips.tgz"), err


def test_networks_of_one_recipe_take_as_long():
    assert best_of_each([3.0, 2.0, 1.0], ["a", "b", "a"]) == [1.0, 2.0, 1.0]


@pytest.mark.parametrize(("lost", "message"), [("oof.csv", "held nothing out"), ("data", "no data set")])
def test_what_is_needed_is_told(cli: Cli, trained: Path, lost: str, message: str):
    if lost == "data":
        shutil.rmtree(trained / "data")
    else:
        (trained / "runs/tiny/fold0" / lost).unlink()
    code, out, err = cli("export", "tiny/fold0", "--name", "early", "--adaptive", "--root", trained)
    assert (code, out) == (1, "")
    assert message in err
    assert not (trained / "weights/early.pt").exists()
