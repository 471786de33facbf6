"""What the card records of the training: areas of the tiles that were trained on, encoders, shared options."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from factories import write_run
from safetensors.torch import save_file

from kit.data.added import AddedSet
from kit.data.index import read_index
from kit.deploy.weights.card import TrainedEncoder
from kit.deploy.weights.load import read_card
from kit.paths import Paths
from kit.pipeline.provenance import provenance_of, trained_areas
from kit.system.files import sha256_of
from kit.training.fit import rebuild
from kit.training.recipe import load_recipe
from kit.training.run_files import RunSettings

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
DATA = "train_tier_1"
LOCAL = 'LOCAL_CS["drawing",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'


def tile(
    name: str, area: str, scene: str, crs: str = "EPSG:4326", left: float = 30.0, **other: object
) -> dict[str, object]:
    return {
        "tile": name, "image": f"{name}.tif", "area": area, "scene": scene, "crs": crs, "data": "a", "left": left,
        "bottom": 0.5, "right": left + 0.1, "top": 0.6, **other,
    }  # fmt: skip


def test_areas_enclose_their_tiles():
    rows = [
        tile("a", "znz", "s1"), tile("a", "znz", "s1"), tile("b", "znz", "s2", left=31.0),
        tile("c", "kam", "s1", "EPSG:32636", 500_000.0, bottom=0.0, right=501_000.0, top=1000.0),
        tile("d", "none", "s1", crs="", left=float("nan")), tile("e", "odd", "s1", crs=LOCAL),
    ]  # fmt: skip
    kam, znz = trained_areas(pd.DataFrame(rows))
    assert (znz.area, znz.scenes, znz.tiles, znz.bbox) == ("znz", 2, 2, (30.0, 0.5, 31.1, 0.6))
    assert kam.bbox == pytest.approx((33.0, 0.0, 33.009, 0.009), abs=1e-4)
    assert trained_areas(pd.DataFrame(rows).drop(columns="left")) == ()


def test_only_tiles_that_were_trained_on_count(workplace: Path, capsys: pytest.CaptureFixture[str]):
    paths = Paths(workplace)
    _, index = read_index(paths, DATA)
    sha256 = sha256_of(paths.data(DATA) / "index.csv")
    run = RunSettings(data=DATA, data_sha256=sha256, fold=0, encoder="resnet18", encoder_weights="timm resnet18")

    def tiles(*runs: RunSettings) -> int:
        return sum(area.tiles for area in provenance_of(runs, paths).areas)

    assert tiles(run) == (index["fold"] != 0).sum() > 0
    assert tiles(run, replace(run, fold=1)) == tiles(replace(run, fold="all")) == len(index)
    assert tiles(replace(run, added=(AddedSet(DATA, 1.0, sha256),))) == len(index)
    assert capsys.readouterr().err == ""
    assert tiles(replace(run, data_sha256="ab" * 32)) == 0
    assert f"the card gets no areas of training: the index of {DATA} has changed" in capsys.readouterr().err
    assert tiles(replace(run, data="gone")) == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"encoder_weights": "timm resnet18"}, ("timm resnet18", "apache-2.0")),
        ({"encoder_weights": "file mine.pth"}, ("file mine.pth", "")),
        ({"encoder_weights": "random weights"}, ("random weights", "")),
        ({"encoder_weights": "/home/me/a.safetensors", "start_from": "/home/me/a.safetensors"}, ("a.safetensors", "")),
    ],
)
def test_encoders(workplace: Path, settings: dict[str, str], expected: tuple[str, str]):
    run = RunSettings(data=DATA, encoder="resnet18", batch_size=4, epochs=3, **settings)  # type: ignore[arg-type]
    learned = provenance_of([run, replace(run, epochs=5, fold=1)], Paths(workplace))
    assert learned.encoders == (TrainedEncoder("resnet18", *expected),)
    assert learned.options == {"batch_size": 4}  # epochs differ


def test_an_export_records_it_and_a_file_wins(workplace: Path, cli: Cli):
    folder = workplace / "runs" / "tiny" / "fold0"
    write_run(folder, {"kam/a": (1, 1, 1)}, recipe="tiny", recipe_path="", data=DATA, gsd_m=1.0, fold=0)
    save_file(rebuild(load_recipe("tiny", Paths(workplace))).model.state_dict(), folder / "best.safetensors")
    about = workplace / "about.json"
    about.write_text(json.dumps({"provenance": {"encoders": [{"name": "resnet18", "weights": "mine"}]}}))
    code, _, err = cli(
        "export", "tiny/fold0", "--name", "solo", "--views", "none", "--about", about, "--root", workplace
    )  # fmt: skip
    assert code == 0, err
    card = read_card(workplace / "weights" / "solo.pt")
    assert card.provenance.areas
    assert card.provenance.encoders == (TrainedEncoder("resnet18", "mine"),)
    before = card.provenance.areas
    code, _, err = cli("weights", "--describe", "solo", "--data", DATA, "--root", workplace)
    assert code == 0, err
    assert read_card(workplace / "weights" / "solo.pt").provenance.areas == before
