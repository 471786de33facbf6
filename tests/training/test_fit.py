"""A tiny recipe, trained for real through the command line."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from factories import TINY_RECIPE
from safetensors.torch import load_file
from torch import nn

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trained(workplace: Path, cli: Cli) -> Path:
    code, out, err = cli("run", "tiny", "--root", workplace, "--no-pretrained")
    assert code == 0, err
    assert out.splitlines()[-1] == str(workplace / "weights/tiny.pt")
    return workplace


def test_the_run_folder_is_complete(trained: Path):
    folder = trained / "runs/tiny/fold0"
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["epochs"] == 2
    assert settings["steps_per_epoch"] == 3
    assert settings["encoder_weights"] == "random weights"
    log = pd.read_csv(folder / "log.csv")
    assert list(log["epoch"]) == [0, 1]
    assert log["jaccard"].between(0, 1).all()
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert (checkpoint["fit"], checkpoint["epoch"], checkpoint["iteration"]) == (0, 2, 0)
    assert {p.name for p in (folder / "overlays").iterdir()} == {"best.png", "median.png", "worst.png"}
    assert (folder / "curves.png").stat().st_size > 5000
    assert not [p for p in folder.rglob("*") if ".part" in p.name]


def test_out_of_fold_scores_agree_with_the_files(trained: Path):
    index = pd.read_csv(trained / "data/train_tier_1/index.csv")
    result = json.loads((trained / "runs/tiny/fold0/result.json").read_text())
    union = hit = 0
    for row in index[index["fold"] == 0].itertuples():
        with (
            rasterio.open(trained / f"runs/tiny/fold0/oof/{row.tile}.tif") as found,
            rasterio.open(trained / "data/train_tier_1" / row.mask) as mask,
        ):
            assert found.crs == mask.crs
            assert found.transform == mask.transform
            building, truth = found.read(1) > 127, mask.read(1)
        hit += int((building & (truth == 1)).sum())
        union += int(((building | (truth == 1)) & (truth != 255)).sum())
    assert result["score"] == pytest.approx(hit / union, abs=0.01)  # files are rounded to 1/255


def test_the_best_epoch_is_kept(trained: Path):
    folder = trained / "runs/tiny/fold1"
    log = pd.read_csv(folder / "log.csv")
    assert json.loads((folder / "result.json").read_text())["epoch"] == int(log["jaccard"].idxmax())


def test_a_finished_run_is_kept_and_a_changed_one_refused(trained: Path, cli: Cli):
    before = (trained / "runs/tiny/fold0/best.safetensors").read_bytes()
    code, _, err = cli("run", "tiny", "--root", trained, "--no-pretrained")
    assert code == 0
    assert "finished before, kept" in err
    code, _, err = cli("run", "tiny", "--root", trained, "--no-pretrained", "--seed", 1)
    assert code == 1
    assert "seed 0 is now 1" in err
    assert "--restart" in err
    assert (trained / "runs/tiny/fold0/best.safetensors").read_bytes() == before
    code, _, _ = cli("run", "tiny", "--root", trained, "--no-pretrained", "--seed", 1, "--restart", "--fold", 0)
    assert code == 0
    assert (trained / "runs/tiny/fold0/best.safetensors").read_bytes() != before


def test_the_same_seed_gives_the_same_weights(trained: Path, cli: Cli):
    before = load_file(trained / "runs/tiny/fold0/best.safetensors")
    assert cli("run", "tiny", "--root", trained, "--no-pretrained", "--restart", "--fold", 0)[0] == 0
    after = load_file(trained / "runs/tiny/fold0/best.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_interrupted_and_run_again(workplace: Path, cli: Cli):
    """Ctrl-C in the second epoch: a clear word, exit 1, and the same command finishes with the same weights."""
    recipe = workplace / "recipes/tiny.py"
    stop = workplace / "stop"
    recipe.write_text(
        TINY_RECIPE.replace("EMA(0.9)]", "EMA(0.9), Stop()]") + "\n\nclass Stop(fv.Callback):\n"
        "    def before_epoch(self):\n"
        f"        if self.epoch == 1 and fv.Path({str(stop)!r}).exists():\n"
        "            raise KeyboardInterrupt\n"
    )
    command = ("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", "0")
    stop.touch()
    code, out, err = cli(*command)
    assert (code, out) == (1, "")
    assert "error: interrupted" in err
    assert "Traceback" not in err
    folder = workplace / "runs/tiny/fold0"
    assert not (folder / "result.json").exists()
    assert not [p for p in folder.rglob("*") if ".part" in p.name]
    stop.unlink()
    assert cli(*command)[0] == 0
    assert (folder / "result.json").exists()


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_half_precision_where_the_machine_has_it(
    workplace: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, name: str
):
    import kit.training.precision as precision

    seen = set()
    context = precision.Precision.context

    def watched(self, name=""):
        self.model.blocks[0].register_forward_hook(lambda _, __, out: seen.add(out.dtype))
        return context(self, name)

    monkeypatch.setattr(precision, "autocast_dtype", lambda device: dtype)
    monkeypatch.setattr(precision.Precision, "context", watched)
    code, _, err = cli("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", "0")
    assert code == 0, err
    assert seen == {dtype}
    folder = workplace / "runs/tiny/fold0"
    assert json.loads((folder / "settings.json").read_text())["precision"] == f"{name} channels_last"
    assert np.isfinite(pd.read_csv(folder / "log.csv")[["train_loss", "valid_loss"]]).all(axis=None)
    assert all(value.dtype != dtype for value in load_file(folder / "best.safetensors").values())


TWO_FITS = TINY_RECIPE.replace(
    "    learn.fit_one_cycle(2, slice(1e-4, 1e-3))",
    "    learn.freeze()\n    learn.fit_one_cycle(1, 1e-3)\n    learn.unfreeze()\n    learn.fit_one_cycle(2, 1e-3)",
)


def test_two_fits_are_one_run(workplace: Path, cli: Cli):
    (workplace / "recipes/twice.py").write_text(TWO_FITS)
    code, _, err = cli("run", "twice", "--root", workplace, "--no-pretrained", "--fold", "0")
    assert code == 0, err
    folder = workplace / "runs/twice/fold0"
    assert pd.read_csv(folder / "log.csv")["epoch"].tolist() == [0, 1, 2]
    assert json.loads((folder / "settings.json").read_text())["epochs"] == 3


@pytest.mark.parametrize("sampler", ["BalancedSampler(crops_per_tile=0.75), ", ""])
def test_each_epoch_has_crops_of_its_own(workplace: Path, sampler: str, monkeypatch: pytest.MonkeyPatch, cli: Cli):
    from kit.data.dataset import TileDataset

    text = TWO_FITS.replace("BalancedSampler(crops_per_tile=0.75), ", sampler)
    (workplace / "recipes/twice.py").write_text(text)
    epochs = []
    plain = TileDataset.__getitem__

    def watched(self: TileDataset, key: object) -> object:
        epochs.append(self.epoch)
        return plain(self, key)

    monkeypatch.setattr(TileDataset, "__getitem__", watched)
    code, _, err = cli("run", "twice", "--root", workplace, "--no-pretrained", "--fold", "0")
    assert code == 0, err
    assert set(epochs) == {0, 1, 2}


@pytest.mark.slow
def test_a_compiled_network_keeps_its_names(workplace: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    compiled = []

    def compile_eagerly(self: nn.Module) -> None:  # the graph is captured; compiling it takes minutes on a CPU
        compiled.append(self)
        original(self, backend="eager")

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    code, _, err = cli("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", "0", "--compile")
    assert code == 0, err
    assert len(compiled) == 1
    folder = workplace / "runs/tiny/fold0"
    assert json.loads((folder / "settings.json").read_text())["compiled"] is True
    assert set(load_file(folder / "best.safetensors")) == set(compiled[0].state_dict())


DISTILLED = TINY_RECIPE.replace("EMA(0.9)]", "EMA(0.9), Distillation()]").replace(
    "from kit.training.callbacks", "from kit.training.distillation import Distillation\nfrom kit.training.callbacks"
)


@pytest.mark.slow
def test_a_student_learns_from_exported_weights(trained: Path, cli: Cli):
    (trained / "recipes/student.py").write_text(DISTILLED)
    weights = trained / "weights/tiny.pt"
    common = ("--root", trained, "--no-pretrained", "--fold", "0")
    code, _, err = cli("run", "student", *common, "--teacher", weights)
    assert code == 0, err
    assert "teacher tiny.pt: 2 members, views flips" in err
    settings = json.loads((trained / "runs/student/fold0/settings.json").read_text())
    assert settings["teacher_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    code, _, err = cli("run", "student", *common)  # the finished run had a teacher
    assert code == 1
    assert "teacher_sha256" in err


def test_a_student_without_a_teacher_and_a_teacher_without_a_student(trained: Path, cli: Cli):
    (trained / "recipes/student.py").write_text(DISTILLED)
    code, _, err = cli("run", "student", "--root", trained, "--no-pretrained", "--fold", "1")
    assert code == 1
    assert "the recipe needs a teacher" in err
    assert "--teacher weights/NAME.pt" in err
    teacher = ("--teacher", trained / "weights/tiny.pt")
    code, _, err = cli("run", "tiny", "--root", trained, "--no-pretrained", "--restart", "--fold", "1", *teacher)
    assert code == 1
    assert "tiny does not use a teacher" in err


def test_all_trains_without_holding_out(workplace: Path, cli: Cli):
    code, _, err = cli("run", "tiny", "--root", workplace, "--no-pretrained", "--all")
    assert code == 0, err
    assert "no out-of-fold score" in err
    log = pd.read_csv(workplace / "runs/tiny/foldall/log.csv")
    assert len(log) == 2
    assert log["jaccard"].isna().all()
    assert json.loads((workplace / "weights/tiny.json").read_text())["score"] is None


def test_submission_of_the_trained_weights(trained: Path, cli: Cli, tmp_path: Path):
    chips = tmp_path / "chips"
    chips.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 70, 90), dtype=np.uint8)
    for name in ("one", "two"):
        with rasterio.open(
            chips / f"{name}.tif", "w", driver="GTiff", width=90, height=70, count=3, dtype="uint8"
        ) as f:
            f.write(pixels)
    code, out, err = cli("submit", chips, "--root", trained)
    assert code == 0, err
    assert "tiny.pt" in err
    assert out.splitlines()[-1] == str(trained / "submissions/tiny-chips.tgz")
    with rasterio.open(trained / "submissions/tiny-chips/one.tif") as mask:
        assert (mask.width, mask.height, mask.count, mask.dtypes[0]) == (90, 70, 1, "uint8")


def test_a_tile_that_is_lost_while_training_is_told(workplace: Path, cli: Cli):
    for mask in (workplace / "data/train_tier_1/masks").rglob("*.tif"):
        mask.unlink()
    code, _, err = cli("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", "0", "--minutes", "0.1")
    assert code == 1
    assert "cannot be read: " in err
    assert "hint:  cut its scene again" in err


def test_export_of_runs_that_are_not_there(trained: Path, cli: Cli):
    code, _, err = cli("export", "tiny/fold7", "--name", "x", "--root", trained)
    assert code == 1
    assert "tiny/fold7 is not finished" in err
    code, _, err = cli("export", "tiny", "--name", "x", "--root", trained)
    assert code == 1
    assert "names no run" in err


def test_export_after_the_recipe_was_changed(trained: Path, cli: Cli):
    recipe = trained / "recipes/tiny.py"
    recipe.write_text(recipe.read_text().replace("widths=(16, 8, 8)", "widths=(24, 8, 8)"))
    code, _, err = cli("export", "tiny/fold0", "--name", "x", "--root", trained)
    assert code == 1
    assert "has changed since tiny/fold0 was trained" in err
