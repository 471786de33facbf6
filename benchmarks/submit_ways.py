"""The ways of `kit submit` beside each other on chips with truth: seconds, and the Jaccard index, also at seams.

    python benchmarks/submit_ways.py --weights weights/NAME.pt [--test TEST --truth TRUTH] [--rounds 1]
        [--few [--copies 1]]

Ways: as it is; `--adaptive`; `--mosaic`; `--scale`; and all of them. A call that
tunes is not counted. Then each way is called once, `first s`: an adaptive one looks at some chips in full, and
remembers what they bear. Then come the rounds, their order turned from one to the next; `s` are their medians. All
ways decode, write and check alike; `--mosaic` and `--scale` find the mosaics with each call, `--scale` estimates
their resolution. At seams are the pixels of a chip within SEAM_PX of a side that `kit mosaic` lays beside another
chip. Without `--test` it is the sample. Where TRUTH has a chips.csv with `gsd_m` the true resolutions stand beside
the estimated ones. With `--copies`, up to 8, each chip comes so often, flipped and turned, as in a larger test set:
what a call costs beside its chips, and warming up, counts the less.
"""

import argparse
import csv
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
import torch

from kit.data.masks import Counts, count, pool
from kit.data.sources.chips import find_chips
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.freeze.ensemble import view
from kit.deploy.mosaics.find import find_mosaics
from kit.deploy.mosaics.mosaic import RESOLUTIONS, Mosaic
from kit.deploy.submission.mask_tiff import decode_mask
from kit.deploy.submission.score import score
from kit.deploy.submission.submit import SubmitOptions, submit
from kit.deploy.weights.load import read_card
from kit.sample.sample import draw_sample

SEAM_PX = 64
ADAPTIVE = EngineOptions(adaptive=True)
WAYS = {
    "full": SubmitOptions(),
    "--adaptive": SubmitOptions(ADAPTIVE),
    "--mosaic": SubmitOptions(mosaic=True),
    "--scale": SubmitOptions(scale=True),
    "--mosaic --scale": SubmitOptions(mosaic=True, scale=True),
    "--mosaic --scale --adaptive": SubmitOptions(ADAPTIVE, mosaic=True, scale=True),
}


def seams(mosaics: list[Mosaic], out: Path, truth: Path) -> Counts:
    """Returns the counts of the pixels near sides that lie beside another chip."""
    found = []
    for mosaic in mosaics:
        for placed in mosaic.placed:
            mask, true = (
                decode_mask((folder / f"{placed.chip.id}.tif").read_bytes(), placed.chip.id) for folder in (out, truth)
            )
            near = np.zeros(mask.shape, bool)
            sides = {(-1, 0): np.s_[:SEAM_PX], (1, 0): np.s_[-SEAM_PX:], (0, -1): np.s_[:, :SEAM_PX]}
            for (down, right), side in (sides | {(0, 1): np.s_[:, -SEAM_PX:]}).items():
                near[side] |= (placed.row + down, placed.col + right) in mosaic.at
            found.append(count(mask[near] == 1, true[near]))
    return pool(found)


def copied(given: Path, out: Path, copies: int) -> Path:
    """Returns a folder with as many copies of each .tif, each flipped and turned in its own way."""
    out.mkdir()
    for path in sorted(given.glob("*.tif")):
        with rasterio.open(path) as file:
            image, profile = torch.from_numpy(file.read()[None]), file.profile
        for code in range(copies):
            turned = view(image, code)[0].numpy()
            size = {"height": turned.shape[1], "width": turned.shape[2]}
            with rasterio.open(out / f"{path.stem}_view{code}.tif", "w", **{**profile, **size}) as file:
                file.write(turned)
    return out


def scenes_of(truth: Path) -> dict[str, str]:
    """Returns the true resolution of each chip, where it is told."""
    table = truth / "chips.csv"
    rows = list(csv.DictReader(table.read_text().splitlines())) if table.is_file() else []
    return {row["chip"]: row.get("gsd_m", "") for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--truth", type=Path, help="a folder of masks")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--few", action="store_true", help="full and --adaptive alone")
    parser.add_argument("--copies", type=int, default=1, help="of each chip, with --few")
    options = parser.parse_args()
    if options.copies > 1 and not options.few:
        parser.error("--copies needs --few: chips that are there twice make no mosaics")
    if not 1 <= options.copies <= 8:
        parser.error("--copies: there are 8 ways to flip and turn a chip")
    card = read_card(options.weights)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.test:
            test, truth = options.test, options.truth
        else:
            draw_sample(folder / "sample")
            test, truth = folder / "sample/test", folder / "sample/test_labels"
        if options.copies > 1:
            test, truth = (copied(given, folder / name, options.copies) for given, name in ((test, "x"), (truth, "y")))
        chips = find_chips(test)
        mosaics = None if options.few else find_mosaics(chips)
        ways = dict(list(WAYS.items())[: 2 if options.few else None])
        os.environ["KIT_CACHE"] = str(folder / "cache")
        submit(test, options.weights, folder / "tuned")
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
            for name in order:
                start = time.perf_counter()
                submit(test, options.weights, folder / f"{number}{name.replace(' ', '')}", ways[name])
                seconds[name].append(time.perf_counter() - start)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
        print(f"{len(chips)} chips, {len(card.members)} networks, views {card.views}, {card.gsd_m:.3f} m\n")
        scenes = list(score(folder / "tuned", truth).per_scene())
        head = [
            "way",
            "first s",
            "s",
            *(scenes or []),
            "pooled",
            *([f"within {SEAM_PX} px of seams"] if mosaics else []),
        ]
        print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
        for name in ways:
            out = folder / f"0{name.replace(' ', '')}"
            scored = score(out, truth)
            per_scene = [f"{counts.jaccard:.4f}" for counts in scored.per_scene().values()]
            times = [f"{seconds[name][0]:.1f}", f"{statistics.median(seconds[name][1:]):.1f}"]
            at_seams = [f"{seams(mosaics, out, truth).jaccard:.4f}"] if mosaics else []
            scores = [*per_scene, f"{scored.pooled:.4f}", *at_seams]
            print(f"| {' | '.join([f'`{name}`' if name != 'full' else name, *times, *scores])} |")
        if not mosaics:
            return
        true = scenes_of(truth)
        print("\n| mosaic | chips | true m | estimated m | from | to |\n|---|---|---|---|---|---|")
        for row in csv.DictReader((folder / "0--scale" / RESOLUTIONS).read_text().splitlines()):
            named = {true.get(p.chip.id, "") for m in mosaics if m.name == row["mosaic"] for p in m.placed}
            cells = [row["mosaic"], row["chips"], " ".join(sorted(named)), row["gsd_m"], row["low_m"], row["high_m"]]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
