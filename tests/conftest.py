"""Fixtures that every room's tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from factories import MERCATOR, TINY_RECIPE, write_catalog
from web import Web, serve

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: threads of one would wait for those of another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("KIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def small_images() -> Iterator[None]:
    """Exports are compared on small images, but where a test asks for others: all take seconds of a tiny network."""
    from kit.deploy.proof import images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "CASES", images.SMALL_CASES)
        yield


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Two areas, three scenes of odd sizes, UTM and web mercator, with and without alpha."""
    areas = {
        "kam": {"a": {"seed": 1}, "b": {"seed": 2, "width": 131, "height": 83}},
        "znz": {"c": {"seed": 3, "crs": MERCATOR, "alpha": False}},
    }
    return write_catalog(tmp_path / "train_tier_1", areas)


@pytest.fixture
def workplace(tmp_path: Path, catalog: Path) -> Path:
    """A root folder with a prepared data set of native 64 px tiles, two folds, and the recipe `tiny`."""
    from factories import prepare

    from kit.paths import Paths

    root = tmp_path / "root"
    (root / "recipes").mkdir(parents=True)
    (root / "recipes" / "tiny.py").write_text(TINY_RECIPE)
    prepare(catalog, Paths(root), grid="native", side_px=64, by="scene", k=2)
    return root


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A web server on this machine for `tmp_path / "web"`; GDAL and `s3://` find it too."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    for name in ("web", "web-notes"):
        (tmp_path / name).mkdir()
    with serve(tmp_path / "web", tmp_path / "web-notes") as server:
        for name, value in (
            ("AWS_S3_ENDPOINT", server.host),
            ("AWS_HTTPS", "NO"),
            ("AWS_VIRTUAL_HOSTING", "FALSE"),
            ("AWS_NO_SIGN_REQUEST", "YES"),
        ):
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny tensors: threads that wait for each other would take ten times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a kit command in this process: arguments -> (exit code, stdout, stderr)."""
    from kit.cli import main
    from kit.console import no_progress, only_errors

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["kit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        only_errors(False)
        no_progress(False)
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run
