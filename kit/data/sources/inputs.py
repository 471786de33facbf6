"""The images with labels that a data set is cut from: scenes with footprints, pairs of image and mask."""

from dataclasses import dataclass

from kit.data.sources.coco import DrawnMask

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", *TIFF_SUFFIXES, ".webp", ".jp2")
VECTOR_SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb")
# formats that people have, and GDAL's commands convert
OTHER_IMAGES = (".bmp", ".ecw", ".gif", ".heic", ".img", ".sid", ".vrt")
OTHER_VECTORS = (
    ".dxf",
    ".geojsonl",
    ".geojsons",
    ".gml",
    ".kml",
    ".kmz",
    ".ndjson",
    ".osm",
    ".parquet",
    ".tab",
    ".zip",
)


@dataclass(frozen=True)
class Scene:
    """A georeferenced image and the files of its footprints."""

    area: str  # city or region, for example `kam`; in a catalogue the collection's id
    scene: str  # name of the image within its area
    tier: int  # 1 for careful labels, 2 for dirty ones
    image: str  # path or address of the GeoTIFF
    labels: tuple[str, ...]  # paths or addresses of the footprint files
    where: str = ""  # SQL condition that chooses features of the labels, for example `kind = 'building'`; empty: all


@dataclass(frozen=True)
class Pair:
    """A ready-made image with its mask: a raster of the same size, or what an annotation tool drew."""

    area: str  # city or region
    scene: str  # the scene that it was cut from, as far as is known
    tier: int  # 1 for careful labels, 2 for dirty ones
    name: str  # unique within the scene, for example the file's stem
    image: str  # path or address
    mask: str  # path or address of the raster or the annotation file
    drawing: DrawnMask | None = None  # the buildings, where `mask` is an annotation file


@dataclass(frozen=True)
class Inputs:
    """Images with their labels, and the name of the data set to be made.

    Areas, scenes and names are parts of file names: letters and digits of any script, `.`, `_` and `-`.
    """

    name: str  # default name of the data set
    scenes: tuple[Scene, ...]  # images with footprints, sorted by area and scene
    pairs: tuple[Pair, ...]  # ready-made images with masks, sorted by area, scene and name
