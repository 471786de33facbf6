"""One exported file and a few chips for the deploy room's tests."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from deploy_fakes import export_tiny, noise, write_tiff

from kit.pipeline.export import Exported


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Two members, four views. Read only."""
    return export_tiny(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """A folder of four chips of odd sizes; c has an alpha band, and its left part is nodata."""
    sizes = {"a": (33, 50), "b": (64, 64), "c": (40, 31), "d": (17, 90)}
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        image = noise(height, width, 4 if name == "c" else 3, seed)
        if name == "c":
            image[:, :12, 3], image[:, 12:, 3] = 0, 255
        write_tiff(tmp_path / "chips" / f"{name}.tif", image)
    return tmp_path / "chips"


@pytest.fixture
def catalog(chips: Path) -> Callable[..., Path]:
    """Writes a STAC catalogue over the chips, each item in a folder below a collection-like child."""

    def write(asset: str = "image", names: str = "dbca") -> Path:
        root = chips.parent / "test"
        links = [{"rel": "item", "href": f"./{name}/{name}.json"} for name in names]
        for name in names:
            item = {
                "type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": None,
                "properties": {"datetime": "2019-01-01T00:00:00Z"}, "links": [],
                "assets": {"thumb": {"href": "t.png"}, asset: {"href": f"../../chips/{name}.tif"}},
            }  # fmt: skip
            (root / name).mkdir(parents=True)
            (root / name / f"{name}.json").write_text(json.dumps(item))
        head = {"type": "Catalog", "id": "test", "stac_version": "1.0.0", "description": "test chips", "links": links}
        (root / "catalog.json").write_text(json.dumps(head))
        return root

    return write
