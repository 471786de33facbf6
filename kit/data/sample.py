"""The embedded sample city: a small data set in the challenge's layout, drawn by code; same seed, same bytes.

Three areas with two training scenes each (RGB + alpha COGs in UTM, EPSG:4326 footprints), and two test mosaics cut into
shuffled chips without georeference, whose truth lies aside.
"""

import csv
import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform, transform_geom
from shapely.affinity import affine_transform
from shapely.geometry import box, mapping, shape

from kit.console import track
from kit.data.cityplan import GSD_M, Look
from kit.data.drawing import Drawing, draw_scene
from kit.errors import DataError
from kit.paths import replacing

VERSION = 1  # of the drawing: another number, other bytes
CHIP_PX = 1024
STAC_VERSION = "1.1.0"
DATETIME = "2020-01-01T00:00:00Z"
WEBP_QUALITY = 90  # 7 MB in all

Json = dict[str, Any]
Place = tuple[str, str, int, int]  # a chip's id, its mosaic, its row and column there


@dataclass(frozen=True)
class Area:
    """A city, its UTM zone, where its first scene lies (degrees) and how it looks."""

    epsg: int
    longitude: float
    latitude: float
    look: Look


AREAS = {
    "kum": Area(32630, -1.6244, 6.6885, Look(  # Kumasi: red earth, rusty sheets, dense
        earth=((152, 92, 62), (172, 112, 78), (186, 134, 100)), grass=((86, 104, 56), (112, 122, 70)),
        materials={"rust": 4, "dull zinc": 2, "zinc": 2, "maroon": 2, "concrete": 1.5, "tile": 1},
        green=0.30, gap_m=(1.3, 3.5), open_blocks=0.22, trees=70, asphalt=0.3,
    )),
    "nbo": Area(32737, 36.8219, -1.2921, Look(  # Nairobi: green, tiles and blue paint
        earth=((122, 98, 80), (146, 124, 104), (164, 148, 130)), grass=((74, 96, 52), (98, 118, 62), (122, 132, 78)),
        materials={"zinc": 3, "blue": 2, "tile": 3, "concrete": 2, "dull zinc": 2, "maroon": 1},
        green=0.45, gap_m=(1.5, 6), open_blocks=0.25, trees=100, asphalt=0.6,
    )),
    "lus": Area(32735, 28.2826, -15.4167, Look(  # Lusaka: dry sand, grey sheets, sparse
        earth=((164, 140, 112), (182, 162, 136), (198, 182, 160)), grass=((118, 118, 72), (142, 136, 88)),
        materials={"zinc": 4, "dull zinc": 3, "concrete": 2, "rust": 2, "blue": 1},
        green=0.25, gap_m=(1.5, 5), open_blocks=0.25, trees=45, asphalt=0.3,
    )),
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """One scene to draw: its id, its area, its size in px and the ground size of a pixel, m."""

    scene: str
    area: str
    height_px: int
    width_px: int
    gsd_m: float = GSD_M


TRAIN = (
    Site("kum_a", "kum", 1811, 1687, 0.0752),
    Site("kum_b", "kum", 1549, 2043, 0.0741),
    Site("nbo_a", "nbo", 1903, 1777, 0.0765),
    Site("nbo_b", "nbo", 2111, 1597, 0.0750),
    Site("lus_a", "lus", 1733, 1893, 0.0733),
    Site("lus_b", "lus", 1501, 2287, 0.0758),
)
TEST = (Site("kum_t", "kum", 2 * CHIP_PX, 3 * CHIP_PX), Site("lus_t", "lus", 2 * CHIP_PX, 3 * CHIP_PX))


def draw_sample(out: Path, seed: int = 0, *, shrink: int = 1) -> Path:
    """Returns the folder of the sample city, drawn if it is not there yet.

    Args:
        out: the folder to make.
        seed: the same seed gives the same bytes.
        shrink: divides the sides of scenes and chips; for tests.

    Raises:
        DataError: `out` exists and holds something else.
    """
    stamp = {"seed": seed, "version": VERSION, "shrink": shrink}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if _stamp(out) == stamp:
            return out
        raise DataError(
            f"{out} exists, and is not the sample city of seed {seed} (version {VERSION})",
            f"remove it, or choose another folder: kit sample --seed {seed} --out {out.name}-{seed}",
        )
    places: list[Place] = []
    with replacing(out) as folder:
        for number, site in enumerate(track(TRAIN + TEST, "drew scenes")):
            rng = np.random.default_rng([seed, number])
            drawing = draw_scene(rng, AREAS[site.area].look, site.height_px // shrink, site.width_px // shrink)
            if site in TRAIN:
                _write_scene(folder / "train_tier_1" / site.area, site, drawing)
            else:
                places += _write_chips(folder, site, drawing, CHIP_PX // shrink, seed)
        _write_train_catalog(folder / "train_tier_1")
        _write_test_catalog(folder, sorted(places))
        _write_json(folder / "sample.json", stamp)
    return out


def _stamp(out: Path) -> Json | None:
    """Returns what `sample.json` says, or None where there is none."""
    try:
        stamp: Json = json.loads((out / "sample.json").read_text())
    except (OSError, ValueError):
        return None
    return stamp


def _write_json(path: Path, content: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_image(path: Path, image: npt.NDArray[np.uint8], **profile: Any) -> None:
    """Writes (H, W, 4) uint8 RGBA as a cloud-optimised GeoTIFF; WEBP keeps alpha exactly."""
    webp = {"driver": "COG", "compress": "WEBP", "quality": WEBP_QUALITY, "resampling": "AVERAGE"}
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    _write_bands(path, np.moveaxis(image, -1, 0), colours, **webp, **profile)


def _write_mask(path: Path, mask: npt.NDArray[np.uint8]) -> None:
    """Writes (H, W) uint8 as a one-band GeoTIFF, deflated."""
    _write_bands(path, mask[None], [ColorInterp.gray], driver="GTiff", compress="deflate")


def _write_bands(path: Path, bands: npt.NDArray[np.uint8], colours: list[ColorInterp], **profile: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # chips and their truth have no place on earth
        with rasterio.open(path, "w", height=height, width=width, count=count, dtype="uint8", **profile) as raster:
            raster.colorinterp = colours
            raster.write(bands)


def georeference(site: Site) -> tuple[str, Affine]:
    """Returns a training scene's CRS (UTM) and its pixel -> metre transform; an area's scenes lie 400 m apart."""
    area = AREAS[site.area]
    crs = f"EPSG:{area.epsg}"
    (east,), (north,) = transform("EPSG:4326", crs, [area.longitude], [area.latitude])
    nth = [other for other in TRAIN if other.area == site.area].index(site)
    return crs, Affine(site.gsd_m, 0, round(east) + 400 * nth + 0.25, 0, -site.gsd_m, round(north) - 60 * nth + 0.5)


def _footprints(site: Site, drawing: Drawing) -> Json:
    """Returns the roofs' outlines as GeoJSON features, EPSG:4326, to 0.1 mm."""
    crs, pixel_to_m = georeference(site)
    features = []
    for house in drawing.plan.houses:
        outline = affine_transform(house.outline, pixel_to_m.to_shapely())
        degrees = transform_geom(crs, "EPSG:4326", mapping(outline), precision=9)
        features.append({"type": "Feature", "properties": {"building": "yes"}, "geometry": degrees})
    crs84 = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    return {"type": "FeatureCollection", "name": site.scene, "crs": crs84, "features": features}


def _write_scene(area_folder: Path, site: Site, drawing: Drawing) -> None:
    """Writes a training scene's image, its footprints and the items of both."""
    crs, pixel_to_m = georeference(site)
    height, width = drawing.truth.shape
    image_path = area_folder / site.scene / f"{site.scene}.tif"
    _write_image(image_path, drawing.image, crs=crs, transform=pixel_to_m, blocksize=512)
    frame = affine_transform(box(0, 0, width, height), pixel_to_m.to_shapely())
    geometry = transform_geom(crs, "EPSG:4326", mapping(frame), precision=9)
    above = {"root": "../../catalog.json", "collection": "../collection.json", "parent": "../collection.json"}
    home = [_link(rel, href) for rel, href in above.items()]
    image = _item(site.scene, geometry, home, {"image": _tif(site.scene)}, collection=site.area)
    _write_json(image_path.with_suffix(".json"), image)
    labels_id = f"{site.scene}-labels"
    labels_folder = area_folder / labels_id
    asset = {"href": f"{site.scene}.geojson", "type": "application/geo+json"}
    source = _link("source", f"../{site.scene}/{site.scene}.json")
    labels = _item(labels_id, geometry, [source, *home], {"labels": asset}, collection=site.area)
    labels["properties"] |= {
        "label:type": "vector", "label:description": "building footprints", "label:properties": None,
    }  # fmt: skip
    _write_json(labels_folder / f"{labels_id}.json", labels)
    _write_json(labels_folder / f"{site.scene}.geojson", _footprints(site, drawing))


def _link(rel: str, href: str, media: str = "application/json") -> Json:
    return {"rel": rel, "href": href, "type": media}


def _tif(name: str) -> Json:
    return {"href": f"{name}.tif", "type": "image/tiff; application=geotiff; profile=cloud-optimized"}


def _item(name: str, geometry: Json, links: list[Json], assets: Json, **more: Any) -> Json:
    """Returns a STAC item; the geometry is a polygon in EPSG:4326."""
    bbox = list(shape(geometry).bounds)
    return {
        "type": "Feature", "stac_version": STAC_VERSION, "stac_extensions": [], "id": name, "geometry": geometry,
        "bbox": bbox, "properties": {"datetime": DATETIME}, "links": links, "assets": assets, **more,
    }  # fmt: skip


def _write_train_catalog(folder: Path) -> None:
    """Writes the catalogue and a collection for each area over the items that lie in the folder."""
    for area in AREAS:
        items = sorted((folder / area).glob("*/*.json"))
        links = [_link("item", f"./{path.parent.name}/{path.name}", "application/geo+json") for path in items]
        boxes = np.array([json.loads(path.read_text())["bbox"] for path in items])
        bbox = [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]
        collection = {
            "type": "Collection", "id": area, "stac_version": STAC_VERSION, "description": f"scenes of {area}",
            "links": [_link("root", "../catalog.json"), *links, _link("parent", "../catalog.json")],
            "extent": {"spatial": {"bbox": [bbox]}, "temporal": {"interval": [[DATETIME, None]]}},
            "license": "CC0-1.0",
        }  # fmt: skip
        _write_json(folder / area / "collection.json", collection)
    children = [_link("child", f"./{area}/collection.json") for area in AREAS]
    _write_catalog(folder, "sample city, drawn: scenes with footprints", children)


def _write_catalog(folder: Path, description: str, links: list[Json]) -> None:
    catalog = {
        "type": "Catalog", "id": folder.name, "stac_version": STAC_VERSION, "description": description,
        "links": [_link("root", "./catalog.json"), *links],
    }  # fmt: skip
    _write_json(folder / "catalog.json", catalog)


def _write_chips(folder: Path, site: Site, drawing: Drawing, side_px: int, seed: int) -> list[Place]:
    """Cuts a mosaic into chips named by a hash, puts the truth aside in `test_labels`; returns where each chip lies."""
    geometry = {"type": "Polygon", "coordinates": [[[0.0, 0.0]] * 4]}
    home = [_link("root", "../catalog.json"), _link("parent", "../catalog.json")]
    height, width = drawing.truth.shape
    places = []
    for row, col in np.ndindex(height // side_px, width // side_px):
        chip = hashlib.sha256(f"{seed}/{site.scene}/{row}/{col}".encode()).hexdigest()[:6]
        cut = np.s_[row * side_px : (row + 1) * side_px, col * side_px : (col + 1) * side_px]
        _write_image(folder / "test" / chip / f"{chip}.tif", drawing.image[cut], blocksize=256, overviews="NONE")
        _write_json(folder / "test" / chip / f"{chip}.json", _item(chip, geometry, home, {"image": _tif(chip)}))
        _write_mask(folder / "test_labels" / f"{chip}.tif", drawing.truth[cut])
        places.append((chip, site.scene, row, col))
    return places


def _write_test_catalog(folder: Path, places: list[Place]) -> None:
    """Writes the catalogue of the chips, in the order of their ids, and aside the table of their places."""
    links = [_link("item", f"./{chip}/{chip}.json", "application/geo+json") for chip, *_ in places]
    _write_catalog(folder / "test", "sample city, drawn: test chips without labels or georeference", links)
    with (folder / "test_labels" / "chips.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("chip", "scene", "row", "col"))
        writer.writerows(places)
