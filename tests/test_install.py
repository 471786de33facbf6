"""Installing: the scripts, the Dockerfile, and what docs/install.md and the settings say about versions."""

import configparser
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_package import PARTS

from kit.errors import KitError
from kit.system import devices, doctor

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
PAGE = (ROOT / "docs" / "install.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CPU = "https://download.pytorch.org/whl/cpu"
NEEDED_GB = 20  # a wheelhouse of 3 GB, and what is installed from it
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$1 $2" in "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/pip" ;; esac
"""


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def calls(tmp_path: Path, script: str, *arguments: str) -> list[str]:
    """What a script calls Python and pip with, in `tmp_path`."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    log.write_text("")
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "LOG": str(log)}
    subprocess.run(["sh", SCRIPTS / script, *arguments], cwd=tmp_path, env=environment, check=True)
    return log.read_text().replace(str(ROOT), "SOURCE").splitlines()


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_scripts_parse_and_are_documented(script: str):
    subprocess.run(["bash", "-n", SCRIPTS / script], check=True)
    assert os.access(SCRIPTS / script, os.X_OK)
    assert f"scripts/{script}" in PAGE


def test_install_takes_torch_from_the_index_without_cuda_first(tmp_path: Path):
    kit = "install --no-cache-dir SOURCE"
    assert calls(tmp_path, "install.sh", "new", "cuda") == ["-m venv new", kit]
    small = calls(tmp_path, "install.sh", "new")
    assert small == ["-m venv new", f"install --no-cache-dir torch torchvision --index-url {CPU}", kit]
    documented = re.findall(r"^pip (install .+)$", PAGE, re.M)[:2]
    assert documented == [line.replace(" --no-cache-dir", "").replace("SOURCE", ".") for line in small[1:]]


def test_wheelhouse_keeps_the_torch_that_was_chosen(tmp_path: Path):
    house = tmp_path / "house"
    house.mkdir()
    for name in ("footprintkit-0-py3-none-any.whl", "torch-2+cpu-none.whl", "torchvision-1+cpu-none.whl"):
        (house / name).touch()
    whole = calls(tmp_path, "wheelhouse.sh", "house", "cuda", "--python-version", "3.13")
    assert whole[0] == "-m pip wheel SOURCE --no-deps --wheel-dir house"
    assert whole[1].startswith(
        "-m pip download --only-binary :all: --dest house --python-version 3.13 house/footprintkit"
    )
    assert not (house / "footprintkit-0-py3-none-any.whl").exists()  # of an earlier run
    small = calls(tmp_path, "wheelhouse.sh", "house", "cpu")
    assert small[1].endswith(f"--no-deps torch torchvision --index-url {CPU}")
    assert small[2].endswith(" house/torch-2+cpu-none.whl house/torchvision-1+cpu-none.whl")


def test_the_dockerfile_runs_the_script_with_what_it_needs():
    assert 'RUN sh /src/scripts/install.sh /opt/kit "${TORCH}"' in DOCKERFILE
    assert "ARG TORCH=cpu" in DOCKERFILE
    copied = {line[1:].rstrip("*") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    needed = {"weights/starter" if part == "weights" else part for part in PARTS if part != "LICENSE-APACHE"}
    assert copied == needed | {"scripts"}


def test_versions_of_python_agree():
    metadata = settings()
    lowest, above = re.findall(r"3\.(\d+)", metadata["options"]["python_requires"])
    versions = [f"3.{minor}" for minor in range(int(lowest), int(above))]
    assert re.findall(r"3\.\d+", metadata["metadata"]["classifiers"]) == versions
    assert [f"3.{minor}" for _, minor in doctor.TRIED_PYTHONS] == [versions[0], versions[-1]]
    assert f"Python {versions[0]} to {versions[-1]}" in PAGE
    assert f"Python {versions[0]} to {versions[-1]}" in (ROOT / "README.md").read_text()
    assert f"not in '<3.{above},>=3.{lowest}'" in PAGE
    assert f"kit needs Python {versions[0]} to {versions[-1]}; this is " in (ROOT / "setup.py").read_text()
    tox = (ROOT / "tox.ini").read_text()
    assert f"py{{{','.join(version.replace('.', '') for version in versions)}}}-smoke" in tox


def test_errors_of_kit_are_quoted_as_they_are():
    for message in ("an NVIDIA driver, but torch finds no GPU", "not reachable"):
        assert message in inspect.getsource(doctor)
        assert message in PAGE
    with pytest.raises(KitError, match="no device 'cuda:99' here: "):
        devices.pick_device("cuda:99")
    assert "no device 'cuda' here: " in PAGE


def test_every_bound_has_its_reason():
    required = settings()["options"]["install_requires"]
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    for requirement in required.split():
        line = next(number for number, text in enumerate(lines) if text.strip() == requirement)
        assert lines[line - 1].strip().startswith("#"), requirement


def newest_python() -> str:
    """The newest Python that kit allows and this machine has."""
    names = [f"python3.{minor}" for minor in range(doctor.TRIED_PYTHONS[1][1], doctor.TRIED_PYTHONS[0][1], -1)]
    installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for name in names:
        places = [shutil.which(name), *sorted(installed.glob(f"{name.removeprefix('python')}.*/bin/python"))]
        for python in filter(None, places):
            if subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
                return str(python)
    return sys.executable


@pytest.mark.slow
def test_the_newest_python_installs_kit_from_a_wheelhouse(tmp_path: Path):
    """The steps of the Dockerfile, without a network; then each part of kit once."""
    house, place = tmp_path / "house", tmp_path / "venv"
    environment = os.environ | {"PYTHON": newest_python(), "TMPDIR": str(tmp_path)}
    probe = ["download", "--no-deps", "--quiet", "--dest", str(tmp_path / "probe"), "affine"]
    if subprocess.run([sys.executable, "-m", "pip", *probe], capture_output=True).returncode:
        pytest.skip("no package index answers")
    if shutil.disk_usage(tmp_path).free < NEEDED_GB * 1e9:
        pytest.skip(f"less than {NEEDED_GB} GB of disk are free")
    try:
        subprocess.run(["sh", SCRIPTS / "wheelhouse.sh", house, "cuda"], env=environment, check=True)
        offline = environment | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(house)}
        subprocess.run(["sh", SCRIPTS / "install.sh", place, "cuda"], env=offline, check=True)
        subprocess.run([SCRIPTS / "smoke.sh", place / "bin"], env=environment, check=True)
    finally:
        shutil.rmtree(house, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
