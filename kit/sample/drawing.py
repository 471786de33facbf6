"""Paints a scene of the sample city from its ground plan, as drone imagery that colour alone cannot segment.

Yards, fields and courts have the colours of roofs. Roofs differ by straight outlines, shadows, the light on their
facets and the seams of their sheets. The canvas is float32 RGB, 0-255, (3, H, W).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from rasterio.features import rasterize
from shapely import Point
from shapely.affinity import translate

from kit.sample.paint import MATERIALS, Float, Material, Noise, Painter, Window, along_across, mix, rgb, tone
from kit.sample.plan import GSD_M, CityPlan, House, Look, M, Street, Wing, plan_scene

Bytes = npt.NDArray[np.uint8]


CARS = ((225, 226, 228), (60, 62, 66), (150, 40, 36), (170, 172, 176))
RUST = (116, 76, 54)
FIELDS = {"bare": 0.45, "furrows": 0.3, "court": 0.15, "rubble": 0.1}  # cover of an open plot: probability
YARDS = {"bare": 0.7, "walled": 0.22, "rubble": 0.08}  # surroundings of a house: probability
BORDER_STEP_PX = 16
FACET_LIGHT = 0.22  # a facet towards the sun is brighter than a flat roof by this share, the opposite one darker


@dataclass(frozen=True)
class Drawing:
    """A drawn scene."""

    image: Bytes  # (H, W, 4) uint8, RGB and alpha; alpha is 255, or 0 where RGB is black
    truth: Bytes  # (H, W) uint8, 1 where the centre of a pixel lies on a roof, 255 where alpha is 0, else 0
    plan: CityPlan  # the ground plan, px; the outlines of its houses are the footprints


def draw_scene(rng: np.random.Generator, look: Look, height: int, width: int, *, border: bool = True) -> Drawing:
    """Returns a drawn scene of `height` x `width` px of 0.075 m; without `border`, alpha is 255 everywhere."""
    plan = plan_scene(rng, look, height, width)
    angle = rng.uniform(0, 2 * np.pi)
    noise = Noise(rng, height, width)
    painter = Painter(rng, look, noise, _ground(rng, look, noise), np.array([np.cos(angle), np.sin(angle)]))
    for plot in plan.fields:
        _paint_plot(painter, plot, FIELDS)
    for plot in plan.yards:
        _paint_plot(painter, plot, YARDS)
    _paint_streets(painter, plan.streets)
    _paint_cars(painter, plan)
    _cast_shadows(painter, plan, reach=rng.uniform(0.75, 0.95))
    roofs = _roof_numbers(plan, height, width)
    for number, house in enumerate(plan.houses, 1):
        _paint_roof(painter, house, roofs, number)
    for x, y, radius in plan.trees:
        _paint_tree(painter, x, y, radius)
    alpha = _alpha(rng, height, width) if border else np.full((height, width), 255, np.uint8)
    image = cv2.merge([*_expose(painter), alpha])
    image[alpha == 0] = 0
    return Drawing(np.asarray(image, np.uint8), np.where(alpha == 0, 255, roofs > 0).astype(np.uint8), plan)


def draw_at(rng: np.random.Generator, look: Look, height: int, width: int, gsd_m: float) -> tuple[Bytes, Bytes]:
    """Returns a scene and its true mask at another ground resolution: drawn at 0.075 m, then resampled.

    Args:
        rng: random generator; the same state gives the same scene.
        look: of the area.
        height, width: of the result, px.
        gsd_m: metres per pixel of the result.

    Returns:
        The image, (H, W, 4) uint8 RGBA; and the mask, (H, W) uint8: 1 where more than half of a pixel is roof, 255
        where alpha is 0. Alpha is 0 where any part of a pixel has no data.
    """
    if gsd_m == GSD_M:
        drawing = draw_scene(rng, look, height, width)
        return drawing.image, drawing.truth
    drawing = draw_scene(rng, look, *(round(px * gsd_m / GSD_M) for px in (height, width)))
    how = cv2.INTER_AREA if gsd_m > GSD_M else cv2.INTER_LINEAR
    image = np.asarray(cv2.resize(drawing.image, (width, height), interpolation=how), np.uint8)
    roof = cv2.resize((drawing.truth == 1).astype(np.float32), (width, height), interpolation=how)
    covered = cv2.resize((drawing.truth != 255).astype(np.float32), (width, height), interpolation=how) > 0.999
    image[..., 3] = np.where(covered, 255, 0)
    image[~covered] = 0
    return image, np.where(covered, roof > 0.5, 255).astype(np.uint8)


def _roof_numbers(plan: CityPlan, height: int, width: int) -> npt.NDArray[np.int32]:
    """Returns (H, W) int32: the number, from 1, of the house whose roof contains the pixel's centre; else 0."""
    shapes = [(house.outline, number) for number, house in enumerate(plan.houses, 1)]
    if not shapes:
        return np.zeros((height, width), np.int32)
    return np.asarray(rasterize(shapes, out_shape=(height, width), dtype="int32"))


def _ground(rng: np.random.Generator, look: Look, noise: Noise) -> Float:
    """Returns bare earth with patches of grass, (3, H, W)."""
    canvas = mix(look.earth, noise.wide)
    patches = noise.wide[::-1] * np.float32(0.7) + noise.mid * np.float32(0.35)
    level = np.quantile(patches[::16, ::16], 1 - look.green)
    cover = np.clip((patches - np.float32(level)) * 2 + np.float32(0.5), 0, np.float32(0.9))
    grass = mix(look.grass, noise.mid[:, ::-1])
    grass -= canvas
    grass *= cover
    canvas += grass
    canvas *= 1 + np.float32(0.06) * noise.grain + np.float32(0.05) * noise.mid[::-1, ::-1]
    return canvas


def _paint_plot(painter: Painter, plot: Wing, kinds: dict[str, float]) -> None:
    """Paints a yard or a field in the colours of roofs; `kinds` gives the probability of each kind."""
    window = painter.window(plot.outline(), margin_px=2 * M)
    if window is None:
        return
    rng, noise = painter.rng, painter.noise
    kind = rng.choice(list(kinds), p=list(kinds.values()))
    along, across = along_across(plot, window)
    square = np.maximum(np.abs(along) - plot.length / 2, np.abs(across) - plot.width / 2)
    straight = kind in ("court", "walled")
    if straight or rng.random() < 0.5:
        edge = square
    else:
        edge = (np.sqrt((along / plot.length) ** 2 + (across / plot.width) ** 2) - 0.5) * min(plot.length, plot.width)
    ragged = noise.cut("mid", window) * 0.5 + noise.cut("wide", window) * 1.0
    edge = edge + (0.12 if straight else rng.uniform(0.5, 1.1)) * M * ragged
    colour, _ = painter.covering(never="blue" if kinds is YARDS else "")
    light = 1 + 0.2 * np.tanh(noise.cut("wide", window)) + 0.05 * noise.cut("mid", window)
    light += (0.14 if kind == "rubble" else 0.06) * noise.cut("grain", window)
    if kind == "furrows":
        light += 0.11 * np.sin(along * (2 * np.pi / (rng.uniform(1.0, 1.6) * M)) + 0.7 * noise.cut("mid", window))
    if kind == "court":
        inset = np.abs(square + rng.uniform(0.8, 1.5) * M)
        light += 0.25 * (np.minimum(inset, np.abs(along)) < 0.08 * M)
    if kind == "walled":
        light += 0.25 * (np.abs(square) < 0.12 * M)
    painter.blend(window, tone(colour, light), np.clip(0.5 - edge / ((0.3 if straight else 0.7) * M), 0, 0.95))


def _paint_streets(painter: Painter, streets: list[Street]) -> None:
    """Paints the unpaved streets, then the paved ones; all of a kind at once."""
    noise = painter.noise
    for asphalt in (False, True):
        lanes = np.zeros((noise.height, noise.width), np.uint8)
        for street in (street for street in streets if street.asphalt == asphalt):
            points = np.round(np.array(street.line.coords) * 16).astype(np.int32)
            cv2.polylines(lanes, [points], False, 255, int(street.width), cv2.LINE_AA, shift=4)
        cv2.GaussianBlur(lanes, (0, 0), 0.3 * M, dst=lanes)
        near = np.flatnonzero(lanes)  # a sixth of the scene: faster than painting all of it
        wide, mid, grain = (field.ravel()[near] for field in (noise.wide, noise.mid, noise.grain))
        soft = lanes.ravel()[near].astype(np.float32) / 255 + np.float32(0.05 if asphalt else 0.16) * mid
        cover = np.clip((soft - np.float32(0.5)) * 5 + np.float32(0.5), 0, 1)
        colour = rgb(MATERIALS["dull zinc"].colour if asphalt else painter.look.earth[-1])
        colour *= np.exp(painter.rng.normal(0, 0.1))
        light = 1 + np.float32(0.09) * wide - np.float32(0.04) * mid + np.float32(0.05) * grain
        for band, level in zip(painter.canvas.reshape(3, -1), colour, strict=True):
            band[near] += cover * (level * light - band[near])


def _paint_cars(painter: Painter, plan: CityPlan) -> None:
    """Parks cars along the streets."""
    rng = painter.rng
    for street in plan.streets:
        for _ in range(rng.integers(1, 5)):
            at = rng.uniform(0, street.line.length)
            here, ahead = street.line.interpolate(at), street.line.interpolate(at + 1)
            angle = float(np.arctan2(ahead.y - here.y, ahead.x - here.x))
            side = rng.choice([-0.25, 0.25]) * street.width
            car = Wing(here.x - side * np.sin(angle), here.y + side * np.cos(angle), angle, 4.2 * M, 1.8 * M)
            window = painter.window(car.outline(), margin_px=M)
            if window is not None:
                _paint_car(painter, car, window)


def _paint_car(painter: Painter, car: Wing, window: Window) -> None:
    colour = rgb(CARS[painter.rng.integers(len(CARS))])
    along, across = along_across(car, window)
    rows, cols = (s.stop - s.start for s in window)
    inside = (np.abs(along) < car.length / 2) & (np.abs(across) < car.width / 2)
    glass = inside & (np.abs(np.abs(along + 0.25 * M) - M) < 0.2 * M)
    shift = np.column_stack([np.eye(2), -painter.sun * 0.7 * M])
    shade = cv2.warpAffine(inside.astype(np.float32), shift, (cols, rows))
    painter.shade(window, np.asarray(0.5 * shade, np.float32))
    painter.blend(window, tone(colour, np.where(glass, 0.35, 1)), inside.astype(np.float32))


def _cast_shadows(painter: Painter, plan: CityPlan, reach: float) -> None:
    """Paints the shadows of the houses; a shadow is `reach` times as long as the house is high."""
    shade = np.zeros((painter.noise.height, painter.noise.width), np.uint8)
    for house in plan.houses:
        x, y = -painter.sun * house.height_m * reach * M
        for wing in house.wings:
            outline = wing.outline()
            swept = outline.union(translate(outline, x, y)).convex_hull
            cv2.fillPoly(shade, [np.round(np.array(swept.exterior.coords) * 16).astype(np.int32)], 255, shift=4)
    cv2.GaussianBlur(shade, (0, 0), 1.5, dst=shade)
    near = np.flatnonzero(shade)
    cover = shade.ravel()[near].astype(np.float32) / 255
    for band, depth in zip(
        painter.canvas.reshape(3, -1), (0.58, 0.55, 0.49), strict=True
    ):  # shadows are blue: they are lit by the sky
        band[near] *= 1 - np.float32(depth) * cover


def _paint_roof(painter: Painter, house: House, roofs: npt.NDArray[np.int32], number: int) -> None:
    """Paints one roof on exactly the pixels that have its number."""
    window = painter.window(house.outline)
    if window is None:
        return
    rng, noise = painter.rng, painter.noise
    colour, material = painter.covering()
    if house.roof == "flat":
        material = MATERIALS["concrete"]
        colour = painter.dusted(material)
    light, seam = _facets(painter, house, window)
    light = light * (1 + 0.05 * noise.cut("mid", window) if house.roof == "flat" else _seams(rng, material, *seam))
    inside = (roofs[window] == number).astype(np.uint8)
    rim = inside - cv2.erode(inside, np.ones((5, 5), np.uint8))
    light = light * np.where(rim > 0, 1.18 if house.roof == "flat" else 0.86, 1)
    light = light + 0.015 * noise.cut("grain", window)
    paint = tone(colour, light)
    if material.laid == "sheets" and rng.random() < 0.5:
        rust = np.clip(noise.cut("mid", window) * 0.8 + rng.uniform(-1.2, 0.0), 0, 0.75)
        paint += rust * (tone(rgb(RUST), light) - paint)
    painter.blend(window, paint, inside.astype(np.float32))


def _facets(painter: Painter, house: House, window: Window) -> tuple[Float, tuple[Float, Float]]:
    """Returns the light on each pixel's facet, near 1, and its coordinates (along the eaves, up the slope), px."""
    shape = tuple(s.stop - s.start for s in window)
    top = np.full(shape, -np.inf, np.float32)
    light, eaves, slope = np.ones(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for wing in house.wings:
        along, across = along_across(wing, window)
        to_side, to_end = wing.width / 2 - np.abs(across), wing.length / 2 - np.abs(along)
        inside = np.minimum(to_side, to_end) > -0.8
        end = (to_end < to_side) if house.roof == "hip" else np.zeros(shape, bool)
        rise = np.where(end, to_end, to_side)
        if house.roof == "lean":
            rise, facing = wing.width / 2 - across, np.ones(shape, np.float32)
        else:
            facing = np.sign(across)
        axis = np.array([np.cos(wing.angle), np.sin(wing.angle)])
        sun_along, sun_across = float(axis @ painter.sun), float(axis[0] * painter.sun[1] - axis[1] * painter.sun[0])
        lit = 1 + FACET_LIGHT * np.where(end, np.sign(along) * sun_along, facing * sun_across)
        ridge = (np.abs(across) < 0.13 * M) & ~end & (house.roof in ("gable", "hip"))
        lit = np.where(ridge, lit * 1.1, lit) if house.roof != "flat" else np.ones(shape)
        higher = inside & (rise > top)
        top = np.where(higher, rise, top)
        light = np.where(higher, lit, light).astype(np.float32)
        eaves = np.where(higher, np.where(end, across, along), eaves)
        slope = np.where(higher, rise, slope)
    return light, (eaves, slope)


def _seams(rng: np.random.Generator, material: Material, eaves: Float, slope: Float) -> Float:
    """Returns the relief of the roof covering as a light factor near 1: seams of sheets or rows of tiles."""
    if material.laid == "cast":
        return np.ones_like(eaves)
    across, length_m = (eaves, rng.uniform(0.7, 0.95)) if material.laid == "sheets" else (slope, 0.6)
    strips = np.floor(across / (length_m * M)).astype(np.int64)
    courses = np.floor(slope / (2.4 * M)).astype(np.int64)
    tint = rng.normal(0, 0.035, 4096)[(strips * 31 + courses * 7) % 4096]
    wave = 0.085 * np.sin(across * (2 * np.pi / (length_m * M)))
    return np.asarray(1 + wave + tint, np.float32)


def _paint_tree(painter: Painter, x: float, y: float, radius: float) -> None:
    """Paints a tree and its shadow."""
    rng, noise = painter.rng, painter.noise
    window = painter.window(Point(x, y), margin_px=1.8 * radius)
    if window is None:
        return
    dx, dy = along_across(Wing(x, y, 0, 0, 0), window)
    crown = 0.22 * radius * noise.cut("mid", window)
    sx, sy = -painter.sun * 0.5 * radius
    shade = np.clip(0.5 - (np.hypot(dx - sx, dy - sy) + crown - 0.9 * radius) / (0.3 * M), 0, 1)
    painter.shade(window, 0.5 * shade)
    cover = np.clip(0.5 - (np.hypot(dx, dy) + crown - 0.9 * radius) / (0.2 * M), 0, 1)
    grass = rgb(painter.look.grass[rng.integers(len(painter.look.grass))])
    leaf = grass * rgb((0.62, 0.72, 0.6)) * np.float32(np.exp(rng.normal(0, 0.12)))
    light = 1 + 0.35 * (dx * painter.sun[0] + dy * painter.sun[1]) / radius
    light = light + 0.18 * noise.cut("grain", window) + 0.14 * noise.cut("mid", window)
    painter.blend(window, tone(leaf, light), cover.astype(np.float32))


def _alpha(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """Returns alpha, (H, W) uint8: 0 in the border, else 255."""
    steps = border_steps(rng, height, width)
    return steps.repeat(BORDER_STEP_PX, axis=0).repeat(BORDER_STEP_PX, axis=1)[:height, :width]


def border_steps(rng: np.random.Generator, height: int, width: int) -> Bytes:
    """Returns alpha per 16 x 16 px, (H / 16, W / 16) uint8, rounded up: 0 in a slanted border on two sides, else 255.

    WEBP codes colours in blocks of 16 px: the steps keep the border exactly black.
    """
    rows = np.arange(-(-height // BORDER_STEP_PX))[:, None]
    cols = np.arange(-(-width // BORDER_STEP_PX))[None, :]
    alpha = np.full((rows.size, cols.size), 255, np.uint8)
    for side in rng.choice(4, 2, replace=False):
        depth, along = ((rows, cols), (cols, rows), (rows[::-1], cols), (cols[:, ::-1], rows))[side]
        steps = rng.uniform(0, 2.5, along.shape)
        alpha[depth < steps + along * rng.uniform(0.02, 0.08)] = 0
    return alpha


def _expose(painter: Painter) -> list[Bytes]:
    """Returns the canvas as a photograph, three bands (H, W) uint8: uneven light, slight blur, sensor noise."""
    rng, noise, canvas = painter.rng, painter.noise, painter.canvas
    rows = np.linspace(-1, 1, noise.height, dtype=np.float32)[:, None]
    cols = np.linspace(-1, 1, noise.width, dtype=np.float32)[None, :]
    tilt = rng.uniform(-0.05, 0.05, 2).astype(np.float32)
    white = rng.normal(1, 0.015, 3).astype(np.float32)
    light = 1 + tilt[0] * rows + tilt[1] * cols
    sensor = rng.standard_normal((noise.height, noise.width), dtype=np.float32) * 2
    bands = []
    for band, gain in zip(canvas, white, strict=True):
        band *= light
        exposed = cv2.GaussianBlur(band, (0, 0), 0.7) * gain + sensor
        bands.append(np.clip(exposed, 1, 255).astype(np.uint8))
    return bands
