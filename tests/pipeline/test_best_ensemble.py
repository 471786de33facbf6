"""`kit best`: members, weights, soups and refusals, from drawn out-of-fold predictions to an exported file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import TINY_RECIPE, write_run, write_scored_run
from safetensors.torch import load_file

from kit.data.index import read_index
from kit.deploy.proof.verify import verify
from kit.deploy.weights.load import load_weights, read_card
from kit.paths import Paths
from kit.pipeline import best_ensemble
from kit.pipeline.pseudo_labels import PseudoOptions
from kit.pipeline.pseudo_quality import expected_quality
from kit.pipeline.run import RunOptions, _setup
from kit.training.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
SECONDS = {"tiny": 1.0, "other": 0.5, "third": 0.25}


@pytest.fixture
def root(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with data and three recipes; times are made up."""
    for name in ("other", "third"):
        (workplace / f"recipes/{name}.py").write_text(TINY_RECIPE.replace("A tiny recipe", f"The {name} recipe"))
    monkeypatch.setattr(best_ensemble, "seconds_per_view", lambda recipe, folder, images: SECONDS[recipe.name])
    return workplace


def write_recipe_folds(root: Path, recipe: str, noise: float, seed: int) -> None:
    for fold in (0, 1):
        write_scored_run(root, f"{recipe}/fold{fold}", noise, seed + fold)


def best(cli: Cli, root: Path, *arguments: object) -> tuple[int, str, str]:
    return cli("best", *arguments, "--name", "best", "--views", "none", "--root", root)


def refused(cli: Cli, root: Path, *arguments: object) -> str:
    code, out, err = best(cli, root, *arguments)
    assert (code, out) == (1, ""), err
    assert "a fault of kit" not in err
    assert not list(root.glob("weights/best*"))
    return err


def test_two_recipes_that_see_different_things_vote_together(root: Path, cli: Cli):
    write_recipe_folds(root, "tiny", 0.2, 10)
    write_recipe_folds(root, "other", 0.25, 20)
    code, out, err = best(cli, root, "tiny", "other/fold0", "other/fold1")
    assert code == 0, err
    assert out.splitlines()[-1] == str(root / "weights/best.pt")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("tiny ", "other "))}
    weight = {name: float(cells[2]) for name, cells in rows.items()}
    assert weight["tiny"] > weight["other"] > 0
    assert sum(weight.values()) == pytest.approx(1)
    assert all(float(cells[4]) > 0.01 for cells in rows.values())  # each adds
    assert [float(rows[name][5]) for name in ("tiny", "other")] == [2.0, 1.0]  # two networks each
    assert "best single candidate -> vote: on other tiles 0." in err
    assert "exported: 3.00 s per chip of 1024 px here" in err
    card = read_card(root / "weights/best.pt")
    assert [f"{member.recipe}/{member.fold}" for member in card.members] == ["tiny/0", "tiny/1", "other/0", "other/1"]
    assert card.weights == pytest.approx([weight["tiny"] / 2] * 2 + [weight["other"] / 2] * 2, abs=0.005)
    assert card.postprocess is not None
    verify(root / "weights/best.pt").require()
    weights = load_weights(root / "weights/best.pt")
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    expected = (weights.module.members(image)[0, :, 0, 0] * torch.tensor(card.weights)).sum()
    torch.testing.assert_close(weights.module(image)[0, 0, 0, 0], expected, atol=1e-5, rtol=0)


def test_no_gain_exports_the_best_alone(root: Path, cli: Cli):
    write_recipe_folds(root, "tiny", 0.1, 10)
    write_recipe_folds(root, "other", 3.0, 20)
    code, _, err = best(cli, root, "tiny", "other")
    assert code == 0, err
    assert "no significant gain over the best single candidate: exporting tiny alone; 2.00 s" in err
    card = read_card(root / "weights/best.pt")
    assert {member.recipe for member in card.members} == {"tiny"}
    assert card.weights == ()


def test_the_budget_leaves_out_what_is_slow(root: Path, cli: Cli):
    for seed, recipe in enumerate(SECONDS):
        write_recipe_folds(root, recipe, 0.2, 10 * seed)
    code, _, err = best(cli, root, *SECONDS, "--seconds-per-chip", 1.6)
    assert code == 0, err
    assert {member.recipe for member in read_card(root / "weights/best.pt").members} == {"other", "third"}
    for file in root.glob("weights/best*"):
        file.unlink()
    err = refused(cli, root, *SECONDS, "--seconds-per-chip", 0.4)
    assert "no candidate predicts a chip in 0.4 s on this machine" in err
    assert "the fastest, third, takes 0.50 s with views none" in err
    for number in ("-1", "nan"):
        assert f"--seconds-per-chip {float(number):g}: expected more than 0" in refused(
            cli, root, "tiny", "--seconds-per-chip", number
        )


def test_one_candidate_is_exported_as_it_is(root: Path, cli: Cli):
    write_recipe_folds(root, "tiny", 0.2, 10)
    code, _, err = best(cli, root, "tiny", "tiny/fold0")
    assert code == 0, err
    assert "one candidate: there is nothing to choose" in err
    assert len(read_card(root / "weights/best.pt").members) == 2


def test_runs_that_held_out_different_tiles(root: Path, cli: Cli):
    write_scored_run(root, "tiny/fold0", 0.2, 1)
    write_scored_run(root, "other/fold1", 0.2, 2)
    err = refused(cli, root, "tiny/fold0", "other/fold1")
    assert "tiny (tiny/fold0) and other (other/fold1) have no validation tile in common" in err
    assert "kit export RUN... --name NAME" in err.splitlines()[-1]
    write_scored_run(root, "other/fold0", 0.2, 3)
    code, _, err = best(cli, root, "tiny", "other")  # on the tiles of fold 0
    assert code == 0, err
    index = read_index(Paths(root))[1]
    assert f"2 candidates, {(index['fold'] == 0).sum()} validation tiles in common" in err


def test_other_data_is_refused(root: Path, cli: Cli):
    write_recipe_folds(root, "tiny", 0.2, 1)
    write_scored_run(root, "other/fold0", 0.2, 2, data_sha256="ab" * 32)
    assert "changed between tiny/fold0 and other/fold0: their folds may differ" in refused(cli, root, "tiny", "other")
    shutil.rmtree(root / "runs/other")
    write_scored_run(root, "other/fold0", 0.2, 2, data="elsewhere")
    assert "other/fold0 on elsewhere: no validation tile in common" in refused(cli, root, "tiny", "other")


def test_unfinished_unknown_and_damaged_runs(root: Path, cli: Cli):
    folder = write_scored_run(root, "tiny/fold0", 0.2, 1)
    write_run(root / "runs/tiny/fold1", None, data="train_tier_1")
    write_run(root / "runs/tiny/foldall", {}, data="train_tier_1")
    assert "tiny/fold1 is not finished" in refused(cli, root, "tiny/fold1")
    assert "tiny/foldall held nothing out" in refused(cli, root, "tiny/foldall")
    assert "no run 'tinny' here" in refused(cli, root, "tinny")
    tile = next((folder / "oof").glob("*.tif"))
    tile.write_bytes(b"no")
    assert f"tile {tile.stem} cannot be read" in refused(cli, root, "tiny/fold0")
    (folder / "oof.csv").unlink()
    assert "tiny/fold0 has no oof.csv" in refused(cli, root, "tiny/fold0")


def test_runs_of_one_recipe_and_fold_are_also_tried_as_a_soup(root: Path, cli: Cli):
    folders = [write_scored_run(root, run, 0.2, seed) for seed, run in enumerate(("tiny/fold0", "tiny/fold0-seed1"))]
    code, out, err = best(cli, root, "tiny/fold0", "tiny/fold0-seed1")
    assert code == 0, err
    soup = root / "runs/tiny/fold0-soup"
    assert "the mean of the weights of tiny/fold0, tiny/fold0-seed1 becomes tiny/fold0-soup" in err
    assert {line.split()[0] for line in out.splitlines() if line.startswith("tiny")} == {
        "tiny", "tiny-seed1", "tiny-soup",
    }  # fmt: skip
    first, second, mean = (load_file(folder / "best.safetensors") for folder in (*folders, soup))
    for name, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (first[name] + second[name]) / 2, atol=1e-6, rtol=1e-5)
    index = read_index(Paths(root))[1]
    runs = ("tiny/fold0-seed1", "tiny/fold0-soup")
    code, _, err = cli("export", *runs, "--name", "both", "--views", "none", "--root", root)
    assert code == 0, err
    both = read_card(root / "weights/both.pt")
    assert [(member.fold, member.run_name) for member in both.members] == [(0, run) for run in runs]
    assert expected_quality(both, Paths(root), PseudoOptions()).runs == runs
    assert {path.stem for path in (soup / "oof").glob("*.tif")} == set(index.loc[index["fold"] == 0, "tile"])
    assert json.loads((soup / "settings.json").read_text())["soup"].keys() == {"tiny/fold0", "tiny/fold0-seed1"}
    before = (soup / "result.json").stat().st_mtime_ns
    assert best(cli, root, "tiny/fold0", "tiny/fold0-seed1")[0] == 0
    assert (soup / "result.json").stat().st_mtime_ns == before  # kept
    shutil.rmtree(soup)
    soup.mkdir()
    (soup / "mine.txt").write_text("mine")
    code, _, err = best(cli, root, "tiny/fold0", "tiny/fold0-seed1")
    assert code == 1
    assert "was not written by kit best: it holds mine.txt" in err


def test_folds_of_one_recipe_are_no_soup(root: Path, cli: Cli):
    """Their mean has been trained on every tile: nothing is left to score it on."""
    write_recipe_folds(root, "tiny", 0.2, 10)
    assert best(cli, root, "tiny")[0] == 0
    assert not list(root.glob("runs/tiny/*-soup"))


def test_weights_of_an_export(root: Path, cli: Cli):
    write_recipe_folds(root, "tiny", 0.2, 10)
    runs = ("tiny/fold0", "tiny/fold1", "--name", "by_hand", "--views", "none", "--root", root)
    code, _, err = cli("export", *runs, "--weights", "3,1")
    assert code == 0, err
    assert read_card(root / "weights/by_hand.pt").weights == (0.75, 0.25)
    setup = _setup(RunOptions(teacher=root / "weights/by_hand.pt"), "cpu")
    assert setup.teacher_weights == (0.75, 0.25)
    code, _, err = cli("export", *runs, "--weights", "3,1,1")
    assert (code, "3 weights for 2 runs" in err) == (1, True)
    code, _, err = cli("export", *runs, "--weights", "3,-1")
    assert (code, "a run's weight of -1, expected a number above 0" in err) == (1, True)
    assert cli("export", *runs, "--weights", "3,much")[0] == 2


def test_the_time_of_a_network_is_measured_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    from kit.pipeline import prediction_time

    folder = write_scored_run(root, "tiny/fold0", 0.2, 1)
    monkeypatch.setattr(prediction_time, "CHIP_PX", 128)
    recipe, image = load_recipe("tiny", Paths(root)), np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 200
    seconds = prediction_time.seconds_per_view(recipe, folder, [image])
    assert 0 < seconds < 5
    monkeypatch.setattr(prediction_time, "tune", lambda *_: pytest.fail("measured again"))
    assert prediction_time.seconds_per_view(recipe, folder, [image]) == seconds
