"""COCO annotation files as labels of chips; files of other annotation tools are recognised, to be named in an error.

Source:
    Fields and run lengths are those of https://cocodataset.org/#format-data and of pycocotools.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from kit.console import say
from kit.errors import DataError
from kit.system.files import read_limited

LIMIT_BYTES = 1 << 29  # of a file: parsing takes several times as much memory
MOST_PIXELS = 1 << 28  # of a chip
SNIFFED_BYTES = 1 << 16  # at either end of a file
SHOWN = 5  # categories, in a notice
# words of annotation files that are not COCO: all of one set occur near the ends of a file
OTHERS = {
    "labelme": ((b'"shapes"', b'"imagePath"'), (b'"shapes"', b'"imageHeight"')),
    "VIA (VGG Image Annotator)": ((b'"_via_',), (b'"shape_attributes"',)),
    "Label Studio": ((b'"from_name"', b'"to_name"'),),
    "Pascal VOC or CVAT": ((b"<annotation",),),
}
CONVERT = "export or convert them to COCO (annotations.json), or to masks (masks/x.png)"

Side = Annotated[int, Field(ge=1, le=1 << 20)]
Identity = int | str


class _Image(BaseModel):
    id: Identity
    file_name: str
    width: Side
    height: Side


class _RunLengths(BaseModel):
    size: tuple[Side, Side]
    counts: str | list[int]


class _Annotation(BaseModel):
    image_id: Identity
    category_id: Identity | None = None
    iscrowd: int = 0
    segmentation: _RunLengths | list[list[float]] | None = None


class _Category(BaseModel):
    id: Identity
    name: str
    supercategory: str | None = None


class _Coco(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category] = []


@dataclass(frozen=True)
class DrawnMask:
    """The buildings of one chip, in pixels of the upright image."""

    width_px: int  # of the chip
    height_px: int  # of the chip
    rings: tuple[tuple[float, ...], ...] = ()  # outlines, each x0 y0 x1 y1 ... from the upper left corner
    runs: tuple[tuple[int, ...], ...] = ()  # masks as run lengths, by columns, background first

    def mask(self) -> NDArray[np.uint8]:
        """Returns the mask, (H, W) uint8: 0 background, 1 building."""
        shape = self.height_px, self.width_px
        polygons = [shapely.make_valid(shapely.Polygon(np.reshape(ring, (-1, 2)))) for ring in self.rings]
        mask = np.zeros(shape, np.uint8)
        if shapes := [polygon for polygon in polygons if not polygon.is_empty]:
            rasterio.features.rasterize(shapes, out=mask, default_value=1)
        for counts in self.runs:
            values = np.arange(len(counts)) % 2
            mask |= np.repeat(values.astype(np.uint8), counts).reshape(shape, order="F")
        return mask


def annotation_tool(file: Path) -> str:
    """Returns `COCO` or the name of another annotation format; empty for other files."""
    with file.open("rb") as source:
        text = source.read(SNIFFED_BYTES)
        source.seek(max(0, file.stat().st_size - SNIFFED_BYTES))
        text += source.read(SNIFFED_BYTES)
    for name, sets in OTHERS.items():
        if any(all(word in text for word in words) for words in sets):
            return name
    words = (b'"annotations"', b'"image_id"', b'"segmentation"')
    return "COCO" if b'"images"' in text and any(word in text for word in words) else ""


def read_coco(file: Path, where: str = "") -> dict[str, DrawnMask]:
    """Returns the drawings of a COCO file by the image's `file_name`; an image without annotations is background.

    Args:
        file: at most 512 MB.
        where: SQL condition on `category`, `supercategory` and `iscrowd` that chooses annotations; empty: all.

    Raises:
        DataError: a field is missing or wrong, an annotation has no outline or a broken one, or two images of one name.
    """
    remedy = "expected COCO with segmentation: export it again"
    try:
        coco = _Coco.model_validate_json(read_limited(file, LIMIT_BYTES, DataError, "split it"))
    except ValidationError as cause:
        error = cause.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, error["loc"]))
        raise DataError(f"{file}: {f'field {field}: ' if field else ''}{error['msg']}", remedy) from cause
    if twice := [name for name, count in Counter(image.file_name for image in coco.images).items() if count > 1]:
        raise DataError(f"{file}: {len(twice)} images are listed twice, first {twice[0]!a:.80}", "keep one of each")
    chosen = _choose(file, coco, where)
    known = {image.id for image in coco.images}
    if lost := [part for part in chosen if part.image_id not in known]:
        first = f"{lost[0].image_id!a:.80}"
        raise DataError(f"{file}: {len(lost)} annotations have no image, first of image {first}", remedy)
    if bare := [part for part in chosen if not part.segmentation]:
        raise DataError(
            f"{file}: {len(bare)} of {len(chosen)} annotations have no outline, first of image "
            f"{bare[0].image_id!a:.80}: boxes are not footprints", remedy,
        )  # fmt: skip
    parts: dict[Identity, list[_Annotation]] = defaultdict(list)
    for part in chosen:
        parts[part.image_id].append(part)
    try:
        return {image.file_name: _draw(image, parts[image.id]) for image in coco.images}
    except ValueError as cause:
        raise DataError(f"{file}: {cause}", remedy) from cause


def _choose(file: Path, coco: _Coco, where: str) -> list[_Annotation]:
    """Returns the annotations that fit a condition; without one, says so where there are several categories."""
    categories = {category.id: category for category in coco.categories}
    if not where:
        counts = Counter(categories[p.category_id].name for p in coco.annotations if p.category_id in categories)
        if len(counts) > 1:
            shown = ", ".join(f"{name!a:.40} ({count})" for name, count in counts.most_common(SHOWN))
            say(f"{file}: all categories are taken as buildings: {shown}; choose with --where \"category = '...'\"")
        return coco.annotations
    rows = [
        (at, category.name if category else None, category.supercategory if category else None, part.iscrowd)
        for at, part in enumerate(coco.annotations)
        for category in [categories.get(part.category_id) if part.category_id is not None else None]
    ]
    with sqlite3.connect(":memory:") as table:
        table.execute("CREATE TABLE annotations (at INTEGER, category TEXT, supercategory TEXT, iscrowd INTEGER)")
        table.executemany("INSERT INTO annotations VALUES (?, ?, ?, ?)", rows)
        try:
            chosen = table.execute(f"SELECT at FROM annotations WHERE ({where}) ORDER BY at").fetchall()
        except sqlite3.Error as cause:
            raise DataError(
                f"{file}: --where {where!r} cannot be applied: {cause}",
                "expected a condition such as category = 'building' on category, supercategory, iscrowd",
            ) from cause
    return [coco.annotations[at] for (at,) in chosen]


def _draw(image: _Image, parts: Sequence[_Annotation]) -> DrawnMask:
    """Returns the drawing of an image."""
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        raise ValueError(f"image {image.file_name!a:.80} has {pixels:,} px, expected at most {MOST_PIXELS:,}")
    rings: list[tuple[float, ...]] = []
    runs: list[tuple[int, ...]] = []
    for part in parts:
        outline = part.segmentation
        if isinstance(outline, _RunLengths):
            counts = decode_counts(outline.counts) if isinstance(outline.counts, str) else outline.counts
            if outline.size != (image.height, image.width) or sum(counts) != pixels or min(counts, default=0) < 0:
                raise ValueError(f"the run lengths of an annotation of {image.file_name!a:.80} do not fill the image")
            runs.append(tuple(counts))
        else:
            for ring in outline or ():
                if len(ring) < 6 or len(ring) % 2 or not np.isfinite(ring).all():
                    raise ValueError(f"an outline of {image.file_name!a:.80} is not a list of at least three x, y")
                rings.append(tuple(ring))
    return DrawnMask(image.width, image.height, tuple(rings), tuple(runs))


def decode_counts(text: str) -> list[int]:
    """Returns the run lengths of COCO's compressed form: 5 bits a character, each count less the one before the last.

    Raises:
        ValueError: it is no such text.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"{text[:20]!a} is not a compressed list of run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError(f"{text[:20]!a} is an incomplete list of run lengths")
    return counts


def image_named(name: str, images: Iterable[PurePosixPath], beside: PurePosixPath) -> PurePosixPath | None:
    """Returns the image that an annotation file means, or None where it is missing.

    Args:
        name: `file_name` in the annotation file: the end of a path, perhaps of another machine.
        images: with that file's bare name.
        beside: the annotation file: of several images, one that lies nearer is meant.

    Raises:
        DataError: several images fit.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts

    def fit(image: PurePosixPath) -> tuple[int, int]:
        return _shared(image.parts[::-1], parts[::-1]), _shared(image.parts, beside.parts)

    ranked = sorted(images, key=fit, reverse=True)
    if len(ranked) > 1 and fit(ranked[0]) == fit(ranked[1]):
        raise DataError(
            f"{beside}: {name!a:.80} is {ranked[0]} or {ranked[1]}", "write the folder into its `file_name`"
        )
    return ranked[0] if ranked else None


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Returns how many first parts are equal."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
