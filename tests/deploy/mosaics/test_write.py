"""`kit mosaic`: a table, a picture of each mosaic, JSON; and chips read with what lies around them."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from deploy_fakes import noise, write_tiff
from mosaic_fakes import Cut, cut, draw_mosaic

from kit.data.rasters import read_image
from kit.data.sources.chips import find_chips
from kit.deploy.mosaics import pictures
from kit.deploy.mosaics.find import find_mosaics
from kit.deploy.mosaics.mosaic import CHIP_COLUMNS, Mosaic, read_table
from kit.deploy.mosaics.pictures import EMPTY
from kit.deploy.mosaics.pictures import draw_mosaic as draw_picture
from kit.deploy.mosaics.wide import CACHE_BYTES, ChipCache, read_wide
from kit.deploy.mosaics.write import write_mosaics
from kit.errors import DataError, OutputError

SIDE_PX = 128
PAGE = Path(__file__).parents[3] / "docs" / "mosaics.md"


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cut, np.ndarray]:
    """A mosaic of 3 x 4 chips that lacks one, and a chip alone."""
    folder = tmp_path_factory.mktemp("city") / "chips"
    image = draw_mosaic("kum", 0.075, 3, 4, SIDE_PX, 5)
    chips = cut(folder, {"a": image}, SIDE_PX, 95)
    (gone,) = [chip for chip, place in chips.places.items() if place == ("a", 1, 2)]
    (folder / f"{gone}.tif").unlink()
    write_tiff(folder / "lone.tif", noise(SIDE_PX, SIDE_PX, 3))
    return folder, Cut({c: p for c, p in chips.places.items() if c != gone}, chips.images), image


@pytest.fixture(scope="module")
def mosaic(city: tuple[Path, Cut, np.ndarray]) -> Mosaic:
    return find_mosaics(find_chips(city[0]), 1)[0]


def test_the_command_writes_a_table_and_pictures(city, tmp_path: Path, cli):
    folder, chips, _ = city
    code, out, _ = cli("mosaic", folder, "--root", tmp_path, "--workers", 1)
    assert code == 0
    made = tmp_path / "mosaics" / "chips"
    lines = out.splitlines()
    assert lines[-1] == str(made)
    assert lines[0].split("  ")[0] == "mosaic"
    assert lines[1].split() == ["m000", "11", "3", "x", "4", "13", lines[1].split()[-1]]
    assert lines[2].split() == ["alone", "1", "1", "x", "1", "0"]
    assert sorted(path.name for path in made.iterdir()) == ["m000.png", "mosaics.csv"]
    rows = {row.chip: row for row in read_table(made / "mosaics.csv")}
    assert set(rows) == {*chips.places, "lone"}
    for chip, (_, row, col) in chips.places.items():
        written = rows[chip]
        assert (written.mosaic, written.row, written.col) == ("m000", row, col)
        assert (written.top_px, written.left_px) == (row * SIDE_PX, col * SIDE_PX)
        assert 0.9 < written.confidence <= 1
    assert (rows["lone"].mosaic, rows["lone"].joins) == ("m001", 0)
    with (made / "mosaics.csv").open() as file:
        assert tuple(next(csv.reader(file))) == CHIP_COLUMNS


def test_the_same_again_is_the_same_and_json_tells_it(city, tmp_path: Path, cli):
    first = cli("mosaic", city[0], "--out", tmp_path / "m", "--json")[1]
    table = (tmp_path / "m" / "mosaics.csv").read_bytes()
    again = cli("mosaic", city[0], "--out", tmp_path / "m", "--json")[1]
    assert first == again
    assert (tmp_path / "m" / "mosaics.csv").read_bytes() == table
    mosaics = json.loads(again)
    assert [(mosaic["mosaic"], len(mosaic["chips"]), len(mosaic["joins"])) for mosaic in mosaics] == [
        ("m000", 11, 13),
        ("m001", 1, 0),
    ]


def test_the_page_tells_the_columns_and_its_program_runs(city, monkeypatch):
    page = PAGE.read_text()
    assert tuple(re.findall(r"^\| `(\w+)` \|", page, re.M)) == CHIP_COLUMNS
    (program,) = re.findall(r"```python\n(.+?)```", page, re.S)
    monkeypatch.chdir(city[0])
    names: dict[str, np.ndarray] = {}
    exec(program.replace('Path("test")', 'Path(".")'), names)
    assert names["wide"].shape == (SIDE_PX + 512, SIDE_PX + 512, 4)
    assert f"{CACHE_BYTES // 10**6} MB" in page


def test_a_catalogue_names_the_folder(city, tmp_path: Path, cli):
    code, _, err = cli("mosaic", tmp_path / "none" / "catalog.json", "--root", tmp_path)
    assert code == 1
    assert "no test set" in err


def test_what_is_another_s_is_left_alone(city, tmp_path: Path):
    (folder := tmp_path / "m").mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"was not written by kit mosaic: it holds notes\.txt"):
        write_mosaics(city[0], folder, 1)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_files_beside_the_table_stay(city, tmp_path: Path):
    folder = tmp_path / "m"
    write_mosaics(city[0], folder, 1)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "m000.png" in first
    (folder / "notes.txt").write_text("mine")
    (folder / "m001.png").write_text("mine")  # m001 is one chip: kit draws no picture of it
    write_mosaics(city[0], folder, 1)
    again = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert again == first | {"notes.txt": b"mine", "m001.png": b"mine"}
    (folder / "mosaics.csv").write_text(",".join(CHIP_COLUMNS) + "\n" + "a,../x,0,0,1,1,0,0,0,1,v\n" * 2)
    (tmp_path / "x.png").write_text("mine")
    with pytest.raises(OutputError, match="cannot name a file"):
        write_mosaics(city[0], folder, 1)
    assert (tmp_path / "x.png").read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path: Path, cli):
    write_tiff(tmp_path / "chips" / "a.tif", noise(64, 64))
    (tmp_path / "chips" / "b.tif").write_bytes(b"none")
    code, out, err = cli("mosaic", tmp_path / "chips", "--root", tmp_path, "--workers", 1)
    assert (code, out) == (1, "")
    assert "b.tif" in err
    assert not (tmp_path / "mosaics" / "chips").exists()


def test_a_table_that_is_none(tmp_path: Path):
    with pytest.raises(DataError, match="no table"):
        read_table(tmp_path / "mosaics.csv")
    (tmp_path / "mosaics.csv").write_text("chip,place\n")
    with pytest.raises(DataError, match="has the columns"):
        read_table(tmp_path / "mosaics.csv")
    for broken in (b"a,m000,x,0,1,1,0,0,0,1,v", b"a,m000,0", b"\xff", b"a,m000,0,0,1,1,0,0,0,1,v,2"):
        (tmp_path / "mosaics.csv").write_bytes(",".join(CHIP_COLUMNS).encode() + b"\n" + broken)
        with pytest.raises(DataError, match="is not a table of kit mosaic"):
            read_table(tmp_path / "mosaics.csv")


def test_pictures_show_the_mosaic(city, mosaic: Mosaic, monkeypatch):
    _, _, image = city
    monkeypatch.setattr(pictures, "MOST_PX", 256)
    picture = draw_picture(mosaic)
    assert picture.shape == (192, 256, 3)
    small = cv2.resize(image, (256, 192), interpolation=cv2.INTER_AREA)
    seen = small[..., 3] == 255
    seen[64:128, 128:192] = False
    for at in range(0, 256, 64):  # but for the grid
        seen[[at % 192, (at + 63) % 192]] = seen[:, [at, at + 63]] = False
    assert np.abs(picture.astype(int) - small[..., :3])[seen].mean() < 3
    assert (picture[68:124, 132:188] == EMPTY).all()
    assert (picture[0, 5] == pictures.GRID).all()


@pytest.mark.parametrize("margin_px", [0, 20, 128, 200])
def test_a_chip_is_read_with_what_lies_around_it(city, mosaic: Mosaic, margin_px: int):
    folder, chips, _ = city
    whole = np.zeros((3 * SIDE_PX + 400, 4 * SIDE_PX + 400, 4), np.uint8)
    for chip, (_, row, col) in chips.places.items():
        top, left = 200 + row * SIDE_PX, 200 + col * SIDE_PX
        whole[top : top + SIDE_PX, left : left + SIDE_PX] = read_image(folder / f"{chip}.tif")
    for chip, (_, row, col) in chips.places.items():
        top, left = (200 - margin_px + at * SIDE_PX for at in (row, col))
        size = SIDE_PX + 2 * margin_px
        np.testing.assert_array_equal(
            read_wide(mosaic, chip, margin_px), whole[top : top + size, left : left + size], err_msg=chip
        )


def test_an_rgb_chip_alone_has_no_surroundings(city):
    lone = find_mosaics(find_chips(city[0]), 1)[1]
    wide = read_wide(lone, "lone", 10)
    assert (wide[10:-10, 10:-10, 3] == 255).all()
    assert wide[..., 3].sum() == 255 * SIDE_PX**2
    with pytest.raises(KeyError):
        read_wide(lone, "other", 10)


def test_the_cache_is_bounded_and_saves_reads(city, mosaic: Mosaic, monkeypatch):
    reads = []
    monkeypatch.setattr("kit.deploy.mosaics.wide.read_image", lambda path: reads.append(path.stem) or read_image(path))
    chip_bytes = SIDE_PX * SIDE_PX * 4
    roomy, tight = ChipCache(12 * chip_bytes), ChipCache(chip_bytes)
    for placed in mosaic.placed:
        read_wide(mosaic, placed.chip.id, 16, roomy)
    assert sorted(reads) == sorted(placed.chip.id for placed in mosaic.placed)
    reads.clear()
    for placed in mosaic.placed:
        read_wide(mosaic, placed.chip.id, 16, tight)
        assert tight.held_bytes <= chip_bytes
    assert len(reads) > len(mosaic.placed)
