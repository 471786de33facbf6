"""A stand-in network, tiny rasters and a tiny export for the deploy room's tests."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from torch import Tensor, nn

from kit.deploy.proof.images import SMALL_CASES, Case
from kit.deploy.weights.card import Member
from kit.pipeline.export import Exported, ExportRequest, export_ensemble

ODD = (*SMALL_CASES, Case(190, 257, channels=4))


class TinyNet(nn.Module):
    """As kit's networks: normalises inside, a stride, a skip and an upsampling; sizes are multiples of 16 px."""

    def __init__(self, seed: int = 0, pad_multiple: int = 16, channels: int = 2) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.pad_multiple = pad_multiple
        self.register_buffer("mean", torch.tensor([123.0, 116.0, 103.0]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([58.0, 57.0, 57.5]).view(3, 1, 1))
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, stride=pad_multiple // 2, padding=1), nn.ReLU())
        self.head = nn.Conv2d(11, channels, 3, padding=1)
        self.down[1].running_mean.uniform_(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.float() - self.mean) / self.std
        down = self.down(x)
        deep = nn.functional.interpolate(self.deep(down), scale_factor=self.pad_multiple / 2, mode="bilinear")
        up = nn.functional.interpolate(down + deep, scale_factor=2.0, mode="nearest")
        return 3 * self.head(torch.cat([up, x], dim=1))


def record(fold: int = 0) -> Member:
    return Member("tiny", fold, 7, "ab" * 32, 0.5)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write_tiff(path: Path, image: np.ndarray, **profile: Any) -> Path:
    """Writes (H, W) or (H, W, C)."""
    bands = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **profile
    ) as dataset:
        dataset.write(bands)
    return path


def export_tiny(
    folder: Path,
    name: str = "tiny",
    views: str = "flips",
    seeds: tuple[int, ...] = (1, 2),
    cases: Sequence[Case] = ODD,
    others: tuple[str, ...] = (),
    weights: tuple[float, ...] = (),
    sha256s: tuple[str, ...] = (),
) -> Exported:
    members = [TinyNet(seed) for seed in seeds]
    records = [record(fold) for fold in range(len(seeds))]
    if sha256s:
        records = [replace(each, sha256=sha256) for each, sha256 in zip(records, sha256s, strict=True)]
    request = ExportRequest(name, "tiny", views, 0.5, 0.15, [noise(40, 48)], cases, others, weights=weights)
    return export_ensemble(folder, members, records, request)


def left_in(folder: Path) -> list[Path]:
    """What lies in a folder, lock files aside."""
    return [path for path in folder.iterdir() if path.suffix != ".lock"]
