"""How masks are best cut: the same as by trying all, on tiles of several runs; and what a run keeps in its card."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from factories import write_run
from rasterio.transform import Affine

from kit.data.index import read_table, write_table
from kit.data.instances import ids_file
from kit.data.masks import Counts, count, pool
from kit.deploy.weights.cleaning import Cleaning, clean
from kit.deploy.weights.load import read_card
from kit.errors import DataError, RunError
from kit.paths import Paths
from kit.pipeline import postprocess
from kit.pipeline.postprocess import HOLE_M2, SMALLEST_M2, choose
from kit.training.oof import best_threshold

Cli = Callable[..., tuple[int, str, str]]
GSD_M = {"fine": 0.5, "coarse": 1.0}


def write_band(path: Path, band: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": band.shape[0], "width": band.shape[1]}
    with rasterio.open(path, "w", **profile) as file:
        file.write(band, 1)


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask of some houses with a column of no data, and a prediction: houses with holes, blurred, and specks."""
    random = np.random.default_rng(seed)
    truth, found = np.zeros((64, 80), np.uint8), random.integers(0, 110, (64, 80))
    for _ in range(6):
        top, left, height, width = random.integers((0, 0, 5, 5), (56, 70, 16, 16))
        truth[top : top + height, left : left + width] = 1
    found[truth == 1] = random.integers(90, 256, int(truth.sum()))
    specks = random.random(truth.shape) < 0.01
    found[specks] = random.integers(100, 256, int(specks.sum()))
    truth[:, :4] = 255
    found[:, :4] = 0
    return truth, found.astype(np.uint8)


def write_tiles(
    root: Path, run: str, tiles: dict[str, tuple[np.ndarray, np.ndarray]], data: str = "coarse", new: bool = True
) -> Path:
    """Writes a finished run with its held-out tiles, (truth, prediction) by name, and their data set."""
    folder, rows = root / "runs" / run, []
    write_run(folder, {"kam/a": (1, 0, 0)}, data=data)
    levels = np.zeros((2, 256), np.int64)
    for tile, (truth, found) in tiles.items():
        write_band(folder / "oof" / f"{tile}.tif", found)
        counts = count(found > 127, truth)
        rows.append((tile, "kam", "a", counts.tp, counts.fp, counts.fn))
        levels += [np.bincount(found[truth == kind], minlength=256) for kind in (0, 1)]
    pd.DataFrame(rows, columns=["tile", "area", "scene", "tp", "fp", "fn"]).to_csv(folder / "oof.csv", index=False)
    pd.DataFrame(levels.T, columns=["background", "building"]).to_csv(folder / "levels.csv", index_label="level")
    if new:
        write_data(root, data, {tile: truth for tile, (truth, _) in tiles.items()})
    return folder


def write_data(root: Path, data: str, masks: dict[str, np.ndarray]) -> None:
    rows = []
    for tile, truth in masks.items():
        write_band(root / "data" / data / "masks" / f"{tile}.tif", truth)
        rows.append(
            {"tile": tile, "area": "kam", "scene": "a", "crs": "", "image": f"{tile}.tif", "mask": f"masks/{tile}.tif",
             "width_px": truth.shape[1], "height_px": truth.shape[0], "gsd_m": GSD_M[data], "tier": 1, "fold": 0,
             "valid_fraction": 1.0, "building_fraction": 0.5, "n_footprints": 1}
        )  # fmt: skip
    pd.DataFrame(rows).to_csv(root / "data" / data / "index.csv", index=False)


def scored(tiles: Sequence[tuple[np.ndarray, np.ndarray, float]], cleaning: Cleaning) -> float:
    """The pooled Jaccard index of (truth, prediction, m per px), cleaned one by one."""
    counts: list[Counts] = []
    for truth, found, gsd_m in tiles:
        probability = np.asarray(found / 255, np.float32)
        sizes = cleaning.smallest_m2 / gsd_m**2, cleaning.holes_m2 / gsd_m**2
        counts.append(count(clean(probability, cleaning.threshold, *sizes) == 1, truth))
    return pool(counts).jaccard


def test_the_choice_is_the_best_of_all(tmp_path: Path):
    """Tiles of two data sets, of other resolutions: sizes are of the ground."""
    drawn = {f"t{seed}": draw(seed) for seed in range(6)}
    folders = [
        write_tiles(tmp_path, "lite0/fold0", {tile: drawn[tile] for tile in ("t0", "t1", "t2")}),
        write_tiles(tmp_path, "lite0/fold1", {tile: drawn[tile] for tile in ("t3", "t4", "t5")}, "fine"),
    ]
    choice = choose(folders, Paths(tmp_path))
    assert choice is not None
    assert (choice.tiles, choice.held_out) == (6, 6)
    tiles = [(*drawn[f"t{seed}"], GSD_M["coarse" if seed < 3 else "fine"]) for seed in range(6)]
    assert choice.best.score_before == pytest.approx(scored(tiles, Cleaning()), abs=1e-6)
    chosen = Cleaning.of(choice.best)
    assert choice.best.score_after == pytest.approx(scored(tiles, chosen), abs=1e-6)
    assert choice.best.score_after > choice.best.score_before + 0.02
    assert chosen.smallest_m2 > 0
    assert chosen.holes_m2 > 0

    levels = np.sum([pd.read_csv(f / "levels.csv")[["background", "building"]].to_numpy().T for f in folders], axis=0)
    thresholds = {0.5, *(round(best_threshold(levels)[0] + step, 2) for step in postprocess.AROUND)}
    pairs = {pair: scored(tiles, Cleaning(*pair)) for pair in product(thresholds, SMALLEST_M2)}
    assert pairs[chosen.threshold, chosen.smallest_m2] == max(pairs.values())
    holes = [scored(tiles, Cleaning(chosen.threshold, chosen.smallest_m2, size)) for size in HOLE_M2]
    assert scored(tiles, chosen) == max(holes)
    gain = f"{choice.best.score_before:.4f} -> {choice.best.score_after:.4f}"
    assert str(choice) == f"{chosen}: {gain} on validation tiles (kit submit --clean)"


def test_a_tile_of_several_runs_is_cut_from_their_mean(tmp_path: Path):
    truth, one = draw(1)
    other = draw(1)[1][::-1] // 3 + one // 2
    other[:, :4] = 0
    folders = [
        write_tiles(tmp_path, "lite0/fold0", {"t": (truth, one)}),
        write_tiles(tmp_path, "dpn92/fold0", {"t": (truth, other)}, new=False),
    ]
    choice = choose(folders, Paths(tmp_path))
    assert choice is not None
    assert choice.held_out == 1
    mean = (one.astype(np.float64) + other) / 2
    assert choice.best.score_before == pytest.approx(scored([(truth, mean, 1.0)], Cleaning()), abs=1e-6)
    assert choice.best.score_before != pytest.approx(scored([(truth, one, 1.0)], Cleaning()), abs=1e-3)


def test_where_nothing_can_be_gained_nothing_is_done(tmp_path: Path):
    truth, _ = draw(2)
    folder = write_tiles(tmp_path, "lite0/fold0", {"t": (truth, np.where(truth == 1, 255, 0).astype(np.uint8))})
    choice = choose([folder], Paths(tmp_path))
    assert choice is not None
    best = choice.best
    assert (best.threshold, best.smallest_m2, best.hole_m2, best.score_before, best.score_after) == (0.5, 0, 0, 1, 1)
    assert str(choice) == "clean-up of masks: no gain on validation tiles"


def test_tiles_without_buildings(tmp_path: Path):
    nothing = np.zeros((64, 64), np.uint8)
    folder = write_tiles(tmp_path, "lite0/fold0", {"t": (nothing, nothing)})
    choice = choose([folder], Paths(tmp_path))
    assert choice is not None
    assert choice.best.score_after == 1


def test_many_tiles_are_looked_at_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = {f"t{seed:02}": draw(seed) for seed in range(10)}
    folder = write_tiles(tmp_path, "lite0/fold0", drawn)
    monkeypatch.setattr(postprocess, "LARGEST_PX", 3 * 64 * 80)
    choice = choose([folder], Paths(tmp_path))
    assert choice is not None
    assert (choice.tiles, choice.held_out) == (3, 10)
    tiles = [(*drawn[name], 1.0) for name in ("t00", "t04", "t08")]
    assert choice.best.score_before == pytest.approx(scored(tiles, Cleaning()), abs=1e-6)
    assert ", on 3 of 10 tiles" in str(choice)


def test_nothing_was_held_out(tmp_path: Path):
    write_run(tmp_path / "runs/lite0/foldall", {})
    assert choose([tmp_path / "runs/lite0/foldall"], Paths(tmp_path)) is None


def test_tiles_that_are_others_now(tmp_path: Path):
    truth, found = draw(3)
    folder = write_tiles(tmp_path, "lite0/fold0", {"t": (truth, found)})
    other = truth.copy()
    other[30, 40] ^= 1
    for masks, message in (
        ({"t": other}, "tile t has another mask now"),
        ({"t": truth[:, :70]}, "tile t has another mask now"),
        ({"s": truth}, "coarse has no tile t"),
    ):
        write_data(tmp_path, "coarse", masks)
        with pytest.raises(RunError, match=f"{message}: it was cut again after the run"):
            choose([folder], Paths(tmp_path))
    write_data(tmp_path, "coarse", {"t": truth})
    (folder / "oof/t.tif").write_bytes(b"no")
    with pytest.raises(RunError, match="tile t cannot be read"):
        choose([folder], Paths(tmp_path))
    (tmp_path / "data/coarse/index.csv").unlink()
    with pytest.raises(DataError, match="no data set"):
        choose([folder], Paths(tmp_path))


def test_a_run_keeps_its_choice_in_the_card(cli: Cli, workplace: Path):
    code, _, err = cli("run", "tiny", "--root", workplace, "--no-pretrained")
    assert code == 0, err
    card = read_card(workplace / "weights/tiny.pt")
    assert card.postprocess is not None
    assert card.postprocess.score_before == pytest.approx(card.score, abs=1e-5)  # all tiles were looked at
    assert card.postprocess.score_after >= card.postprocess.score_before
    assert "on validation tiles (kit submit --clean)" in err or "no gain" in err
    beside = json.loads((workplace / "weights/tiny.json").read_text())
    assert beside["postprocess"]["threshold"] == card.postprocess.threshold
    data = next((workplace / "data").glob("*/index.csv"))
    data.unlink()
    code, _, err = cli("export", "tiny/fold0", "--name", "later", "--root", workplace)
    assert code == 0, err
    assert "the card gets no threshold and cleaning: no data set" in err
    assert json.loads((workplace / "weights/later.json").read_text())["postprocess"] is None


def test_tiles_without_a_ground_resolution(cli: Cli, workplace: Path):
    """A run ends with its export; what needs metres per pixel says so, and a file of facts adds them."""
    file = Paths(workplace).data("train_tier_1") / "index.csv"
    write_table(file, read_table(file).assign(gsd_m=0.0))
    code, _, err = cli("run", "tiny", "--fold", "0", "--no-pretrained", "--root", workplace)
    assert code == 0, err
    assert "the card gets no threshold and cleaning: tiles have no ground resolution" in err
    path = workplace / "weights" / "tiny.pt"
    card = read_card(path)
    assert (card.gsd_m, card.postprocess) == (0.0, None)
    scene = workplace / "scene.tif"
    place = {"crs": "EPSG:32636", "transform": Affine(1, 0, 450_000, 0, -1, 40_000)}
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": 70, "width": 80, **place}
    with rasterio.open(scene, "w", **profile) as image:
        image.write(np.random.default_rng(0).integers(1, 256, (3, 70, 80), dtype=np.uint8))
    code, _, err = cli("map", scene, "--weights", "tiny", "--root", workplace)
    assert code == 1
    assert "the card has no gsd_m, which kit map needs" in err
    assert "kit weights --describe NAME --about FILE" in " ".join(err.split())
    (workplace / "facts.json").write_text('{"gsd_m": 1.0}')
    code, _, err = cli("weights", "--describe", "tiny", "--about", workplace / "facts.json", "--root", workplace)
    assert code == 0, err
    assert read_card(path) == replace(card, gsd_m=1.0)
    assert cli("map", scene, "--weights", "tiny", "--no-tune", "--root", workplace)[0] == 0


def test_predictions_of_a_tile_count_by_weight(tmp_path: Path):
    truth, one = draw(1)
    other = draw(1)[1][::-1] // 3 + one // 2
    other[:, :4] = 0
    folders = [
        write_tiles(tmp_path, "lite0/fold0", {"t": (truth, one)}),
        write_tiles(tmp_path, "dpn92/fold0", {"t": (truth, other)}, new=False),
    ]
    choice = choose(folders, Paths(tmp_path), [0.25, 0.75])
    assert choice is not None
    mean = one.astype(np.float64) * 0.25 + other * 0.75
    assert choice.best.score_before == pytest.approx(scored([(truth, mean, 1.0)], Cleaning()), abs=1e-6)


def terrace() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A row of four houses: mask, ids, prediction, and its inside of 0.6, of 0.3 along the walls."""
    ids = np.zeros((40, 70), np.uint16)
    for house in range(4):
        ids[10:30, 10 + 12 * house : 22 + 12 * house] = house + 1
    found = np.where(ids > 0, 250, 0).astype(np.uint8)
    inside = np.where(ids > 0, 153, 0).astype(np.uint8)
    inside[:, [10 + 12 * house + offset for house in range(5) for offset in (-1, 0)]] = 76
    return (ids > 0).astype(np.uint8), ids, found, inside


@pytest.mark.parametrize("layers", [True, False])
def test_splitting_is_chosen_by_the_buildings(tmp_path: Path, layers: bool):
    truth, ids, found, inside = terrace()
    folder = write_tiles(tmp_path, "lite0/fold0", {"t": (truth, found)})
    write_ids(tmp_path / "data/coarse/masks/t.tif", ids)
    if layers:
        write_band(folder / "inside" / "t.tif", inside)
    choice = choose([folder], Paths(tmp_path))
    assert choice is not None
    if not layers:
        assert choice.splitting is None
        return
    assert choice.splitting is not None
    assert choice.splitting.inside in (0.3, 0.4, 0.5)
    assert (choice.splitting.f1_before, choice.splitting.f1_after) == (0, 1)
    assert str(choice).endswith("F1 of buildings by splitting them: 0.0000 -> 1.0000 (kit map)")


def write_ids(mask_file: Path, ids: np.ndarray) -> None:
    file = ids_file(mask_file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(file, "w", driver="GTiff", count=1, dtype="uint16", height=40, width=70) as target:
        target.write(ids, 1)
