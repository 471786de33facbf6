"""A disk that is full: one error that says so, and the same command finishes once there is space."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deploy_fakes import export_tiny, noise, write_tiff
from factories import write_catalog, write_scene

pytestmark = pytest.mark.slow
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("command", ["prepare", "submit", "map"])
def test_the_disk_is_full(tmp_path: Path, small_disk: Path, cli: Cli, command: str):
    inputs = tmp_path / "in"
    weights = export_tiny(inputs / "weights").path
    if command == "prepare":
        write_catalog(inputs / "c", {"kam": {"a": {"width": 300, "height": 300}}})
        arguments = ["prepare", inputs / "c", "--grid", "native", "--side", 32, "--workers", 1]
    elif command == "map":
        write_scene(inputs / "s.tif", 300, 300, 0.15)
        arguments = ["map", inputs / "s.tif", "--weights", weights, "--no-tune", "--window", 64, "--overlap", 16]
    else:
        for seed in range(6):
            write_tiff(inputs / "chips" / f"{seed}.tif", noise(200, 200, seed=seed))
        arguments = ["submit", inputs / "chips", "--weights", weights, "--no-tune"]
    filler = small_disk / "filler"
    filler.write_bytes(bytes(244 * 1024))
    code, out, err = cli(*arguments, "--root", small_disk)
    assert (code, out) == (1, ""), err
    assert "No space left on device" in err
    assert "a fault of kit" not in err
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, out, err = cli(*arguments, "--root", small_disk)
    assert code == 0, err
