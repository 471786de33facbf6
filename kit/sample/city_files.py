"""Writes the sample city in the challenge's layout: rasters, footprints, STAC items."""

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform_geom
from shapely.affinity import affine_transform
from shapely.geometry import Polygon, box, mapping, shape

from kit.sample.sites import Site, georeference

STAC_VERSION = "1.1.0"
DATETIME = "2020-01-01T00:00:00Z"
WEBP_QUALITY = 90  # 7 MB in all for the sample at scale 1
COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
CRS84 = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
BUILDING = {"building": "yes"}

Json = dict[str, Any]


def write_json(path: Path, content: Json) -> None:
    """Writes a JSON file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_image(path: Path, image: npt.NDArray[np.uint8], **profile: Any) -> None:
    """Writes (H, W, 4) uint8 RGBA as a cloud-optimised GeoTIFF. WEBP stores alpha without loss."""
    webp = {"driver": "COG", "compress": "WEBP", "quality": WEBP_QUALITY, "resampling": "AVERAGE"}
    _write_bands(path, np.moveaxis(image, -1, 0), COLOURS, **webp, **profile)


def write_mask(path: Path, mask: npt.NDArray[np.uint8]) -> None:
    """Writes (H, W) uint8 as a one-band GeoTIFF, deflated."""
    _write_bands(path, mask[None], (ColorInterp.gray,), driver="GTiff", compress="deflate")


def _write_bands(path: Path, bands: npt.NDArray[np.uint8], colours: tuple[ColorInterp, ...], **profile: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # chips and their masks
        with rasterio.open(path, "w", height=height, width=width, count=count, dtype="uint8", **profile) as raster:
            raster.colorinterp = colours
            raster.write(bands)


def image_path(area_folder: Path, site: Site) -> Path:
    """Returns the path of a training scene's image."""
    return area_folder / site.scene / f"{site.scene}.tif"


def footprints_path(area_folder: Path, site: Site) -> Path:
    """Returns the path of a training scene's footprints."""
    return area_folder / f"{site.scene}-labels" / f"{site.scene}.geojson"


def write_scene(area_folder: Path, site: Site, image: npt.NDArray[np.uint8], footprints: Json) -> None:
    """Writes a training scene: image ((H, W, 4) uint8, RGBA), footprints (GeoJSON), STAC items."""
    crs, pixel_to_m = georeference(site)
    write_image(image_path(area_folder, site), image, crs=crs, transform=pixel_to_m, blocksize=512)
    write_scene_items(area_folder, site)
    write_json(footprints_path(area_folder, site), footprints)


def as_geojson(site: Site, outlines: Iterable[Polygon], ids: Sequence[str] = ()) -> Json:
    """Returns outlines, px, as GeoJSON features in EPSG:4326, rounded to 0.1 mm; `ids` are stored in a field, too."""
    crs, pixel_to_m = georeference(site)
    features: list[Json] = []
    for number, outline in enumerate(outlines):
        placed = affine_transform(outline, pixel_to_m.to_shapely())
        degrees = transform_geom(crs, "EPSG:4326", mapping(placed), precision=9)
        features.append({"type": "Feature", "properties": BUILDING, "geometry": degrees})
        if ids:
            features[-1] |= {"id": ids[number], "properties": {**BUILDING, "id": ids[number]}}
    return {"type": "FeatureCollection", "name": site.scene, "crs": CRS84, "features": features}


def write_scene_items(area_folder: Path, site: Site, *, is_cog: bool = True) -> None:
    """Writes the STAC items of a training scene's image and footprints."""
    crs, pixel_to_m = georeference(site)
    frame = affine_transform(box(0, 0, site.width_px, site.height_px), pixel_to_m.to_shapely())
    geometry = transform_geom(crs, "EPSG:4326", mapping(frame), precision=9)
    above = {"root": "../../catalog.json", "collection": "../collection.json", "parent": "../collection.json"}
    home = [link(rel, href) for rel, href in above.items()]
    image = item(site.scene, geometry, home, {"image": tif_asset(site.scene, is_cog=is_cog)}, collection=site.area)
    write_json(image_path(area_folder, site).with_suffix(".json"), image)
    labels_id = f"{site.scene}-labels"
    asset = {"href": f"{site.scene}.geojson", "type": "application/geo+json"}
    source = link("source", f"../{site.scene}/{site.scene}.json")
    labels = item(labels_id, geometry, [source, *home], {"labels": asset}, collection=site.area)
    labels["properties"] |= {
        "label:type": "vector", "label:description": "building footprints", "label:properties": None,
    }  # fmt: skip
    write_json(area_folder / labels_id / f"{labels_id}.json", labels)


def link(rel: str, href: str, media: str = "application/json") -> Json:
    """Returns a STAC link."""
    return {"rel": rel, "href": href, "type": media}


def tif_asset(name: str, *, is_cog: bool = True) -> Json:
    """Returns the STAC asset of an image."""
    profile = "; profile=cloud-optimized" if is_cog else ""
    return {"href": f"{name}.tif", "type": f"image/tiff; application=geotiff{profile}"}


def item(name: str, geometry: Json, links: list[Json], assets: Json, **more: Any) -> Json:
    """Returns a STAC item; the geometry is a polygon in EPSG:4326."""
    bbox = list(shape(geometry).bounds)
    return {
        "type": "Feature", "stac_version": STAC_VERSION, "stac_extensions": [], "id": name, "geometry": geometry,
        "bbox": bbox, "properties": {"datetime": DATETIME}, "links": links, "assets": assets, **more,
    }  # fmt: skip


def write_train_catalog(folder: Path, name: str, description: str, areas: Iterable[str]) -> None:
    """Writes a catalogue and one collection per area, which list the items in the folder."""
    areas = list(areas)
    for area in areas:
        items = sorted((folder / area).glob("*/*.json"))
        links = [link("item", f"./{path.parent.name}/{path.name}", "application/geo+json") for path in items]
        boxes = np.array([json.loads(path.read_text())["bbox"] for path in items])
        bbox = [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]
        collection = {
            "type": "Collection", "id": area, "stac_version": STAC_VERSION, "description": f"scenes of {area}",
            "links": [link("root", "../catalog.json"), *links, link("parent", "../catalog.json")],
            "extent": {"spatial": {"bbox": [bbox]}, "temporal": {"interval": [[DATETIME, None]]}},
            "license": "CC0-1.0",
        }  # fmt: skip
        write_json(folder / area / "collection.json", collection)
    write_catalog(folder, name, description, [link("child", f"./{area}/collection.json") for area in areas])


def write_catalog(folder: Path, name: str, description: str, links: list[Json]) -> None:
    """Writes `catalog.json`."""
    catalog = {
        "type": "Catalog", "id": name, "stac_version": STAC_VERSION, "description": description,
        "links": [link("root", "./catalog.json"), *links],
    }  # fmt: skip
    write_json(folder / "catalog.json", catalog)
