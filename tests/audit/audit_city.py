"""A drawn city whose labels are damaged block by block, and weights that see bright roofs."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
import shapely
import torch
from deploy_fakes import noise, record
from factories import UTM, at_kampala, on_earth, write_footprints
from rasterio.features import rasterize
from shapely.affinity import translate
from torch import Tensor, nn

from kit.deploy.proof.images import SMALL_CASES
from kit.pipeline.export import ExportRequest, export_ensemble

GSD_M, SIDE_PX, BLOCK_M = 0.5, 480, 120.0  # four blocks
SHIFTS_M = {(0, 0): (2.0, -1.5), (0, 1): (0.0, 0.0), (1, 0): (-0.7, 2.5)}  # by row and column; east, north
EMPTY = (1, 1)  # a block without buildings


class Bright(nn.Module):
    """Building is what is bright."""

    def __init__(self, limit: float = 140.0) -> None:
        super().__init__()
        self.pad_multiple = 8
        self.limit = nn.Parameter(torch.tensor(float(limit)))
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logit = (nn.functional.avg_pool2d(x.float(), 3, 1, 1).mean(1, keepdim=True) - self.limit) / 12
        return torch.cat([-logit / 2, logit / 2], dim=1)


def write_weights(
    root: Path,
    name: str = "bright",
    gsd_m: float = GSD_M,
    limits: tuple[float, ...] = (135.0, 145.0),
    views: str = "flips",
) -> Path:
    """Exports weights of some members and views to `root/weights`."""
    members, records = [Bright(limit) for limit in limits], [record(fold) for fold in range(len(limits))]
    request = ExportRequest(name, "tiny", views, 0.5, gsd_m, [noise(40, 48)], SMALL_CASES)
    export_ensemble(root / "weights", members, records, request)
    return root / "weights" / f"{name}.pt"


@dataclass
class City:
    """A scene with damaged labels; outlines are in pixels."""

    folder: Path
    truth: list[shapely.Polygon] = field(default_factory=list)
    labels: list[shapely.Polygon] = field(default_factory=list)
    missing: list[shapely.Polygon] = field(default_factory=list)
    invented: list[shapely.Polygon] = field(default_factory=list)  # where they lie in the labels


def draw_city(folder: Path, seed: int = 0, far_m: float = 0.0, crs: str = UTM) -> City:
    """Draws a scene `a.tif` and its labels `a.geojson` into a folder.

    Args:
        folder: to write.
        seed: of the places.
        far_m: moves all labels so far to the east instead of by `SHIFTS_M`.
        crs: of the scene.
    """
    random, city = np.random.default_rng(seed), City(folder)
    block_px = round(BLOCK_M / GSD_M)
    for (row, column), shift in SHIFTS_M.items():
        east, north = (far_m, 0.0) if far_m else shift
        cells = [(x, y) for x in range(4) for y in range(4)]
        for place, (x, y) in enumerate(cells):
            left, top = (
                column * block_px + 60 * x + random.integers(12, 22),
                row * block_px + 60 * y + random.integers(12, 22),
            )
            house = shapely.box(left, top, left + random.integers(16, 30), top + random.integers(16, 30))
            label = translate(house, east / GSD_M, -north / GSD_M)
            if place in (3, 9):
                city.invented.append(label)
            else:
                city.truth.append(house)
            if place in (5, 14):
                city.missing.append(house)
            else:
                city.labels.append(label)
    built = rasterize(city.truth, (SIDE_PX, SIDE_PX), dtype=np.uint8).astype(bool)
    image = random.integers(60, 90, (3, SIDE_PX, SIDE_PX), dtype=np.uint8)
    image[:, built] = random.integers(190, 230, (3, int(built.sum())), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    transform = at_kampala(crs, GSD_M)
    with rasterio.open(
        folder / "a.tif", "w", driver="GTiff", width=SIDE_PX, height=SIDE_PX, count=3, dtype="uint8", crs=crs,
        transform=transform, photometric="rgb", tiled=True,
    ) as target:  # fmt: skip
        target.write(image)
    write_footprints(folder / "a.geojson", on_earth(city.labels, transform, crs))
    return city


def placed(outlines: list[shapely.Polygon], crs: str = UTM) -> list[shapely.Polygon]:
    """Returns outlines in pixels in the CRS of the scene."""
    to_crs = at_kampala(crs, GSD_M)
    return [shapely.transform(outline, lambda points: np.stack(to_crs @ points.T, axis=1)) for outline in outlines]


def write_prediction(file: Path, city: City, spread: float = 0.0, crs: str = UTM) -> Path:
    """Writes the raster of a prediction that sees the truth; half its rows, where `spread` is given, unsurely."""
    built = rasterize(city.truth, (SIDE_PX, SIDE_PX), dtype=np.uint8) * np.uint8(240)
    bands = np.stack([built, np.full_like(built, round(255 * spread / 0.5)), np.full_like(built, 255)])
    file.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        file, "w", driver="GTiff", width=SIDE_PX, height=SIDE_PX, count=3, dtype="uint8", crs=crs,
        transform=at_kampala(crs, GSD_M),
    ) as target:  # fmt: skip
        target.write(bands)
    return file
