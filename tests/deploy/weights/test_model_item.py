"""STAC items of weights: valid by the MLM extension's schema, typed, and refused for cards that lack a field."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pystac
import pytest
from deploy_fakes import export_tiny
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import MLMExtension

from kit.deploy.proof.verify import verify
from kit.deploy.weights.card import Card, Provenance, TrainedArea, TrainedEncoder
from kit.deploy.weights.load import read_card
from kit.deploy.weights.model_item import Listing, as_identifier, model_item
from kit.deploy.weights.starter import starter_weights
from kit.deploy.weights.store import IN_PLACE, read_index
from kit.errors import WeightsError
from kit.paths import Paths
from kit.pipeline.export import Exported
from kit.pipeline.publish import publish_item
from kit.system.files import sha256_of

Cli = Callable[..., tuple[int, str, str]]

SCHEMAS = Path(__file__).parent / "mlm_schemas"
MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
ITEM = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"
AREAS = (
    TrainedArea("kam", 1, 9, (32.59, 0.35, 32.6, 0.36)),
    TrainedArea("znz", 2, 30, (39.2, -6.2, 39.3, -6.1)),
)
LEARNED = Provenance(AREAS, (TrainedEncoder("resnet18", "timm resnet18", "apache-2.0"),), {"epochs": 3})
FILE = {
    "imagery": "(c) somebody",
    "provenance": {
        "areas": [{"area": "kam", "scenes": 1, "tiles": 9, "bbox": [32.59, 0.35, 32.6, 0.36]}],
        "encoders": [{"name": "resnet18", "weights": "random weights"}],
    },
}


def faults(item: dict[str, Any]) -> list[str]:
    """What the schemas of MLM and of STAC items say."""
    jsonschema, referencing = pytest.importorskip("jsonschema"), pytest.importorskip("referencing")
    core = Path(pystac.__file__).parent / "validation" / "jsonschemas"
    files = (*SCHEMAS.glob("*.json"), *core.rglob("*.json"))
    schemas = [schema for file in files if "$id" in (schema := json.loads(file.read_text()))]
    known = {schema["$id"].removesuffix("#").replace("/commonjson", "/common.json"): schema for schema in schemas}
    classes = "https://stac-extensions.github.io/classification/{}/schema.json"
    known[classes.format("v1.1.0")] = known[classes.format("v2.0.0")]  # see mlm_schemas/README.md
    resources = [(name, referencing.Resource.from_contents(schema)) for name, schema in known.items()]
    registry = referencing.Registry().with_resources(resources)
    found = []
    for name in (MLM, ITEM):
        validator = jsonschema.Draft7Validator(known[name], registry=registry)
        found += [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(item)]
    return found


def item_of(exported: Exported, card: Card, tile_px: int = 0) -> dict[str, Any]:
    return model_item(exported.path, card, Listing("MIT", 1000, tile_px), exported.path.with_suffix(".stac.json"))


@pytest.fixture
def learned(tiny_weights: Exported) -> Card:
    return replace(tiny_weights.card, provenance=LEARNED)


def test_items_are_valid(tiny_weights: Exported, learned: Card):
    assert faults(item_of(tiny_weights, learned)) == []
    layers = replace(learned, channels=("footprint", "boundary", "contact"), score=None, torch_version="2.15.0a0+git")
    assert faults(item_of(tiny_weights, layers)) == []
    scratch = replace(LEARNED, encoders=(TrainedEncoder("resnet18", "random weights"),), areas=AREAS[:1])
    item = item_of(tiny_weights, replace(learned, provenance=scratch))
    assert faults(item) == []
    assert (item["properties"]["mlm:pretrained"], item["properties"]["mlm:pretrained_source"]) == (False, None)
    assert item["geometry"]["type"] == "Polygon"


def test_the_schemas_refuse_other_items(tiny_weights: Exported, learned: Card):
    item = item_of(tiny_weights, learned)
    item["properties"]["mlm:input"][0]["input"]["data_type"] = "byte"
    del item["assets"]["pt"]["mlm:artifact_type"]
    assert len(faults(item)) >= 2


def test_inputs_and_outputs_are_typed(tiny_weights: Exported, learned: Card):
    item = pystac.Item.from_dict(item_of(tiny_weights, learned))
    mlm = MLMExtension.ext(item)
    (image,), outputs = mlm.input, {output.name: output.result for output in mlm.output}
    assert (image.input.shape, image.input.data_type) == ([-1, 3, -1, -1], "uint8")
    assert image.input.dim_order == ["batch", "channel", "height", "width"]
    assert image.value_scaling is None  # normalisation is inside
    inside = item.properties["mlm:input"][0]["kit:normalisation_inside"]
    assert inside[0][0] == {"type": "z-score", "mean": learned.mean[0][0], "stddev": learned.std[0][0]}
    assert {name: (result.shape[1], result.data_type) for name, result in outputs.items()} == {
        "probability": (1, "float32"), "mask": (1, "uint8"), "members": (2, "float32"),
    }  # fmt: skip
    assert mlm.pretrained_source == "timm resnet18 (apache-2.0)"
    assert mlm.total_parameters == 1000
    assert mlm.hyperparameters.to_dict()["epochs"] == 3
    assert item.properties["kit:metrics"]["jaccard"] == 0.5
    assert item.bbox == [32.59, -6.2, 39.3, 0.36]
    file = FileExtension.ext(item.assets["pt"])
    assert file.checksum == "1220" + sha256_of(tiny_weights.path)
    assert item.assets["pt"].href == "./tiny.pt"


def test_every_format_is_an_asset(tmp_path: Path, tiny_weights: Exported, learned: Card):
    path = tmp_path / "weights" / "tiny.pt"
    path.parent.mkdir()
    for suffix in (".pt", ".pt2", ".onnx", ".gis.onnx"):
        path.with_suffix(suffix).write_bytes(tiny_weights.path.read_bytes())
    item = model_item(path, learned, Listing("MIT", 1000), tmp_path / "catalogue" / "tiny.json")
    assert faults(item) == []
    formats = {key: (asset["mlm:framework"], asset["mlm:artifact_type"]) for key, asset in item["assets"].items()}
    assert formats == {
        "pt": ("PyTorch", "torch.jit.save"),
        "pt2": ("PyTorch", "torch.export.save"),
        "onnx": ("ONNX", "torch.onnx.export"),
    }
    assert item["assets"]["onnx"]["href"] == "../weights/tiny.onnx"


def test_tiles_for_gis_programs_have_an_item_of_their_own(tiny_weights: Exported, learned: Card):
    tiles = tiny_weights.path.with_suffix(".gis.onnx")
    tiles.write_bytes(b"tiles")
    try:
        item = item_of(tiny_weights, learned, 128)
    finally:
        tiles.unlink()
    assert faults(item) == []
    image = item["properties"]["mlm:input"][0]
    assert (image["input"]["shape"], image["input"]["data_type"]) == ([1, 3, 128, 128], "float32")
    assert image["value_scaling"] == [{"type": "min-max", "minimum": 0, "maximum": 255}]
    assert item["properties"]["mlm:output"][0]["result"]["shape"] == [1, 2, 128, 128]
    assert sorted(item["assets"]) == ["card", "gis.onnx"]


@pytest.mark.parametrize(
    ("name", "expected"), [("lite0", "lite0"), ("a", "kit-a"), ("2020_", "kit-2020"), ("Stadtpläne", "Stadtpl-ne")]
)
def test_names_of_models(tmp_path: Path, tiny_weights: Exported, learned: Card, name: str, expected: str):
    path = tmp_path / f"{name}.pt"
    path.write_bytes(tiny_weights.path.read_bytes())
    item = model_item(path, learned, Listing("MIT", 1), tmp_path / "item.json")
    assert item["properties"]["mlm:name"] == expected
    assert faults(item) == []


@pytest.mark.parametrize(("text", "licence"), [("CC-BY-4.0", "CC-BY-4.0"), ("MIT; name us", "other"), ("", "other")])
def test_licences(text: str, licence: str):
    assert as_identifier(text) == licence


def test_a_card_that_lacks_a_field_names_it_and_the_command(tiny_weights: Exported, learned: Card):
    for field in ("areas", "encoders"):
        with pytest.raises(WeightsError, match=rf"card of tiny\.pt has no provenance\.{field}, which a STAC") as error:
            item_of(tiny_weights, replace(learned, provenance=replace(LEARNED, **{field: ()})))
        assert "kit export tiny/fold0 tiny/fold1 --name tiny" in error.value.hint
        assert f'kit weights --describe tiny --about FILE with {{"provenance": {{"{field}": [' in error.value.hint


def test_the_commands_complete_a_card_and_write_the_item(tmp_path: Path, cli: Cli):
    exported = export_tiny(tmp_path / "weights")
    export_tiny(tmp_path / "weights", "newer")
    code, _, err = cli("weights", "--stac", "tiny", "--root", tmp_path)
    assert code == 1
    assert "no provenance.areas" in err
    (tmp_path / "facts.json").write_text(json.dumps(FILE))
    described = cli("weights", "--describe", "tiny", "--about", tmp_path / "facts.json", "--root", tmp_path)
    assert described[:2] == (0, f"{tmp_path / 'weights' / 'tiny.json'}\n"), described[2]
    card = read_card(exported.path)
    assert card.about == {"imagery": "(c) somebody"}
    assert card == replace(exported.card, about=card.about, provenance=card.provenance)
    verify(exported.path).require()
    rows = read_index(tmp_path / "weights")
    assert [row.name for row in rows] == ["tiny", "newer"]  # the newest stays the newest
    assert rows[0].file_sha256 == sha256_of(exported.path)
    assert not list(tmp_path.rglob(IN_PLACE))
    code, out, err = cli("weights", "--stac", "tiny", "--licence", "MIT", "--root", tmp_path)
    assert (code, out) == (0, f"{tmp_path / 'weights' / 'tiny.stac.json'}\n"), err
    item = json.loads((tmp_path / "weights" / "tiny.stac.json").read_text())
    assert faults(item) == []
    assert item["properties"]["license"] == "MIT"
    assert item["properties"]["mlm:total_parameters"] > 1000
    export_tiny(tmp_path / "weights")
    assert not (tmp_path / "weights" / "tiny.stac.json").exists()  # of other networks


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--stac", "tiny", "--folder", "tiny"), 2, "give one of"),
        (("--describe", "tiny"), 2, "needs --about or --data"),
        (("--data", "tier1"), 2, "they need --describe"),
        (("--out", "x.json"), 2, "needs --folder or --stac"),
        (("--stac", "tiny", "--out", "weights/tiny.json"), 1, "is no name for a STAC item"),
        (("--stac", "tiny", "--licence", "a b"), 1, "is no identifier"),
        (("--describe", "tiny", "--data", "none"), 1, "no data set 'none'"),
    ],
)
def test_bad_input(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
):
    exported = export_tiny(tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    before = sha256_of(exported.path), exported.path.with_suffix(".json").read_text()
    result = cli("weights", *arguments)
    assert result[0] == code
    assert message in " ".join(result[2].split())
    assert (sha256_of(exported.path), exported.path.with_suffix(".json").read_text()) == before


def test_a_broken_file_of_facts_changes_nothing(tmp_path: Path, cli: Cli):
    exported = export_tiny(tmp_path / "weights")
    before = sha256_of(exported.path)
    (tmp_path / "facts.json").write_text('{"provenance": {"areas": [{"area": "kam", "bbox": [0, 0, 999, 1]}]}}')
    code, _, err = cli("weights", "--describe", "tiny", "--about", tmp_path / "facts.json", "--root", tmp_path)
    assert code == 1
    assert "provenance in" in err
    assert sha256_of(exported.path) == before


def test_the_starter_weights_have_a_valid_item(tmp_path: Path):
    assert starter_weights() is not None
    item = json.loads(publish_item("starter", Paths(tmp_path), None, "MIT").read_text())
    assert faults(item) == []
    assert [area["area"] for area in item["properties"]["kit:areas"]] == ["kam", "kum", "lus", "nbo", "vir", "znz"]
    assert "apache-2.0" in item["properties"]["mlm:pretrained_source"].lower()
    assert (tmp_path / "weights" / item["assets"]["pt"]["href"]).resolve() == starter_weights().resolve()
