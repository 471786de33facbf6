"""Overhead of the cluster engine against the local pool, and a worker's memory from 20 to 200 scenes.

python benchmarks/cluster.py [--per-side 3] [--rounds 2] [--memory]

Draws the country of the tests. Both sides map it with two processes of one thread, in turn, in one run: `local pool` is
`kit map --workers 2`, `dask` is `--cluster local:2`. Starting the processes is part of both. With --memory, one process
maps 18 and 200 scenes, and the peak of its memory is printed.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / part) for part in ("", "deploy", "deploy/country"))]

from country_fakes import draw_country, export_brightness  # noqa: E402

from kit.deploy.country.country import CountryRequest, make_plan, map_cells, merge_map  # noqa: E402
from kit.deploy.engine.backends import EngineOptions  # noqa: E402
from kit.deploy.mapping.map import MapOptions  # noqa: E402
from kit.system.workers import on_cluster  # noqa: E402

SIDES = {"local pool": "", "dask": "local:2"}


def request_of(scenes: Path, weights: Path, folder: Path) -> CountryRequest:
    options = MapOptions(window_px=256, overlap_px=64)
    return CountryRequest((str(scenes),), weights, folder, "m", options, EngineOptions("cpu", tuning=False), cell_m=400)


def seconds_of(request: CountryRequest, cluster: str) -> float:
    states = make_plan(request)
    start = time.perf_counter()
    with on_cluster(cluster):
        map_cells(states, states.cells, request, 2)
    return time.perf_counter() - start


def overhead(per_side: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        country = draw_country(folder / "scenes", per_side)
        request = request_of(country.folder, export_brightness(folder / "weights"), folder)
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        layers = set()
        for number in range(rounds):
            for side, cluster in SIDES.items():
                own = replace(request, folder=folder / f"{side} {number}")
                times[side].append(seconds_of(own, cluster))
                layers.add(merge_map(make_plan(own)).buildings.read_bytes())
    print(f"{len(country.scenes)} scenes, {len(country.houses)} houses; layers are equal: {len(layers) == 1}")
    for side, own_times in times.items():
        print(f"{side:12}", " ".join(f"{one:.1f}" for one in own_times), "s")
    print(f"dask / local pool: {min(times['dask']) / min(times['local pool']):.3f} (least of the rounds)")


def memory(per_side: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        country = draw_country(folder / "scenes", per_side)
        request = request_of(country.folder, export_brightness(folder / "weights"), folder / "map")
        states = make_plan(request)
        map_cells(states, states.cells, request, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{len(country.scenes)} scenes, {len(states.cells)} cells: peak {peak:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-side", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="in a process for each size")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        memory(given.per_side)
    elif given.memory:
        for size in (3, 10):
            subprocess.run([sys.executable, __file__, "--one", "--per-side", str(size)], check=True)
    else:
        overhead(given.per_side, given.rounds)
