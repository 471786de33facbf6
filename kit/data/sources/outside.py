"""Files that name other files: a scene or a label file that would make kit read elsewhere is refused.

GDAL opens files by their content, whatever their suffix. A VRT (its `SourceFilename`), a GDALG pipeline or a WMS
description may name any file of this machine and any address.
"""

import re
from os.path import normpath
from pathlib import Path
from xml.etree import ElementTree as ET

from kit.data.sources.remote import is_remote, local_path, suffix_of
from kit.errors import DataError
from kit.system.files import read_limited

HEAD_BYTES = 1 << 16
DEEPEST = 20  # VRTs of VRTs
IMAGE_VRT = b"<VRTDataset"
# as in /vsicurl/..., http://..., PG:..., GTIFF_DIR:1:...: a name that is no path
NO_PATH = re.compile(r"/vsi|[A-Za-z][A-Za-z0-9_+.-]+:")
HINT = "copy its pixels: gdal_translate or ogr2ogr; or trust it with --allow-outside"


def check_inside(href: str, depth: int = 0) -> None:
    """Checks that an image or label file names no file outside its own folder.

    Of what lies at an address only the suffix is looked at: `kit.data.rasters.open_scene` opens no VRT of another name.

    Raises:
        DataError: it does, it is a VRT at an address, or a text file of another kind that names sources (WMS, OGR VRT,
            GDALG).
    """
    if is_remote(href):
        if suffix_of(href) == ".vrt":
            raise DataError(f"{href} is a VRT, which may read any file of this machine", HINT)
        return
    path = local_path(href)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    if IMAGE_VRT in head[:1024]:
        for source in _sources(path):
            inside = not NO_PATH.match(source) and normpath(source).startswith(normpath(path.parent.absolute()) + "/")
            if not inside:
                raise DataError(f"{href} is a VRT that reads {source!a:.200}, outside its folder", HINT)
            if depth < DEEPEST and Path(source).is_file():
                check_inside(source, depth + 1)
    elif head[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{href} is a web page, expected an image or polygons", "fetch the file again")
    elif head.startswith(b"<") or b"gdal_streamed_alg" in head:
        raise DataError(f"{href} is a text file that names other sources, expected an image or polygons", HINT)


def _sources(vrt: Path) -> list[str]:
    """Returns the files and addresses that a VRT reads, paths absolute."""
    try:
        root = ET.fromstring(read_limited(vrt))
    except ET.ParseError as cause:
        raise DataError(f"{vrt} is a broken VRT: {cause}", "write it again: gdalbuildvrt") from cause
    sources = []
    for element in root.iter():
        named = "filename" in element.get("name", "").lower()  # an argument of a processing step
        named |= element.tag.lower().endswith(("filename", "sourcedataset"))
        if named and (text := (element.text or "").strip()):
            relative = element.get("relativeToVRT", element.get("relativetoVRT", "0")) == "1"
            no_path = NO_PATH.match(text)
            base = vrt.parent if relative else Path()
            sources.append(text if no_path else str((base / text).absolute()))
    return sources
