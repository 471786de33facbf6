"""Does `kit run --minutes M` keep its time, and does the rate end as planned, while another process is busy?

    python benchmarks/time_budget.py [--minutes 3] [--recipe lite0] [--root FOLDER]    prints a table; 4 x M minutes

The sample city is drawn and cut, then one fold is trained four times: with nothing else to do; with a second process
that keeps all cores busy for the first 20 s; with one that is busy from a third to two thirds of the time; and with one
that is busy all the time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

BUSY = """
import multiprocessing, sys, time
def work(end):
    while time.monotonic() < end:
        sum(i * i for i in range(10_000))
start, seconds, processes = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
time.sleep(start)
workers = [multiprocessing.Process(target=work, args=(time.monotonic() + seconds,)) for _ in range(processes)]
for worker in workers: worker.start()
for worker in workers: worker.join()
"""


def situations(seconds: float) -> dict[str, tuple[float, float]]:
    """Returns when the second process begins, after the training does, and for how many seconds it is busy."""
    return {
        "alone": (0, 0),
        "busy at first": (0, 20),
        "busy in the middle": (seconds / 3, seconds / 3),
        "busy all the time": (0, 2 * seconds),
    }


def kit(root: Path, *arguments: object) -> None:
    """Runs a command of kit."""
    command = [sys.executable, "-m", "kit", *map(str, arguments), "--root", str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def train(root: Path, recipe: str, minutes: float, busy: tuple[float, float]) -> dict[str, object]:
    """Trains a fold beside a process that is busy, and returns what came of it."""
    folder = root / "runs" / Path(recipe).stem / "fold0"
    options = ("--fold", 0, "--minutes", minutes, "--no-export", "--restart")
    command = [sys.executable, "-m", "kit", "run", recipe, *map(str, options), "--root", str(root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as training:
        before = (folder / "log.csv").stat().st_mtime if (folder / "log.csv").exists() else 0.0
        while training.poll() is None and not _begun(folder, before):
            time.sleep(0.1)
        cores = str(os.cpu_count())
        with subprocess.Popen([sys.executable, "-c", BUSY, *map(str, busy), cores], start_new_session=True) as other:
            training.wait()
            if other.poll() is None:
                os.killpg(other.pid, signal.SIGKILL)
    log, result = pd.read_csv(folder / "log.csv"), json.loads((folder / "result.json").read_text())
    return {
        "steps": int(log["steps"].sum()),
        "planned at first": int(pd.read_csv(folder / "plan.csv")["total"].iloc[min(2, len(log) - 1)]),
        "seconds": round(result["seconds"], 1),
        "off": f"{result['seconds'] / (60 * minutes) - 1:+.1%}",
        "highest rate": f"{log['lr'].max():.1e}",
        "last rate": f"{log['lr'].iloc[-1]:.1e}",
        "jaccard": round(result["score"], 4),
    }


def _begun(folder: Path, before: float) -> bool:
    """Returns whether the training has planned its first steps."""
    plan = folder / "plan.csv"
    return plan.exists() and plan.stat().st_mtime > before


def main() -> None:
    """Prints a row a situation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--recipe", default="lite0")
    parser.add_argument("--only", nargs="+", help="names of situations; all by default")
    parser.add_argument("--root", type=Path, help="with a data set; drawn by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        if not (root / "data").exists():
            kit(root, "sample")
            kit(root, "prepare", root / "sample/train_tier_1", "--name", "sample", "--by", "scene", "-k", 2)
        rows = []
        for name, busy in situations(60 * options.minutes).items():
            if options.only and name not in options.only:
                continue
            rows.append({"second process": name, **train(root, options.recipe, options.minutes, busy)})
            print(pd.DataFrame(rows).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
