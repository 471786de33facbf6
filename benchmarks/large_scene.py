"""A scene as large as the challenge's, in a catalogue of its own: one of the sample city, side by side."""

import json
import math
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyogrio
import pyproj
import pystac
import rasterio
import rasterio.shutil
import shapely
from rasterio.warp import transform_bounds

from kit.data.sample import draw_sample

REPEATED = "nbo/nbo_b"  # of the sample city


def drawn_scene(folder: Path, footprints: int) -> Path:
    """Returns the catalogue of a scene with at least so many footprints: one of the sample city, side by side."""
    if (folder / "catalog.json").exists():
        return folder / "catalog.json"
    with TemporaryDirectory() as sample:
        home, name = draw_sample(Path(sample) / "sample") / "train_tier_1", Path(REPEATED).name
        labels = home / f"{REPEATED}-labels" / f"{name}.geojson"
        known = len(json.loads(labels.read_text())["features"])
        times = math.ceil(math.sqrt(footprints / known))
        folder.mkdir(parents=True)
        with rasterio.open(home / REPEATED / f"{name}.tif") as source:
            (folder / "scene.geojson").write_text(repeated_labels(labels, source, times))
            (folder / "scene.vrt").write_text(repeated_image(source, times))
        webp = {"driver": "COG", "compress": "WEBP", "quality": 90, "blocksize": 512, "num_threads": "ALL_CPUS"}
        rasterio.shutil.copy(folder / "scene.vrt", folder / "scene.tif", **webp)
    (folder / "scene.vrt").unlink()
    return write_catalog(folder)


def repeated_image(source: rasterio.DatasetReader, times: int) -> str:
    """Returns a VRT of the image, so many times in each direction."""
    height, width = source.shape
    bands = []
    for band, colour in enumerate(source.colorinterp, 1):
        places = "".join(
            f"<SimpleSource><SourceFilename>{source.name}</SourceFilename><SourceBand>{band}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
            f'<DstRect xOff="{column * width}" yOff="{row * height}" xSize="{width}" ySize="{height}"/></SimpleSource>'
            for row, column in product(range(times), repeat=2)
        )
        bands.append(
            f'<VRTRasterBand dataType="Byte" band="{band}"><ColorInterp>{colour.name}</ColorInterp>{places}'
            "</VRTRasterBand>"
        )
    placed = ", ".join(map(str, source.transform.to_gdal()))
    return (
        f'<VRTDataset rasterXSize="{width * times}" rasterYSize="{height * times}"><SRS>{source.crs.to_string()}</SRS>'
        f"<GeoTransform>{placed}</GeoTransform>{''.join(bands)}</VRTDataset>"
    )


def repeated_labels(labels: Path, source: rasterio.DatasetReader, times: int) -> str:
    """Returns GeoJSON, EPSG:4326, of the footprints at each place of the image."""
    _, _, wkb, _ = pyogrio.raw.read(labels, columns=[])
    there = pyproj.Transformer.from_crs("EPSG:4326", source.crs, always_xy=True)
    back = pyproj.Transformer.from_crs(source.crs, "EPSG:4326", always_xy=True)
    once = shapely.transform(shapely.from_wkb(wkb), there.transform, interleaved=False)
    step = np.array([source.width * source.transform.a, source.height * source.transform.e])
    places = [np.array(place) * step for place in product(range(times), repeat=2)]
    moved = np.concatenate([shapely.transform(once, lambda at, by=place: at + by) for place in places])
    degrees = shapely.transform(moved, back.transform, interleaved=False)
    features = ",".join(
        f'{{"type":"Feature","properties":{{}},"geometry":{geometry}}}' for geometry in shapely.to_geojson(degrees)
    )
    return f'{{"type":"FeatureCollection","features":[{features}]}}'


def write_catalog(folder: Path) -> Path:
    with rasterio.open(folder / "scene.tif") as source:
        bounds = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    when = pystac.utils.str_to_datetime("2020-01-01T00:00:00Z")
    extent = pystac.Extent(pystac.SpatialExtent([list(bounds)]), pystac.TemporalExtent([[when, None]]))
    collection = pystac.Collection("drawn", "one large scene", extent)
    geometry = json.loads(shapely.to_geojson(shapely.box(*bounds)))
    for name, key, file in (("scene", "image", "scene.tif"), ("scene-labels", "labels", "scene.geojson")):
        item = pystac.Item(name, geometry, list(bounds), when, {})
        item.add_asset(key, pystac.Asset(str((folder / file).resolve())))
        collection.add_item(item)
    catalog = pystac.Catalog("drawn", "one large scene, drawn")
    catalog.add_child(collection)
    catalog.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"
