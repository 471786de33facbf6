import json
import os
from pathlib import Path

import pytest

from kit.data.sources.chips import find_chips
from kit.errors import CatalogError


def write(folder: Path, *names: str) -> Path:
    """Writes files that are chips by their names alone."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write_items(folder: Path, *ids: str, href: str = "a.tif") -> Path:
    """Writes a catalogue of items that share an image."""
    write(folder, "a.tif")
    for number, identity in enumerate(ids):
        item = {"type": "Feature", "id": identity, "links": [], "assets": {"image": {"href": href}}}
        (folder / f"{number}.json").write_text(json.dumps(item))
    links = [{"rel": "item", "href": f"{number}.json"} for number in range(len(ids))]
    (folder / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "test", "links": links}))
    return folder


def test_chips_of_every_format_in_folders(tmp_path: Path):
    root = write(
        tmp_path, "north/a.png", "south/b.jpg", "south/deep/c.JPEG", "d.webp", "e.tiff", "東.tif", "x,y.tif",
        "notes.txt", ".hidden.tif", ".cache/f.tif", "__MACOSX/g.tif", "d.vrt",
    )  # fmt: skip
    chips = [(chip.id, chip.path.relative_to(root).as_posix()) for chip in find_chips(root)]
    assert chips == [
        ("a", "north/a.png"), ("b", "south/b.jpg"), ("c", "south/deep/c.JPEG"), ("d", "d.webp"), ("e", "e.tiff"),
        ("x,y", "x,y.tif"), ("東", "東.tif"),
    ]  # fmt: skip


@pytest.mark.parametrize("names", [("north/a.png", "south/a.png"), ("a.png", "a.tif")])
def test_chips_whose_masks_would_be_one_file(tmp_path: Path, names: tuple[str, str]):
    with pytest.raises(CatalogError, match=r"1 chip ids in .* occur twice, first a: .* and .*a\.") as caught:
        find_chips(write(tmp_path, *names))
    assert all(name in caught.value.message for name in names)


ODD = ["a\nb", "a\u2028b", "a\0b", "a\ud800", "\x1b[31ma", "a" * 201, "東" * 67, ".a", "../a", "a/b", ""]


@pytest.mark.parametrize("identity", ODD, ids=ascii)
def test_ids_that_cannot_name_a_mask(tmp_path: Path, identity: str):
    with pytest.raises(CatalogError) as caught:
        find_chips(write_items(tmp_path, "good", identity))
    message = caught.value.message
    if identity == "a\ud800":  # JSON's reader refuses it first
        assert "Invalid JSON: unexpected end of hex escape" in message
    else:
        assert f"1 of 2 chip names in {tmp_path} cannot name a mask, first" in message
    assert message.isprintable()


@pytest.mark.parametrize("name", ["a\nb.tif", "a\u2028b.tif", "\x1b[31ma.tif", "a" * 201 + ".tif", "東" * 67 + ".tif"])
def test_names_of_files_that_cannot_name_a_mask(tmp_path: Path, name: str):
    with pytest.raises(CatalogError, match=r"1 of 2 chip names in .* cannot name a mask") as caught:
        find_chips(write(tmp_path, "good.tif", name))
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", [b"\xff.tif", b"\xff/a.tif"])
def test_names_that_are_no_text(tmp_path: Path, name: bytes):
    file = tmp_path / os.fsdecode(name)
    write(file.parent, file.name)
    with pytest.raises(CatalogError, match="cannot name a mask") as caught:
        find_chips(tmp_path)
    caught.value.message.encode()


def test_chips_that_are_no_files(tmp_path: Path):
    write(tmp_path, "a.tif")
    os.mkfifo(tmp_path / "b.tif")
    (tmp_path / "c.tif").symlink_to("gone.tif")
    with pytest.raises(CatalogError, match=r"2 of 3 chips in .* are not regular files, first .*b\.tif"):
        find_chips(tmp_path)


@pytest.mark.parametrize("name", ["chips.zip", "test.tgz", "a.tif"])
def test_an_archive_or_an_image_is_no_test_set(tmp_path: Path, name: str):
    with pytest.raises(CatalogError, match=rf"{name} is not a catalogue or folder") as caught:
        find_chips(write(tmp_path, name) / name)
    assert "unpack" in caught.value.hint


def test_chips_on_the_web_are_refused(tmp_path: Path):
    with pytest.raises(CatalogError, match=r"chip 'x' lies at https://far\.away/a\.tif") as caught:
        find_chips(write_items(tmp_path, "x", href="https://far.away/a.tif"))
    assert "download" in caught.value.hint
