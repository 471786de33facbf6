import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kit.data.index import read_index, read_table, refold, write_table
from kit.data.tiles.cutting import Style
from kit.data.tiles.options import PrepareOptions
from kit.data.tiles.prepare import prepare
from kit.errors import DataError
from kit.paths import Paths

ROW = {
    "tile": "kam_a_r0_c0", "area": "NA", "scene": "007", "tier": "1", "fold": "-1", "image": "images/NA/007/r0_c0.tif",
    "mask": "masks/NA/007/r0_c0.tif", "width_px": "64", "height_px": "64", "gsd_m": "0.1", "valid_fraction": "1.0",
    "building_fraction": "0.25", "n_footprints": "3", "crs": "EPSG:3857", "left": "0.0", "bottom": "-1e3",
    "right": "6.4", "top": "6.4",
}  # fmt: skip
OTHER = {"tile": "kam_a_r0_c1", "image": "b.tif", "crs": "", "left": "", "bottom": "", "right": "", "top": ""}


def write(file: Path, *rows: dict[str, str]) -> Path:
    with file.open("w", newline="") as target:
        table = csv.DictWriter(target, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return file


def test_types_and_names_that_look_like_other_things(tmp_path: Path):
    index = read_table(write(tmp_path / "index.csv", ROW | {"note": "NA"}, ROW | OTHER | {"note": ""}))
    assert (index["area"][0], index["scene"][0], index["fold"][0], index["note"][0]) == ("NA", "007", -1, "NA")
    assert [str(index[name].dtype) for name in ("tier", "gsd_m", "left")] == ["int64", "float64", "float64"]
    assert np.isnan(index["left"][1])
    assert index["crs"][1] == ""


def test_a_data_set_reads_as_it_was_written(workplace: Path):
    file = Paths(workplace).data("train_tier_1") / "index.csv"
    index = read_table(file)
    written = pd.read_csv(file)
    assert list(index.columns) == list(written.columns)
    pd.testing.assert_frame_equal(index, written, check_dtype=False)
    old = index.drop(columns=["crs", "left", "bottom", "right", "top"])
    write_table(file, old)
    assert list(read_table(file).columns) == list(old.columns)


WRONG = [
    ({"tile": ""}, "line 3, column tile: String should match pattern"),
    ({"tile": "a\x1b[31m"}, "line 3, column tile: "),
    ({"tier": "0"}, "line 3, column tier: Input should be greater than or equal to 1, not '0'"),
    ({"fold": "1.0"}, "line 3, column fold: expected a whole number, not '1.0'"),
    ({"fold": "-2"}, "line 3, column fold: Input should be greater"),
    ({"fold": ""}, "line 3, column fold: expected a whole number, not ''"),
    ({"fold": "9" * 30}, "line 3, column fold: expected a whole number"),
    ({"image": "/etc/passwd"}, "line 3, column image: expected a path inside the data set, not '/etc/passwd'"),
    ({"mask": "masks/../../x.tif"}, "line 3, column mask: expected a path inside the data set"),
    ({"image": ""}, "line 3, column image: "),
    ({"width_px": "-64"}, "line 3, column width_px: Input should be greater than or equal to 1, not '-64'"),
    ({"height_px": "6 4"}, "line 3, column height_px: expected a whole number"),
    ({"gsd_m": "nan"}, "line 3, column gsd_m: Input should be"),
    ({"gsd_m": "-0.1"}, "line 3, column gsd_m: Input should be"),
    ({"valid_fraction": "1.01"}, "line 3, column valid_fraction: Input should be less than or equal to 1"),
    ({"building_fraction": "0,2"}, "line 3, column building_fraction: Input should be a valid number"),
    ({"n_footprints": "-1"}, "line 3, column n_footprints: "),
    ({"left": "inf"}, "line 3, column left: "),
    ({"left": ""}, "line 3: expected all of left, bottom, right and top, or none"),
    ({"left": "7"}, "line 3: expected left < right and bottom < top"),
    ({"tile": ROW["tile"]}, "two rows have the tile kam_a_r0_c0"),
    ({"image": ROW["image"]}, "two rows have the image images/NA/007/r0_c0.tif"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_impossible_values_are_named(tmp_path: Path, change: dict[str, str], message: str):
    second = ROW | {"tile": "kam_a_r0_c1", "image": "images/b.tif"}
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path / "index.csv", ROW, second | change))
    assert message in caught.value.message
    assert "kit prepare" in caught.value.hint
    assert caught.value.message.isprintable()


BROKEN: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda text: b"", "lacks the columns tile, area"),
    (lambda text: text.splitlines()[0], "has no rows"),
    (lambda text: text.replace(b"tile,", b"", 1), "lacks the columns tile"),
    (lambda text: text.replace(b",crs,", b",tile,", 1), "has two columns of one name"),
    (lambda text: text + b"\xff", "is not a CSV: 'utf-8'"),
    (lambda text: text + b'"a', "is not a CSV: unexpected end of data"),
    (lambda text: text + b"a,b\n", "line 3, column scene: "),
    (lambda text: text.rstrip() + b",1\n", "line 2 has more values than the 18 columns"),
    (lambda text: text.replace(b"64,64", b"64\x0064"), "line 2, column width_px"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN, ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_broken_files_are_one_error(tmp_path: Path, spoil: Callable[[bytes], bytes], message: str):
    file = write(tmp_path / "index.csv", ROW)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DataError) as caught:
        read_table(file)
    assert message in caught.value.message


def test_no_damaged_byte_is_a_fault_of_kit(tmp_path: Path):
    file = write(tmp_path / "index.csv", *(ROW | {"tile": f"t{n}", "image": f"{n}.tif"} for n in range(9)))
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        content[random.integers(len(whole))] = random.integers(256)
        file.write_bytes(content)
        try:
            read_table(file)
        except DataError:
            refused += 1
    assert refused > 60


def test_prepare_writes_a_damaged_index_again(tmp_path: Path, catalog: Path):
    paths = Paths(tmp_path)
    options = PrepareOptions(by="scene", style=Style(grid="native", side_px=64))
    prepare(catalog, paths, options)
    file = paths.data("train_tier_1") / "index.csv"
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(DataError, match=r"index\.csv line \d+"):
        read_index(paths)
    with pytest.raises(DataError, match=r"index\.csv line \d+"):
        refold(paths, "train_tier_1", "scene", 2)
    assert prepare(catalog, paths, options).kept == 3
    assert file.read_bytes() == whole
    assert file.with_name("index.old.csv").read_bytes() == whole[:-40]


def test_a_changed_index_is_noticed_although_its_values_are_possible(workplace: Path, cli: Callable[..., tuple]):
    paths = Paths(workplace)
    file = paths.data("train_tier_1") / "index.csv"
    whole = file.read_bytes()
    refold(paths, "train_tier_1", "scene", 2)  # has a checksum of its own
    assert read_index(paths)[1]["fold"].nunique() == 2
    digit = file.read_bytes().rindex(b".") + 1
    changed = bytearray(file.read_bytes())
    changed[digit] = ord("1") if changed[digit] != ord("1") else ord("2")
    file.write_bytes(changed)
    for command in (("folds", "train_tier_1", "-k", 2), ("run", "quickstart", "--fold", 0)):
        code, _, err = cli(*command, "--root", workplace)
        assert code == 1
        assert "was changed since kit wrote it" in " ".join(err.split())
        assert "index.sha256" in err
    assert file.read_bytes() == changed
    file.with_suffix(".sha256").unlink()  # the remedy for a change on purpose; older data sets have none
    assert len(read_index(paths)[1])
    file.write_bytes(whole)
    assert len(read_index(paths)[1])
