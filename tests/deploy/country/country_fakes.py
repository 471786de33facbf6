"""A drawn country: overlapping scenes of known houses on both sides of two meridians between UTM zones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import rasterio
import shapely
import torch
from deploy_fakes import noise, record
from rasterio.features import rasterize
from rasterio.transform import Affine
from torch import Tensor, nn

from kit.deploy.proof.images import Case
from kit.pipeline.export import ExportRequest, export_ensemble

SEAMS = (30.0, 36.0)  # degrees: zones 35, 36 and 37 meet there
LATITUDE = 0.35
GROUND, ROOF = 40, 220
SMALL = ("--window", "64", "--overlap", "16", "--device", "cpu")


class Brightness(nn.Module):
    """A network that takes what is bright for buildings; it sees single pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.pad_multiple = 16
        self.register_buffer("mean", torch.tensor([128.0, 128.0, 128.0]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([64.0, 64.0, 64.0]).view(3, 1, 1))
        self.head = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.float() - self.mean) / self.std)


def export_brightness(folder: Path, name: str = "bright") -> Path:
    """Writes weights that were trained at 1 m per pixel, and returns their path."""
    request = ExportRequest(name, "bright", "none", 0.5, 1.0, [noise(40, 48)], [Case(64, 64)])
    return export_ensemble(folder, [Brightness()], [record()], request).path


@dataclass(frozen=True)
class Country:
    """A drawn country."""

    folder: Path  # of the scenes
    houses: list[shapely.Polygon]  # in degrees
    scenes: list[Path]


def draw_country(
    folder: Path, per_side: int = 3, spacing_m: int = 130, side_px: int = 180, seed: int = 0, seams: tuple = SEAMS
) -> Country:
    """Draws a square of overlapping scenes at each seam, at 1 m per pixel, in several coordinate systems."""
    random = np.random.default_rng(seed)
    houses, scenes = [], []
    for number, seam in enumerate(seams):
        to_m = pyproj.Transformer.from_crs("EPSG:4326", _local(seam), always_xy=True)
        to_degrees = pyproj.Transformer.from_crs(_local(seam), "EPSG:4326", always_xy=True)
        reach = ((per_side - 1) * spacing_m + side_px) / 2
        own = _houses(random, reach - 20)
        houses += [shapely.transform(house, to_degrees.transform, interleaved=False) for house in own]
        for row in range(per_side):
            for column in range(per_side):
                x, y = ((at - (per_side - 1) / 2) * spacing_m for at in (column, row))
                place = to_degrees.transform(x, y)
                zone = int((place[0] + 180) // 6) + 1
                crs = (f"EPSG:{32600 + zone}", "EPSG:3857", "EPSG:4326")[(row + column) % 3]
                path = folder / f"s{number}_{row:02}_{column:02}.tif"
                _draw_scene(path, crs, place, side_px, own, to_m)
                scenes.append(path)
    return Country(folder, houses, scenes)


def _local(seam: float) -> str:
    return f"+proj=aeqd +lon_0={seam} +lat_0={LATITUDE} +datum=WGS84 +units=m"


def _houses(random: np.random.Generator, reach: float) -> list[shapely.Polygon]:
    """Returns houses of 8 to 20 m on a jittered lattice of 32 m, and one large hall, in metres around the seam."""
    houses = []
    for x in np.arange(-reach, reach, 32):
        for y in np.arange(-reach, reach, 32):
            width, height = random.integers(8, 20, 2)
            left, bottom = x + random.uniform(0, 6), y + random.uniform(0, 6)
            houses.append(shapely.box(left, bottom, min(left + width, reach), min(bottom + height, reach)))
    hall = shapely.box(-reach / 3 - 60, -8, -reach / 3 + 60, 8)  # longer than a cell's halo
    return [house for house in houses if not house.intersects(hall.buffer(6)) and house.area > 40] + [hall]


def _draw_scene(
    path: Path, crs: str, place: tuple[float, float], side_px: int, houses: list[shapely.Polygon],
    to_m: pyproj.Transformer,
) -> None:  # fmt: skip
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*place)
    pixel = 1 / 111_320 if crs == "EPSG:4326" else 1.0
    transform = Affine(pixel, 0, x - pixel * side_px / 2, 0, -pixel, y + pixel * side_px / 2)
    from_m = pyproj.Transformer.from_crs(to_m.target_crs, crs, always_xy=True)
    drawn = [shapely.transform(house, from_m.transform, interleaved=False) for house in houses]
    ground = np.full((side_px, side_px), GROUND, np.uint8)
    rasterize(((house, ROOF) for house in drawn), out=ground, transform=transform)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="COG", width=side_px, height=side_px, count=3, dtype="uint8", crs=crs, transform=transform,
        compress="deflate", blocksize=128,
    ) as target:  # fmt: skip
        target.write(np.stack([ground] * 3))


class Walls(Brightness):
    """A network that takes what is red for buildings, and what is red but not green for walls between them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)
        with torch.no_grad():  # footprint, boundary, contact
            self.head.weight.copy_(torch.tensor([[6.0, 0, 0], [6, -6, 0], [0, 0, 0]]).view(3, 3, 1, 1))
            self.head.bias.copy_(torch.tensor([0.0, -8, -20]))


def export_walls(folder: Path) -> Path:
    """Writes weights that tell neighbours apart, trained at 1 m per pixel, and returns their path."""
    request = ExportRequest("walls", "walls", "none", 0.5, 1.0, [noise(40, 48)], [Case(64, 64)])
    return export_ensemble(folder, [Walls()], [record()], request).path


def draw_terraces(folder: Path, houses: int = 26, rows: int = 5, pixels: tuple[int, int] = (20, 24)) -> Country:
    """Draws two overlapping scenes, at 1 m per pixel, of terraces: rows of houses that share their walls."""
    width, height = pixels
    ground = np.full((3, rows * (height + 16) + 16, houses * width + 40), GROUND, np.uint8)
    ground[2] = np.arange(ground[2].size).reshape(ground[2].shape) % 7
    transform, outlines, scenes = Affine(1, 0, 450_000, 0, -1, 40_000), [], []
    to_degrees = pyproj.Transformer.from_crs("EPSG:32636", "EPSG:4326", always_xy=True)
    for top in range(16, ground.shape[1] - height, height + 16):
        for left in range(20, ground.shape[2] - width, width):
            ground[::2, top : top + height, left : left + width] = ROOF
            ground[1, top + 2 : top + height - 2, left + 2 : left + width - 2] = ROOF
            corners = transform @ (left, top + height), transform @ (left + width, top)
            outlines.append(
                shapely.transform(shapely.box(*corners[0], *corners[1]), to_degrees.transform, interleaved=False)
            )
    folder.mkdir(parents=True, exist_ok=True)
    for number, (first, last) in enumerate(((0, 0.6), (0.4, 1))):
        left, right = (int(ground.shape[2] * share) for share in (first, last))
        scenes.append(folder / f"t{number}.tif")
        profile = {"driver": "GTiff", "width": right - left, "height": ground.shape[1], "count": 3, "dtype": "uint8"}
        place = {"crs": "EPSG:32636", "transform": transform @ Affine.translation(left, 0)}
        with rasterio.open(scenes[-1], "w", **profile, **place) as target:
            target.write(ground[:, :, left:right])
    return Country(folder, outlines, scenes)
