"""Tools to paint the sample city: roof materials, noise, drawing on a float32 RGB canvas, (3, H, W)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from shapely.geometry.base import BaseGeometry

from kit.sample.plan import Colour, Look, M, Wing

Float = npt.NDArray[np.float32]
Window = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True)
class Material:
    """A roof covering."""

    colour: Colour  # mean, RGB 0-255
    spread: float  # sigma of the log of the brightness, from roof to roof
    laid: str  # `sheets` (seams run up the slope), `tiles` (rows run along the eaves) or `cast` (no seams)


MATERIALS = {
    "zinc": Material((170, 170, 169), 0.13, "sheets"),
    "dull zinc": Material((128, 127, 124), 0.13, "sheets"),
    "rust": Material((132, 94, 72), 0.14, "sheets"),
    "maroon": Material((130, 80, 68), 0.12, "sheets"),
    "blue": Material((92, 122, 152), 0.12, "sheets"),
    "tile": Material((172, 100, 72), 0.12, "tiles"),
    "concrete": Material((158, 150, 138), 0.13, "cast"),
}


class Noise:
    """Noise fields of a scene, (H, W) float32, mean 0, sigma near 1. Drawn once; objects use random cut-outs."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        white = rng.standard_normal((height, width), dtype=np.float32)
        self.grain = cv2.GaussianBlur(white, (0, 0), 1.3) * 4.0
        self.mid = self._field(0.8) * 0.6 + self._field(2.2) * 0.8
        self.wide = self._field(6) * 0.6 + self._field(18) * 0.8

    def _field(self, grid_m: float) -> Float:
        """Returns smooth noise on a grid of `grid_m` metres."""
        rows, cols = int(self.height / (grid_m * M)) + 3, int(self.width / (grid_m * M)) + 3
        coarse = self.rng.standard_normal((rows, cols), dtype=np.float32) * np.float32(1.35)
        return np.asarray(cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_CUBIC), np.float32)

    def cut(self, kind: str, window: Window) -> Float:
        """Returns a random cut-out of `grain`, `mid` or `wide`, as large as the window."""
        height, width = (s.stop - s.start for s in window)
        row, col = self.rng.integers(0, self.height - height + 1), self.rng.integers(0, self.width - width + 1)
        piece: Float = getattr(self, kind)[row : row + height, col : col + width]
        return piece


@dataclass(frozen=True)
class Painter:
    """The canvas, and what drawing on it needs: random generator, the area's look, noise, unit vector to the sun."""

    rng: np.random.Generator
    look: Look
    noise: Noise
    canvas: Float
    sun: npt.NDArray[np.float64]

    def window(self, geometry: BaseGeometry, margin_px: float = 0) -> Window | None:
        """Returns the part of the canvas that a geometry covers; None if it lies outside."""
        x0, y0, x1, y1 = geometry.buffer(margin_px).bounds if margin_px else geometry.bounds
        rows = slice(max(0, int(y0)), min(self.noise.height, int(y1) + 1))
        cols = slice(max(0, int(x0)), min(self.noise.width, int(x1) + 1))
        return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None

    def covering(self, never: str = "") -> tuple[Float, Material]:
        """Draws one of the area's roof materials; returns its dusted colour (3,) and the material."""
        names = [name for name in self.look.materials if name != never]
        weights = np.array([self.look.materials[name] for name in names])
        material = MATERIALS[names[self.rng.choice(len(names), p=weights / weights.sum())]]
        return self.dusted(material), material

    def dusted(self, material: Material) -> Float:
        """Returns the colour (3,) of one roof of a material, mixed with the colour of the earth."""
        dust = self.rng.uniform(0.0, 0.3)
        colour = (1 - dust) * np.array(material.colour) + dust * np.array(self.look.earth[0])
        colour = (colour + self.rng.normal(0, 3, 3)) * np.exp(self.rng.normal(0, material.spread))
        return rgb(colour)

    def blend(self, window: Window, paint: Float, cover: Float) -> None:
        """Blends paint (3, h, w) into the canvas with the opacity cover (h, w), 0..1."""
        under = self.canvas[:, *window]
        under += cover * (paint - under)

    def shade(self, window: Window, depth: Float) -> None:
        """Darkens the canvas by depth (h, w), 0..1."""
        self.canvas[:, *window] *= 1 - depth


def rgb(colour: Sequence[float]) -> Float:
    """Returns a colour as an array (3,), RGB 0-255."""
    return np.asarray(colour, np.float32)


def mix(colours: tuple[Colour, ...], where: Float) -> Float:
    """Returns (3, H, W): a blend of colours, from the first where noise is low to the last where it is high."""
    level = np.clip(where * 98 + 128, 0, 255).astype(np.uint8)  # -1.3 .. 1.3 sigma
    knots = np.linspace(0, 255, len(colours))
    mixed = np.empty((3, *where.shape), np.float32)
    for band in range(3):
        table = np.interp(np.arange(256), knots, [colour[band] for colour in colours])
        mixed[band] = table.astype(np.float32)[level]
    return mixed


def tone(colour: Float, light: Float) -> Float:
    """Returns one colour (3,) under light (h, w), as (3, h, w)."""
    return np.asarray(colour[:, None, None] * light, np.float32)


def along_across(wing: Wing, window: Window) -> tuple[Float, Float]:
    """Returns the coordinates of pixel centres in a rectangle's own frame, px: along its length, across it."""
    rows, cols = window
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - wing.y)
    x = np.arange(cols.start, cols.stop, dtype=np.float32)[None, :] + np.float32(0.5 - wing.x)
    cos, sin = np.float32(np.cos(wing.angle)), np.float32(np.sin(wing.angle))
    return x * cos + y * sin, y * cos - x * sin
