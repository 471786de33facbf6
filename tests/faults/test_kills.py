"""SIGKILL at a rename or at a random moment: a rerun gives the same bytes, and nothing of the user's is lost."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from deploy_fakes import export_tiny, noise, write_tiff
from factories import write_catalog, write_scene
from mosaic_fakes import draw_mosaic

import kit.data.tiles.prepare
import kit.deploy.mapping.map
import kit.deploy.submission.submit  # noqa: F401  loaded once, before the forks
from kit.cli import main

# a forked process has only the thread that forked it: a team of OpenMP threads would be waited for without end
ONE_THREAD = pytest.mark.skipif(os.environ.get("OMP_NUM_THREADS") != "1", reason="needs OMP_NUM_THREADS=1")
pytestmark = [pytest.mark.slow, ONE_THREAD]
LONGEST_S = 120  # of one command, which takes seconds
RENAMES = 6  # of a command at which it is killed, spread over all that it does
MOMENTS = 3  # random ones
AREAS = {"kam": {"a": {"seed": 1}, "b": {"seed": 2}}, "znz": {"c": {"seed": 3}}}


def contents(folder: Path) -> dict[str, bytes]:
    """Returns what a command leaves, hidden files aside: locks, progress with times."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    shown = {str(file.relative_to(folder)): file for file in files}
    return {name: file.read_bytes() for name, file in shown.items() if "/." not in f"/{name}"}


def errors_of(counter: Path) -> Path:
    return counter.with_suffix(".log")


def waited_for(child: int) -> int:
    """Returns the status that a process ended with; one that takes too long is killed."""
    end = time.monotonic() + LONGEST_S
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f"kit did not end within {LONGEST_S} s")
        time.sleep(0.01)
    return ended[1]


def run_kit(arguments: Sequence[object], counter: Path, at: int = -1, after: float = 0.0) -> int:
    """Runs kit in a forked process; returns its exit code, or minus the signal that ended it.

    Args:
        arguments: of kit.
        counter: a file that grows by a byte with each rename; stderr goes into a file beside it.
        at: the rename before which the process kills itself; -1 for none.
        after: seconds after which it is killed; 0 for never.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(errors_of(counter), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(log, descriptor)
            sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115  not the captured ones
            renames = 0
            real = os.replace

            def replace(source: object, target: object, **more: object) -> None:
                nonlocal renames
                if renames == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                renames += 1
                with counter.open("ab") as file:
                    file.write(b".")
                real(source, target, **more)  # type: ignore[arg-type]

            os.replace = replace  # type: ignore[assignment]
            Path.replace = lambda self, target: (replace(self, target), Path(target))[1]  # type: ignore[assignment,method-assign]
            sys.argv = ["kit", *map(str, arguments)]
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(code)
    if after:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = waited_for(child)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def prepare_city(root: Path) -> list[object]:
    write_catalog(root / "train_tier_1", AREAS)
    return ["prepare", root / "train_tier_1", "--grid", "native", "--side", 32, "--workers", 1]


def submit_chips(root: Path) -> list[object]:
    export_tiny(root / "weights")
    for seed, name in enumerate("abcdef"):
        write_tiff(root / "chips" / f"{name}.tif", noise(40, 48, seed=seed))
    return ["submit", root / "chips", "--no-tune", "--rle"]


def map_scene(root: Path) -> list[object]:
    export_tiny(root / "weights")
    write_scene(root / "city.tif", 200, 150, 0.15)
    return ["map", root / "city.tif", "--no-tune", "--window", 64, "--overlap", 16, "--format", "geojson"]


def find_mosaics(root: Path) -> list[object]:
    large = draw_mosaic("kum", 0.075, 2, 3, 64, 5)
    for row in range(2):
        for column in range(3):
            chip = large[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
            write_tiff(root / "chips" / f"{row}{column}.tif", chip)
    return ["mosaic", root / "chips", "--workers", 1]


@pytest.mark.parametrize("case", [prepare_city, submit_chips, map_scene, find_mosaics])
def test_a_rerun_gives_the_same_bytes(tmp_path: Path, cache: Path, case: Callable[[Path], list[object]]):
    clean = tmp_path / "clean"
    clean.mkdir()
    arguments = case(clean)
    fresh = tmp_path / "fresh"
    shutil.copytree(clean, fresh, copy_function=shutil.copy2)
    counter = tmp_path / "renames"
    start = time.monotonic()
    assert run_kit([*arguments, "--root", clean], counter) == 0
    seconds = time.monotonic() - start
    whole, count = contents(clean), counter.stat().st_size
    assert count > 1
    dice = random.Random(case.__name__)
    places = sorted({0, 1, count - 1, *dice.sample(range(count), min(count, RENAMES))})
    kills = [(place, 0.0) for place in places] + [(-1, dice.uniform(0.05, 1) * seconds) for _ in range(MOMENTS)]
    killed = 0
    for number, (place, after) in enumerate(kills):
        for folder in (clean, cache):
            shutil.rmtree(folder)
        shutil.copytree(fresh, clean, copy_function=shutil.copy2)
        cache.mkdir()
        code = run_kit([*arguments, "--root", clean], counter, place, after)
        killed += code == -signal.SIGKILL
        if place >= 0:
            assert code == -signal.SIGKILL, (number, place)
        kept = contents(clean)
        assert {name: kept.get(name) for name in contents(fresh)} == contents(fresh), "an input is gone"
        assert run_kit([*arguments, "--root", clean], counter) == 0, (number, place, after)
        assert contents(clean) == whole, (number, place, after)
    assert killed >= len(places)
    assert "a fault of kit" not in errors_of(counter).read_text()


@pytest.mark.parametrize("case", [prepare_city, submit_chips, map_scene])
def test_two_at_once_make_one(tmp_path: Path, case: Callable[[Path], list[object]]):
    """The second waits, or ends with an error; what stands in the end is whole."""
    arguments = [*case(tmp_path), "--root", tmp_path]
    alone = tmp_path.parent / f"{tmp_path.name}-alone"
    shutil.copytree(tmp_path, alone, copy_function=shutil.copy2)
    moved = [str(argument).replace(str(tmp_path), str(alone)) for argument in arguments]
    counter = tmp_path.parent / f"{tmp_path.name}-renames"
    assert run_kit(moved, counter) == 0
    for _ in range(3):
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                os._exit(0 if run_kit(arguments, counter) in (0, 1) else 1)
            children.append(child)
        assert [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert run_kit(arguments, counter) == 0
    assert "a fault of kit" not in errors_of(counter).read_text()
    strip = {name: data for name, data in contents(tmp_path).items() if not name.endswith((".json", ".csv"))}
    assert strip == {name: data for name, data in contents(alone).items() if not name.endswith((".json", ".csv"))}
