"""`kit prepare` from addresses: the whole way, against a web server on this machine."""

import shutil
from pathlib import Path

import pytest
from factories import prepare
from web import Web

from kit.errors import CutError
from kit.paths import Paths


def content(folder: Path) -> dict[str, bytes]:
    """Returns what a data set holds but for the records of its inputs."""
    files = (file for file in folder.rglob("*") if file.is_file() and "scenes" not in file.parts)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("address", ["{url}/city/catalog.json", "s3://city/catalog.json"])
def test_a_catalogue_from_afar_is_cut_as_one_on_disk(web: Web, catalog: Path, tmp_path: Path, address: str):
    shutil.copytree(catalog, web.folder / "city")
    place, style = address.format(url=web.url), {"grid": "native", "side_px": 32, "layers": True}
    prepare(catalog, Paths(tmp_path / "disk"), "city", **style)
    made = prepare(place, Paths(tmp_path / "afar"), "city", **style)
    assert made.kept == 0
    assert content(tmp_path / "disk/data/city") == content(tmp_path / "afar/data/city")
    assert prepare(place, Paths(tmp_path / "afar"), "city", **style).kept == 3
    image = web.folder / "city/kam/b/b.tif"
    image.write_bytes(image.read_bytes() + b"\0")
    assert prepare(place, Paths(tmp_path / "afar"), "city", **style).kept == 2


def test_a_scene_that_a_server_refuses_stops_no_other(web: Web, catalog: Path, tmp_path: Path):
    shutil.copytree(catalog, web.folder / "city")
    web.order(refuse={"/b.tif": 403})
    with pytest.raises(CutError, match=r"1 of 3 scenes could not be cut, first kam/b: .*b\.tif") as caught:
        prepare(f"{web.url}/city/catalog.json", Paths(tmp_path), "city", grid="native", side_px=32)
    assert {record.name for record in caught.value.prepared.scenes} == {"kam/a", "kam/b", "znz/c"}
    web.order()
    assert prepare(f"{web.url}/city/catalog.json", Paths(tmp_path), "city", grid="native", side_px=32).kept == 2
