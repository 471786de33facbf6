"""Chips a second and memory of `kit submit` over the number of chips: 1, 2 and 4 times as many.

    python benchmarks/submit_scale.py [--chips 32 64 128] [--side 1024] [--recipe lite0]    minutes on 2 cores

One network with random weights and four flips, tuned beforehand; chips are drawn, 16 of them, under as many names as
there are chips. Each number of chips is predicted in a process of its own. The clock leaves out its start, loading and
one chip to warm up; it includes reading, writing, the table, the archive and its check. Beside it: the same tuned
module alone, called on the same chips decoded beforehand. Linear is: as many chips a second for each number. Memory is
the process's peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from seed_submit import kit_side, prepare

DRAWN = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--side", type=int, default=1024, help="of a chip, px")
    parser.add_argument("--recipe", default="lite0")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        folder, count = Path(options.run[0]), options.run[1]
        print(json.dumps(kit_side(folder / "first", folder / count, folder / "weights.pt", "torch")))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, DRAWN, options.side, [options.recipe])
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
        print("| chips | chips a second | s a chip | module s | ratio | peak GB |\n|---|---|---|---|---|---|")
        for count in options.chips:
            (folder / str(count)).mkdir()
            for number in range(count):
                source = folder / "chips" / f"c{number % DRAWN + 1}.tif"
                (folder / str(count) / f"d{number}.tif").hardlink_to(source)
            done = subprocess.run(
                [sys.executable, __file__, "--run", str(folder), str(count)], check=True, stdout=subprocess.PIPE,
                text=True, env={**os.environ, "KIT_CACHE": f"{folder}/cache"},
            )  # fmt: skip
            measured = json.loads(done.stdout.splitlines()[-1])
            seconds, alone = measured["chip_s"], measured["module_s"]
            print(
                f"| {count} | {1 / seconds:.2f} | {seconds:.3f} | {alone:.3f} | {seconds / alone:.3f} "
                f"| {measured['peak_gb']:.2f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
