"""Nothing is overwritten or removed that kit did not write: names, places, and what each command refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from factories import write_catalog
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import OutputError
from kit.outputs import as_name, check_apart, check_name, check_unclaimed, spreadsheet_safe

Cli = Callable[..., tuple[int, str, str]]
PLAIN = ("kampala", "znz_1", "v1.2-b", "Ñandú", "北京", "काठमाण्डू", "9")
ODD = (
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/tmp/x",
    "a\nb",
    "a b",
    "a\\b",
    "-x",
    ".x",
    "a\0b",
    "a\u2028b",
    "x" * 201,
    "\ud800",
)


def content(folder: Path) -> dict[str, bytes]:
    """Returns the files below a folder, locks aside."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("name", PLAIN)
def test_names_of_any_script(name: str):
    assert check_name(name) == name == as_name(name)


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_refused(name: str):
    with pytest.raises(OutputError):
        check_name(name)


@given(st.text())
def test_a_default_name_is_always_accepted(text: str):
    check_name(as_name(text, "data"))


def test_apart(tmp_path: Path):
    chips, other = tmp_path / "chips", tmp_path / "other"
    chips.mkdir()
    check_apart(other, [chips], "--name")
    for target, source, told in (
        (chips, chips, "would replace"),
        (tmp_path, chips / "a.tif", "would replace"),
        (chips / "out", chips, "lies inside"),
    ):
        with pytest.raises(OutputError, match=told):
            check_apart(target, [source], "--name")
    (tmp_path / "linked").symlink_to(chips)
    with pytest.raises(OutputError, match="would replace"):
        check_apart(tmp_path / "linked", [chips / "a.tif"], "--name")


def test_unclaimed(tmp_path: Path):
    check_unclaimed(tmp_path / "none", "kit prepare", "--name")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / ".x.part").touch()
    check_unclaimed(tmp_path / "a", "kit prepare", "--name")
    (tmp_path / "a" / "b" / "mine.txt").touch()
    with pytest.raises(OutputError, match=r"it holds b/mine\.txt"):
        check_unclaimed(tmp_path / "a", "kit prepare", "--name")
    with pytest.raises(OutputError, match="is a file"):
        check_unclaimed(tmp_path / "a" / "b" / "mine.txt", "kit prepare", "--name")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="a dangling link"):
        check_unclaimed(tmp_path / "dangling", "kit prepare", "--name")


def pictures(folder: Path) -> None:
    """Two pictures with masks, as annotation tools write them."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for stem in "ab":
        cv2.imwrite(str(folder / "images" / f"{stem}.png"), np.full((64, 64, 3), 90, np.uint8))
        mask = np.zeros((64, 64), np.uint8)
        mask[8:40, 8:40] = 1
        cv2.imwrite(str(folder / "masks" / f"{stem}.png"), mask)


def refused(cli: Cli, root: Path, *arguments: object) -> str:
    """Returns the message of a command that must change nothing below the root."""
    before = content(root)
    code, out, err = cli(*arguments, "--root", root)
    assert (code, out) == (1, ""), err
    assert "a fault of kit" not in err
    assert content(root) == before
    return err


@pytest.mark.parametrize("way", ["folder", "table", "elsewhere"])
def test_prepare_keeps_the_pictures_that_it_reads(tmp_path: Path, cli: Cli, way: str):
    city = tmp_path / "data" / "city"
    pictures(city)
    source = city
    if way == "table":
        source = tmp_path / "city.csv"
        source.write_text("image,mask\ndata/city/images/a.png,data/city/masks/a.png\n")
    elif way == "elsewhere":  # a folder of that name is somebody's, though nothing of it is read
        pictures(source := tmp_path / "far" / "city")
    told = refused(cli, tmp_path, "prepare", source, "--side", 64, "--gsd", 0.1)
    assert ("was not written by kit prepare" if way == "elsewhere" else "would replace the input") in told
    assert "--name" in told


def test_prepare_through_a_link(tmp_path: Path, cli: Cli):
    pictures(tmp_path / "mine")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "city").symlink_to(tmp_path / "mine")
    refused(cli, tmp_path, "prepare", tmp_path / "mine", "--name", "city", "--side", 64, "--gsd", 0.1)


def test_prepare_into_its_source(tmp_path: Path, cli: Cli):
    pictures(tmp_path)
    assert "lies inside the input" in refused(cli, tmp_path, "prepare", tmp_path, "--side", 64, "--gsd", 0.1)


def test_prepare_keeps_files_beside_its_tiles(tmp_path: Path, cli: Cli):
    catalog = write_catalog(tmp_path / "train_tier_1", {"kam": {"a": {"seed": 1}}})
    arguments = ("prepare", catalog, "--grid", "native", "--side", 64, "--root", tmp_path)
    assert cli(*arguments)[0] == 0
    notes = tmp_path / "data" / "train_tier_1" / "notes.txt"
    notes.write_text("mine")
    write_catalog(tmp_path / "train_tier_1", {"kam": {"a": {"seed": 2}, "b": {"seed": 3}}})
    theirs = tmp_path / "data" / "train_tier_1" / "images" / "kam" / "b"  # where the new scene's tiles belong
    theirs.mkdir()
    (theirs / "mine.tif").write_text("mine")
    code, _, err = cli(*arguments)
    assert code == 1
    assert "was not written by kit prepare: it holds mine.tif" in err
    assert (theirs / "mine.tif").read_text() == notes.read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", ".", "a\nb", "/tmp/kit-x"])
def test_names_are_checked_by_every_command(tmp_path: Path, workplace: Path, cli: Cli, name: str):
    catalog = tmp_path / "train_tier_1"
    for arguments in (
        ("prepare", catalog, "--name", name), ("folds", name), ("run", "tiny", "--data", name),
        ("export", "tiny/fold0", "--name", name), ("export", f"tiny/fold{name}", "--name", "x"),
    ):  # fmt: skip
        refused(cli, workplace, *arguments)


def test_run_keeps_a_folder_that_is_not_a_run(workplace: Path, cli: Cli):
    (folder := workplace / "runs" / "tiny" / "fold0").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    for more in ((), ("--restart",)):
        code, _, err = cli("run", "tiny", "--fold", 0, "--no-pretrained", "--no-export", "--root", workplace, *more)
        assert code == 1
        assert "was not written by kit run" in err
        assert (folder / "notes.txt").read_text() == "mine"


def test_map_keeps_what_it_did_not_write(tmp_path: Path):
    from kit.deploy.mapping.map_files import MapFiles

    files = MapFiles(tmp_path / "city")
    files.check("https://maps.example/city.tif")
    with pytest.raises(OutputError, match="would replace the input"):
        files.check(str(tmp_path / "city_mask.tif"))
    for target in (*(files[kind] for kind in files), tmp_path / "city.json"):
        target.write_text('{"mine": true}')
        with pytest.raises(OutputError, match=f"{target.name} exists, and kit map did not write it"):
            files.check("https://maps.example/city.tif")
        target.unlink()
    (tmp_path / "city.json").write_text(json.dumps({"files": ["city_mask.tif"]}))
    (tmp_path / "city_mask.tif").touch()
    files.check("https://maps.example/city.tif")
    (tmp_path / "city.gpkg").touch()
    with pytest.raises(OutputError, match=r"city\.gpkg exists"):
        files.check("https://maps.example/city.tif")


def test_cells_of_tables_for_people_are_no_formulas():
    assert [spreadsheet_safe(cell) for cell in ("=1+1", "+1", "-a", "@b", "\tx", "a=b", "", -1, None)] == [
        "'=1+1", "'+1", "'-a", "'@b", "'\tx", "a=b", "", -1, None,
    ]  # fmt: skip
