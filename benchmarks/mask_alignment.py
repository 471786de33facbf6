"""How well the masks that `kit prepare` cuts sit on the roofs.

    python benchmarks/mask_alignment.py CATALOG                a catalogue, prepared for the while; a minute
    python benchmarks/mask_alignment.py --data-root ROOT       the data set of a working root

Agreement of outlines and image edges, 0 to 1 (`alignment.py` says how it is measured), per scene: of the masks
where they are; what is lost at least, and by which shift, if they move so many px in any direction (all whole-pixel
shifts of that length, to less than 1 px longer); the best shift within 6 px either way; and the best shift after all
masks have been moved on purpose, which shows that a wrong mask is found.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from alignment import Pair, agreements, best_shift, read_pair, ring

from kit.data.index import read_index
from kit.data.tiles.prepare import prepare
from kit.paths import Paths

LENGTHS_PX = (3, 4, 6, 8, 12)
SPOILED = (4, 0)  # to the right, down, px: as labels drawn on another image may lie


def pairs_of(tiles: pd.DataFrame, moved: tuple[int, int] = (0, 0)) -> Iterator[Pair]:
    """Yields image and mask of tiles with buildings, the masks moved by so many px to the right and down."""
    for image, mask in tiles.loc[tiles["building_fraction"] > 0, ["image", "mask"]].itertuples(index=False):
        rgb, truth = read_pair(image, mask)
        yield rgb, np.roll(truth, moved[::-1], axis=(0, 1))  # what comes in at the other side is too near to count


def losses(tiles: pd.DataFrame, lengths_px: Sequence[int]) -> tuple[float, list[tuple[float, tuple[int, int]]]]:
    """Returns the agreement without a shift, and per length the least loss and the shift that loses it."""
    rings = [ring(length) for length in lengths_px]
    here, *there = agreements(pairs_of(tiles), [(0, 0), *(shift for shifts in rings for shift in shifts)])
    least, at = [], 0
    for shifts in rings:
        lost = [here - found for found in there[at : at + len(shifts)]]
        least.append(min(zip(lost, shifts, strict=True)))
        at += len(shifts)
    return here, least


def print_table(index: pd.DataFrame) -> None:
    heads = " | ".join(f"least loss at {length} px" for length in LENGTHS_PX)
    columns = (
        f"| scene | outline, px | agreement | {heads} | best shift (gain) | masks moved by {SPOILED}: best shift |"
    )
    print(columns + "\n|" + "---|" * (columns.count("|") - 1))
    for (area, scene), tiles in index.groupby(["area", "scene"]):
        best, spoiled = best_shift(pairs_of(tiles)), best_shift(pairs_of(tiles, SPOILED))
        if best is None or spoiled is None:
            print(f"| {area}/{scene} | 0 |" + " |" * (len(LENGTHS_PX) + 3))
            continue
        here, least = losses(tiles, LENGTHS_PX)
        cells = " | ".join(f"{lost:.3f} {shift}" for lost, shift in least)
        print(
            f"| {area}/{scene} | {best.n_px} | {here:.3f} | {cells} | ({best.dx}, {best.dy}) ({best.gain:.3f}) "
            f"| ({spoiled.dx}, {spoiled.dy}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("catalog", nargs="?", help="scenes and footprints, as for kit prepare")
    parser.add_argument(
        "--data-root", type=Path, help="a working root with a prepared data set, in place of a catalogue"
    )
    options = parser.parse_args()
    if (options.catalog is None) == (options.data_root is None):
        parser.error("give a catalogue or --data-root, one of them")
    with TemporaryDirectory() as folder:
        paths = Paths(options.data_root or Path(folder))
        if options.catalog is not None:
            prepare(options.catalog, paths)
        print_table(read_index(paths)[1])


if __name__ == "__main__":
    main()
