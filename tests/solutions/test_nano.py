"""`kit run nano`, killed twice, gives what an uninterrupted run gives. The winners' systems are rehearsed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from factories import prepare

from kit.paths import Paths
from kit.sample.sample import draw_sample

pytestmark = pytest.mark.slow
NANO = ("run", "nano", "--device", "cpu", "--no-pretrained")


def play(root: Path, kill_at: str = "") -> list[str]:
    """Runs nano in a process of its own; returns its stages. It is killed at the line that begins with `kill_at`."""
    command = [sys.executable, "-m", "kit", *NANO, "--root", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stages: list[str] = []
    log: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stderr or ():
            log.append(line)
            if re.match(r"round\d: \w+ [\w-]+$", line):
                stages.append(line.split(": ")[1].strip())
            if kill_at and line.startswith(kill_at):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == (-signal.SIGKILL if kill_at else 0), "".join(log)
    return stages


def results(root: Path) -> dict[str, bytes]:
    """The bytes of what nano makes: weights, labels, masks, the archive."""
    patterns = [
        "runs/*/fold*/best.safetensors", "runs/*/fold*/oof/*.tif", "data/nano-*/index.csv", "data/nano-*/masks/*.tif",
        "solutions/nano/*.csv", "submissions/nano/*.tif", "submissions/nano.tgz",
    ]  # fmt: skip
    found = {pattern: sorted(root.glob(pattern)) for pattern in patterns}
    assert all(found.values()), found
    return {str(file.relative_to(root)): file.read_bytes() for files in found.values() for file in files}


def test_killed_twice_nano_gives_what_an_uninterrupted_run_gives(tmp_path: Path):
    roots = [tmp_path / "whole", tmp_path / "killed"]
    for root in roots:
        draw_sample(root / "sample", shrink=4)
        prepare(root / "sample" / "train_tier_1", Paths(root), "sample", grid="native", side_px=256, by="scene", k=2)
    whole = play(roots[0])
    assert len(whole) == 12
    first = play(roots[1], kill_at="lite0 fold 1: tf_efficientnet_lite0")  # while it trains
    second = play(roots[1], kill_at="round3: export")
    third = play(roots[1])
    assert first[-1] == second[0] == "train nano-round2-lite0"
    assert second[-1] == third[0] == "export nano"
    assert [*first, *second[1:], *third[1:]] == whole
    assert results(roots[1]) == results(roots[0])
    assert play(roots[1]) == []


@pytest.mark.parametrize("name", ["open_cities", "open_cities_first_place"])
def test_the_winners_systems_are_rehearsed(name: str, tmp_path: Path):
    command = [sys.executable, "-m", "kit", "run", name, "--dry-run", "--device", "cpu", "--root", str(tmp_path)]
    # in a process of its own: five large networks need several GB
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "all 3 rounds can be played" in done.stderr
    assert "submit" in done.stderr
    assert list(tmp_path.iterdir()) == []
