import os
from pathlib import Path

import pytest
from factories import write_scene
from web import Web

from kit.data.rasters import open_scene
from kit.data.sources.outside import check_inside
from kit.data.sources.source import read_source
from kit.errors import DataError, RasterError


def vrt(file: Path, *sources: str, tag: str = "SourceFilename", relative: int = 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    named = "".join(f'<{tag} relativeToVRT="{relative}">{source}</{tag}>' for source in sources)
    file.write_text(f'<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand band="1"><SimpleSource>{named}'
                    "</SimpleSource></VRTRasterBand></VRTDataset>")  # fmt: skip
    return file


def test_a_vrt_of_its_own_folder_is_accepted(tmp_path: Path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.tif").write_bytes(b"II*\0")
    check_inside(str(vrt(tmp_path / "a.vrt", "x/a.tif", "./b.tif", "x/../c.tif")))
    check_inside(str(vrt(tmp_path / "b.vrt", f"{tmp_path}/x/a.tif", relative=0)))
    check_inside(str(vrt(tmp_path / "c.vrt", "b.vrt")))
    check_inside(str(tmp_path / "x" / "a.tif"))


@pytest.mark.parametrize(
    "source",
    ["../a.tif", "/etc/passwd", "x/../../a.tif", "/vsicurl/http://127.0.0.1/a.tif", "http://127.0.0.1/a.tif",
     "PG:dbname=x", "GTIFF_DIR:1:a.tif", "/vsizip/a.zip/a.tif"],
)  # fmt: skip
@pytest.mark.parametrize("tag", ["SourceFilename", "SourceDataset"])
def test_a_vrt_that_reads_elsewhere_is_refused(tmp_path: Path, source: str, tag: str):
    file = vrt(tmp_path / "in" / "a.tif", source, tag=tag)  # whatever its suffix
    for href in (str(file), file.as_uri(), os.path.relpath(file)):
        with pytest.raises(DataError, match=r"is a VRT that reads .*, outside its folder") as caught:
            check_inside(href)
    assert "--allow-outside" in caught.value.hint


def test_a_vrt_of_a_vrt_that_reads_elsewhere_is_refused(tmp_path: Path):
    vrt(tmp_path / "b.vrt", "/etc/passwd")
    with pytest.raises(DataError, match=r"b\.vrt is a VRT that reads '/etc/passwd'"):
        check_inside(str(vrt(tmp_path / "a.vrt", "b.vrt")))


@pytest.mark.parametrize("text", ["<!DOCTYPE html><html>", "\n<html lang='en'>"])
def test_a_web_page_in_place_of_an_image_is_named(tmp_path: Path, text: str):
    (tmp_path / "a.tif").write_text(text)
    with pytest.raises(DataError, match=r"a\.tif is a web page") as caught:
        check_inside(str(tmp_path / "a.tif"))
    assert caught.value.hint == "fetch the file again"


def test_vrts_in_a_circle_end(tmp_path: Path):
    check_inside(str(vrt(tmp_path / "a.vrt", "a.vrt")))


OTHERS = [
    "<GDAL_WMS><Service><ServerUrl>http://127.0.0.1/</ServerUrl></Service></GDAL_WMS>",
    "\n<?xml version='1.0'?><OGRVRTDataSource><OGRVRTLayer name='a'/></OGRVRTDataSource>",
    '{"type": "gdal_streamed_alg", "command_line": "gdal vector pipeline ! read http://127.0.0.1/a.geojson"}',
    "<VRTDataset><",
]


@pytest.mark.parametrize("text", OTHERS)
def test_other_files_that_name_sources_are_refused(tmp_path: Path, text: str):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(DataError, match=r"that names other sources|is a broken VRT"):
        check_inside(str(tmp_path / "a.geojson"))


def test_scenes_and_labels_are_checked_unless_allowed(tmp_path: Path):
    vrt(tmp_path / "a.tif", "/etc/passwd")
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(DataError, match=r"a\.tif is a VRT that reads '/etc/passwd'"):
        read_source(tmp_path)
    assert len(read_source(tmp_path, allow_outside=True).scenes) == 1


def test_vrts_at_addresses(web: Web):
    """Whatever they are called: one may name files of this machine."""
    write_scene(web.folder / "here.tif")
    vrt(web.folder / "a.tif", str(web.folder / "here.tif"), relative=0)
    check_inside(f"{web.url}/here.tif")
    with pytest.raises(DataError, match=r"is a VRT, which may read any file of this machine"):
        check_inside(f"{web.url}/a.vrt?key=1")
    with pytest.raises(RasterError, match=r"cannot read .*a\.tif"):
        open_scene(f"{web.url}/a.tif")
    open_scene(f"{web.url}/here.tif").close()
