"""Solutions played by several processes: two ranks on each stage, or two folds side by side."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_fakes import noise, write_tiff
from solution_files import THREE, write_solution

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("option", ["--nproc", "--parallel-folds"])
def test_two_processes_play_a_solution(workplace: Path, option: str):
    for number in range(3):
        write_tiff(workplace / "test" / f"chip{number}.tif", noise(64, 64, seed=number))
    write_solution(workplace, THREE)
    command = [sys.executable, "-m", "kit", "run", "plan", option, "2", "--test", str(workplace / "test"), "--root",
               str(workplace), "--device", "cpu", "--no-pretrained", "--workers", "0"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    played = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert played.returncode == 0, played.stderr
    assert played.stdout.splitlines()[-1] == str(workplace / "submissions" / "plan.tgz")
    assert played.stderr.count("three: submit plan") == 1
    folds = {f"{run.parent.parent.name}/{run.parent.name}" for run in workplace.glob("runs/*/*/result.json")}
    assert folds == {
        "plan-one-tiny/fold0", "plan-two-tiny/fold0", "plan-two-tiny/fold1", "plan-three-tiny/foldall",
        "plan-three-tiny-seed1/fold0", "plan-three-tiny-seed1/fold1",
    }  # fmt: skip
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert "train" not in again.stderr
