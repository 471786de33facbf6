"""Tiny scenes, catalogues and a tiny recipe, drawn where a test wants them."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import rasterio
import shapely
import torch
from rasterio.transform import Affine
from safetensors.torch import save_file

from kit.data.index import read_index
from kit.data.masks import count
from kit.data.tiles import prepare as preparing
from kit.data.tiles.options import PrepareOptions, Style
from kit.paths import Paths
from kit.system.files import sha256_of
from kit.training.fit import rebuild
from kit.training.recipe import load_recipe

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

UTM, MERCATOR = "EPSG:32636", "EPSG:3857"
LONGITUDE, LATITUDE = 32.5945, 0.3505  # Kampala: UTM zone 36 north

TINY_RECIPE = '''"""A tiny recipe for tests."""

import albumentations as A
from fastai.vision import all as fv

from kit.data.dataset import dataloaders
from kit.models.losses import CrossEntropy
from kit.models.metrics import PooledJaccard
from kit.models.unet import split, unet
from kit.training.callbacks import EMA, BalancedSampler

AUGMENT = A.Compose([A.RandomCrop(64, 64), A.D4()])


def data(fold):
    return dataloaders(fold, AUGMENT, 2)


def learner(dls):
    model = unet("test_efficientnet", widths=(16, 8, 8), reduce=1)
    cbs = [BalancedSampler(crops_per_tile=0.75), EMA(0.9)]
    return fv.Learner(dls, model, CrossEntropy(), splitter=split, metrics=PooledJaccard(), cbs=cbs)


def fit(learn):
    learn.fit_one_cycle(2, slice(1e-4, 1e-3))
'''


def write_scene(
    path: Path,
    width: int = 96,
    height: int = 70,
    pixel: float = 1.0,
    crs: str = UTM,
    alpha: bool = True,
    seed: int = 0,
    **profile: object,
) -> list[shapely.Polygon]:
    """Writes a scene with bright square buildings, and returns them in EPSG:4326. Its left 8 columns hold no data.

    Scenes of different seeds lie a kilometre apart.
    """
    random = np.random.default_rng(seed)
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(LONGITUDE, LATITUDE)
    transform = Affine(pixel, 0, x + 1000 * seed, 0, -pixel, y)
    image = random.integers(40, 90, (height, width, 3), dtype=np.uint8)
    back = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    polygons = []
    for left, top, side in ((16, 10, 20), (50, 30, 24), (70, 4, 12)):
        image[top : top + side, left : left + side] = random.integers(170, 230, 3)
        corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]
        polygons.append(shapely.Polygon([back.transform(*(transform @ corner)) for corner in corners]))
    bands = [*image.transpose(2, 0, 1)]
    if alpha:
        opaque = np.full((height, width), 255, np.uint8)
        opaque[:, :8] = 0
        bands.append(opaque)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=len(bands), dtype="uint8", crs=crs,
        transform=transform, photometric="rgb", **profile,
    ) as target:  # fmt: skip
        if alpha:  # told before anything is written, else it is not kept
            target.colorinterp = [*target.colorinterp[:3], rasterio.enums.ColorInterp.alpha]
        target.write(np.stack(bands))
    return polygons


def write_footprints(path: Path, polygons: list[shapely.Polygon]) -> None:
    """Writes EPSG:4326 polygons as GeoJSON."""
    features = [
        {"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(polygon))}
        for polygon in polygons
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def write_run(folder: Path, counts: dict[str, tuple[int, int, int]] | None, **settings: object) -> None:
    """Writes a run's settings and its result: (tp, fp, fn) by `area/scene`; None leaves the run unfinished."""
    folder.mkdir(parents=True)
    known = {"data": "tier1", "encoder": "tf_efficientnet_lite0", "seed": 0, "epochs": 12}
    (folder / "settings.json").write_text(json.dumps(known | settings))
    if counts is not None:
        scenes = {name: dict(zip(("tp", "fp", "fn"), pixels, strict=True)) for name, pixels in counts.items()}
        hit, *missed = (sum(pixels[i] for pixels in counts.values()) for i in range(3))
        score = hit / (hit + sum(missed)) if counts else None
        result = {"recipe": folder.parent.name, "fold": folder.name.removeprefix("fold"), "score": score}
        (folder / "result.json").write_text(json.dumps(result | {"scenes": scenes, "seconds": 90.0, "epoch": 7}))


def write_scored_run(root: Path, run: str, noise: float, seed: int, **settings: object) -> Path:
    """Writes a finished run, RECIPE/foldK, whose predictions of its validation tiles are the truth through noise."""
    recipe, _, folder_name = run.partition("/")
    fold = int(folder_name.removeprefix("fold").split("-")[0])
    data, index = read_index(Paths(root))
    folder, random, rows = root / "runs" / run, np.random.default_rng(seed), []
    loaded = load_recipe(recipe, Paths(root))
    known = {
        "recipe": recipe, "recipe_path": "", "recipe_sha256": loaded.sha256, "data": data,
        "data_sha256": sha256_of(root / "data" / data / "index.csv"), "fold": fold, "gsd_m": 1.0,
    }  # fmt: skip
    write_run(folder, {"kam/a": (8, 1, 1)}, **known | settings)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"fold": fold}))
    (folder / "oof").mkdir()
    for row in index[index["fold"] == fold].itertuples():
        with rasterio.open(row.mask) as source:
            truth = source.read(1)
        probability = np.where(truth == 1, 0.62, 0.38) + random.normal(0, noise, truth.shape)
        values = np.where(truth == 255, 0, np.rint(255 * np.clip(probability, 0, 1))).astype(np.uint8)
        with rasterio.open(
            folder / f"oof/{row.tile}.tif", "w", driver="GTiff", count=1, dtype="uint8",
            height=truth.shape[0], width=truth.shape[1],
        ) as target:  # fmt: skip
            target.write(values, 1)
        counts = count(values > 127, truth)
        rows.append((row.tile, row.area, row.scene, counts.tp, counts.fp, counts.fn))
    pd.DataFrame(rows, columns=["tile", "area", "scene", "tp", "fp", "fn"]).to_csv(folder / "oof.csv", index=False)
    torch.manual_seed(seed)
    save_file(rebuild(loaded).model.state_dict(), folder / "best.safetensors")
    return folder


def _item(identity: str, area: str, assets: dict[str, str], source: str = "") -> dict:
    links = [{"rel": "source", "href": source}] if source else []
    return {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "id": identity, "collection": area,
        "geometry": {"type": "Point", "coordinates": [0, 0]}, "bbox": [0, 0, 0, 0],
        "properties": {"datetime": "2019-01-01T00:00:00Z"}, "links": links,
        "assets": {name: {"href": href} for name, href in assets.items()},
    }  # fmt: skip


def write_catalog(root: Path, areas: dict[str, dict[str, dict]], labels: bool = True) -> Path:
    """Writes a STAC catalogue in the challenge's layout: areas -> scenes -> options of `write_scene`."""
    links = [{"rel": "child", "href": f"./{area}/collection.json"} for area in areas]
    catalog = {"type": "Catalog", "id": "train_tier_1", "stac_version": "1.0.0", "description": "t", "links": links}
    for area, scenes in areas.items():
        items = []
        for scene, options in scenes.items():
            polygons = write_scene(root / area / scene / f"{scene}.tif", **options)
            image = _item(scene, area, {"image": f"{scene}.tif"})
            (root / area / scene / f"{scene}.json").write_text(json.dumps(image))
            items.append(f"./{scene}/{scene}.json")
            if labels:
                folder = root / area / f"{scene}-labels"
                write_footprints(folder / f"{scene}.geojson", polygons)
                label = _item(f"{scene}-labels", area, {"labels": f"{scene}.geojson"}, f"../{scene}/{scene}.json")
                (folder / f"{scene}-labels.json").write_text(json.dumps(label))
                items.append(f"./{scene}-labels/{scene}-labels.json")
        collection = {
            "type": "Collection", "id": area, "stac_version": "1.0.0", "description": area, "license": "MIT",
            "extent": {"spatial": {"bbox": [[0, 0, 0, 0]]}, "temporal": {"interval": [["2019-01-01T00:00:00Z", None]]}},
            "links": [{"rel": "item", "href": href} for href in items],
        }  # fmt: skip
        (root / area / "collection.json").write_text(json.dumps(collection))
    root.mkdir(parents=True, exist_ok=True)
    (root / "catalog.json").write_text(json.dumps(catalog))
    return root


def at_kampala(crs: str = UTM, pixel: float = 1.0) -> Affine:
    """Returns the transform of a scene whose upper left corner lies in Kampala, north up."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(LONGITUDE, LATITUDE)
    return Affine(pixel, 0, x, 0, -pixel, y)


def write_bands(
    path: Path, bands: np.ndarray, transform: Affine | None = None, crs: str | None = UTM, alpha: bool = False,
    mask: np.ndarray | None = None, **profile: object,
) -> Path:  # fmt: skip
    """Writes (C, H, W) as a GeoTIFF, and a mask (H, W) bool within it if there is one; returns its path."""
    count, height, width = bands.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", width=width, height=height, count=count, dtype=bands.dtype, crs=crs,
            transform=at_kampala() if transform is None else transform, **{"photometric": "rgb"} | profile,
        ) as target,
    ):  # fmt: skip
        if alpha:
            target.colorinterp = [*target.colorinterp[:3], rasterio.enums.ColorInterp.alpha]
        target.write(bands)
        if mask is not None:
            target.write_mask(mask)
    return path


def on_earth(polygons: list[shapely.Polygon], transform: Affine, crs: str = UTM) -> list[shapely.Polygon]:
    """Returns polygons in pixels of a scene as polygons in EPSG:4326."""
    back = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    return [
        shapely.Polygon([back.transform(*(transform @ corner)) for corner in polygon.exterior.coords])
        for polygon in polygons
    ]


def prepare(place: str | Path, paths: Paths, name: str = "", **options: Any) -> preparing.Prepared:
    """Returns what `kit prepare` makes, with the fields of `PrepareOptions` and of its `Style` as keywords."""
    own = {field.name for field in fields(Style)}
    style = Style(**{key: value for key, value in options.items() if key in own})
    rest = {key: value for key, value in options.items() if key not in own}
    return preparing.prepare(place, paths, PrepareOptions(name, style=style, **rest))
