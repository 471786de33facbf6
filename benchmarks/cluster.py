"""Overhead of the cluster engine against the local pool, and a worker's memory from 20 to 200 scenes.

python benchmarks/cluster.py [--cells 8] [--rounds 2] [--weights weights/starter.pt] [--memory]

Both sides map the same cells of a drawn country with two processes of one thread, in turn, in one run: `local pool` is
`kit map --workers 2`, `dask` is `--cluster local:2`. The start of the engine (processes, imports) and the cost of a
task are measured by themselves, with tasks that do nothing. CPU seconds are those of all processes: other programs on
the machine change them little. With --memory, one process maps 18 scenes, another 200, and both print their peak.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / part) for part in ("", "deploy", "deploy/country"))]

from country_fakes import draw_country, export_brightness  # noqa: E402

from kit.deploy.country.country import CountryRequest, make_plan, map_cells, merge_map  # noqa: E402
from kit.deploy.engine.backends import EngineOptions  # noqa: E402
from kit.deploy.mapping.map import MapOptions  # noqa: E402
from kit.system.workers import on_cluster, spread  # noqa: E402

SIDES = {"local pool": "", "dask": "local:2"}
TASKS = 200


def idle(number: int) -> int:
    """A task that does nothing, where all is imported that a cell needs."""
    import kit.deploy.country.cell_map  # noqa: F401

    return number


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Returns seconds on the clock, and CPU seconds of all processes."""

    def used() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    start, cpu = time.perf_counter(), used()
    work()
    return time.perf_counter() - start, used() - cpu


def overhead(cells: int, rounds: int, weights: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        country = draw_country(folder / "scenes", 1, side_px=2400, seams=(33.0,))
        options = MapOptions(window_px=512, overlap_px=64, gsd_m=1.0)
        engine = EngineOptions("cpu", tuning=False)
        request = CountryRequest((str(country.folder),), weights, folder, "m", options, engine, cell_m=900)
        costs: dict[str, list[tuple[float, ...]]] = {side: [] for side in SIDES}
        layers = set()
        for number in range(rounds):
            for side, cluster in SIDES.items():
                states = make_plan(replace(request, folder=folder / f"{side} {number}"))
                with on_cluster(cluster):
                    start = measured(lambda: list(spread(idle, range(2), 2, "starting")))
                    tasks = measured(lambda: list(spread(idle, range(TASKS), 2, "idling")))
                    own = measured(lambda: map_cells(states, states.cells[:cells], request, 2))  # noqa: B023
                costs[side].append((*start, *((b - a) / TASKS for a, b in zip(start, tasks, strict=True)), *own))
                files = sorted(states.files.cells.rglob("*.parquet"))
                layers.add(b"".join(file.read_bytes() for file in files))
    print(
        f"{cells} cells; their buildings are equal: {len(layers) == 1}; least of {rounds} rounds, CPU seconds (clock)"
    )
    rows = ("start of the engine", "a task that does nothing", "all cells")
    best = {side: [min(column) for column in zip(*own, strict=True)] for side, own in costs.items()}
    for row, title in enumerate(rows):
        print(f"{title:26}", *(f"{side}: {own[2 * row + 1]:.3f} ({own[2 * row]:.3f})" for side, own in best.items()))
    pool, dask = best["local pool"], best["dask"]
    for kind, what in ((1, "CPU seconds"), (0, "clock")):
        rest = (dask[4 + kind] - dask[kind]) / (pool[4 + kind] - pool[kind])
        print(f"dask / local pool, {what}: {dask[4 + kind] / pool[4 + kind]:.3f}, without the start {rest:.3f}")


def memory(per_side: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        country = draw_country(folder / "scenes", per_side)
        weights = export_brightness(folder / "weights")
        options, engine = MapOptions(window_px=256, overlap_px=64), EngineOptions("cpu", tuning=False)
        request = CountryRequest((str(country.folder),), weights, folder / "map", "m", options, engine, cell_m=400)
        states = make_plan(request)
        map_cells(states, states.cells, request, 1)
        mapped = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        merge_map(states)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{len(country.scenes)} scenes, {len(states.cells)} cells: peak {mapped:.0f} MiB, merged {peak:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights/starter.pt")
    parser.add_argument("--memory", action="store_true", help="in a process for each size")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        memory(given.one)
    elif given.memory:
        for size in (3, 10):
            subprocess.run([sys.executable, __file__, "--one", str(size)], check=True)
    else:
        overhead(given.cells, given.rounds, given.weights)
