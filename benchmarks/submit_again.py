"""Seconds of `kit submit` on a finished submission of many small chips: nothing is left to predict.

    python benchmarks/submit_again.py [--chips 11481] [--side 32] [--keep FOLDER]    minutes on 2 cores

The chips are cut from one drawn image, in rows, so that those of 64 px and more join to a mosaic; two tiny networks
with random weights predict them. Each way is called twice, as a process of its own: `first` predicts, `again` finds all
done. Beside them: Python's start with torch's import (`import torch` alone), and `kit check-submission` of the archive.
With `--keep` the folder stays, and a second run of this script measures `again` and the check alone.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import rasterio
import torch
from torch import Tensor, nn

from kit.deploy.proof.images import Case
from kit.deploy.weights.card import Member
from kit.pipeline.export import ExportRequest, export_ensemble

WAYS = {"submit": (), "submit --mosaic --scale --adaptive": ("--mosaic", "--scale", "--adaptive")}


class Tiny(nn.Module):
    """A network as kit's are: normalises inside, sizes are multiples of `pad_multiple`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.pad_multiple = 16
        self.register_buffer("mean", torch.full((3, 1, 1), 120.0))
        self.register_buffer("std", torch.full((3, 1, 1), 58.0))
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return 9 * nn.functional.interpolate(self.body((x.float() - self.mean) / self.std), scale_factor=2.0)


def draw_chips(folder: Path, count: int, side_px: int) -> None:
    """Writes chips of one smooth image, from left to right and from top to bottom."""
    columns = math.ceil(math.sqrt(count))
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (columns * side_px // 4, columns * side_px // 4, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (columns * side_px, columns * side_px), interpolation=cv2.INTER_CUBIC)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "width": side_px, "height": side_px}
    folder.mkdir(parents=True)
    for number in range(count):
        top, left = (place * side_px for place in divmod(number, columns))
        with rasterio.open(folder / f"c{number:05d}.tif", "w", **profile) as file:
            file.write(image[top : top + side_px, left : left + side_px].transpose(2, 0, 1))


def timed(arguments: Sequence[str], folder: Path) -> float:
    """Returns the seconds of `python ARGUMENTS`."""
    start = time.perf_counter()
    environment = {**os.environ, "KIT_CACHE": f"{folder}/cache", "KIT_ROOT": str(folder)}
    subprocess.run([sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=11_481)
    parser.add_argument("--side", type=int, default=32, help="of a chip, px")
    parser.add_argument("--keep", type=Path, help="folder for chips, weights and submissions")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if not (folder / "weights").is_dir():
            records = [Member("tiny", fold, 0, "ab" * 32, 0.5) for fold in range(2)]
            tiles, cases = [np.zeros((40, 48, 3), np.uint8)], [Case(33, 50)]
            request = ExportRequest("tiny", "tiny", "flips", 0.5, 0.1, tiles, cases)
            export_ensemble(folder / "weights", [Tiny(1), Tiny(2)], records, request)
            draw_chips(folder / "chips", options.chips, options.side)
        start_s = timed(["-c", "import torch"], folder)
        print(f"{options.chips:,} chips of {options.side} px; import torch: {start_s:.1f} s")
        print("\n| command | first s | again s |\n|---|---|---|")
        for number, (way, flags) in enumerate(WAYS.items()):
            name = f"way{number}"
            command = ["-m", "kit", "submit", str(folder / "chips"), "--name", name, *flags]
            first = "-" if (folder / f"submissions/{name}.tgz").is_file() else f"{timed(command, folder):.1f}"
            print(f"| kit {way} | {first} | {timed(command, folder):.1f} |", flush=True)
        command = ["-m", "kit", "check-submission", f"{folder}/submissions/way0.tgz", "--test", f"{folder}/chips"]
        print(f"| kit check-submission | | {timed(command, folder):.1f} |")


if __name__ == "__main__":
    main()
