"""Masks as run lengths, as Kaggle takes them: column by column, counted from 1, in a CSV `ImageId,EncodedPixels`."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kit.errors import SubmissionError
from kit.system.files import replacing

HEADER = ["ImageId", "EncodedPixels"]
TABLE = "rle.csv"  # in the folder of a submission
PLAIN = re.compile(r"\s*(\d{1,18}\s+)*(\d{1,18})?", re.ASCII)
LARGEST_FIELD = 2**28  # characters of one mask's runs; the csv module's own bound is 131,072


def encode(mask: NDArray[np.uint8]) -> str:
    """Returns `start length start length ...` of the runs of building; empty without building.

    Pixels are numbered down the first column, then down the second, from 1 on.

    Args:
        mask: uint8 (H, W) of 0 and 1.
    """
    flat = np.concatenate([[0], mask.T.ravel() == 1, [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1  # in turns: where a run begins, and the first pixel behind it
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges.tolist()))


def decode(runs: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns the mask, uint8 (H, W) of 0 and 1.

    Args:
        runs: as `encode` writes them.
        size: height and width, px.

    Raises:
        SubmissionError: they are not pairs of numbers, are out of order, overlap, leave the image, or are too many.
    """
    height, width = size
    pixels = height * width
    if len(runs) > (pixels + 2) * (len(str(pixels)) + 1):  # checked before they take memory
        raise _wrong(f"{len(runs):,} characters, more than {pixels:,} pixels need")
    if not PLAIN.fullmatch(runs):
        raise _wrong(f"{runs[:40]!r}, which is not a list of numbers")
    words = runs.split()
    if len(words) % 2:
        raise _wrong(f"{len(words)} numbers, expected pairs of start and length")
    numbers = np.array([min(int(word), pixels + 1) for word in words], np.int64).reshape(-1, 2)
    starts, ends = numbers[:, 0] - 1, numbers.sum(axis=1) - 1
    if (numbers < 1).any():
        raise _wrong("a start or length of 0")
    if (ends > pixels).any():
        raise _wrong(f"a run that ends after the last of {pixels} pixels")
    if (starts[1:] < ends[:-1]).any():
        raise _wrong("runs that overlap or are out of order")
    steps = np.zeros(pixels + 1, np.int8)
    steps[starts] += 1
    steps[ends] -= 1  # separately: a run may begin where another ends
    return steps[:-1].cumsum(dtype=np.int8).astype(np.uint8).reshape(width, height).T.copy()


def _wrong(what: str) -> SubmissionError:
    return SubmissionError(what, "expected start length start length ..., column by column, counted from 1")


def write_rle(masks: Iterable[tuple[str, NDArray[np.uint8]]], path: Path) -> None:
    """Writes one row per chip; equal masks give equal bytes.

    Args:
        masks: id and mask of each chip, uint8 (H, W) of 0 and 1.
        path: appears when it is whole.
    """
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(HEADER)
        rows.writerows((chip, encode(mask)) for chip, mask in masks)


def read_rle(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the id and the runs of each chip, in the table's order.

    Raises:
        SubmissionError: the table is missing, has other columns, or is damaged.
    """
    hint = f"expected a CSV with the columns {','.join(HEADER)}"
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FIELD))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            if (header := next(rows, [])) != HEADER:
                raise SubmissionError(f"{path} begins with {','.join(header)[:80]!r}", hint)
            for row in rows:
                if len(row) != len(HEADER) or not row[0].isprintable():
                    raise SubmissionError(f"line {rows.line_num} of {path} has {len(row)} columns", hint)
                yield row[0], row[1]
    except (OSError, ValueError, csv.Error) as cause:
        raise SubmissionError(f"cannot read {path}: {cause}", hint) from cause
