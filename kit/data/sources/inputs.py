"""The images with labels that a data set is cut from: scenes with footprints, pairs of image and mask."""

from dataclasses import dataclass

from kit.data.sources.coco import DrawnMask

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", *TIFF_SUFFIXES, ".webp")
VECTOR_SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb")


@dataclass(frozen=True)
class Scene:
    """A georeferenced image and the files of its footprints.

    Args:
        area: city or region, for example `kam`; in a catalogue the collection's id.
        scene: name of the image within its area.
        tier: 1 for careful labels, 2 for dirty ones.
        image: path or address of the GeoTIFF.
        labels: paths or addresses of the footprint files.
        where: SQL condition that chooses features of the labels, for example `kind = 'building'`; empty: all.
    """

    area: str
    scene: str
    tier: int
    image: str
    labels: tuple[str, ...]
    where: str = ""


@dataclass(frozen=True)
class Pair:
    """A ready-made image with its mask: a raster of the same size, or what an annotation tool drew.

    Args:
        area: city or region.
        scene: the scene that it was cut from, as far as is known.
        tier: 1 for careful labels, 2 for dirty ones.
        name: unique within the scene, for example the file's stem.
        image: path or address.
        mask: path or address of the raster or the annotation file.
        drawing: the buildings, where `mask` is an annotation file.
    """

    area: str
    scene: str
    tier: int
    name: str
    image: str
    mask: str
    drawing: DrawnMask | None = None


@dataclass(frozen=True)
class Inputs:
    """Images with their labels, and the name of the data set to be made.

    Areas, scenes and names are parts of file names: letters and digits of any script, `.`, `_` and `-`.

    Args:
        name: default name of the data set.
        scenes: images with footprints, sorted by area and scene.
        pairs: ready-made images with masks, sorted by area, scene and name.
    """

    name: str
    scenes: tuple[Scene, ...]
    pairs: tuple[Pair, ...]
