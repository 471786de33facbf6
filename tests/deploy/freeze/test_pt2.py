"""A pt2 file from elsewhere: nothing of it runs before it is known to be as kit writes it."""

import io
import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_fakes import export_tiny

from kit.deploy.freeze import runners
from kit.deploy.trust import pt2
from kit.errors import WeightsError

Records = dict[str, bytes]
MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pt2")
    return export_tiny(folder, seeds=(1,), views="none", others=("pt2",)).path.with_suffix(".pt2")


@pytest.fixture
def changed(good: Path, tmp_path: Path) -> Callable[[Callable[[Records], None]], Path]:
    """Writes the good file again after a change of its records."""

    def write(change: Callable[[Records], None]) -> Path:
        records = pt2._records(good)
        change(records)
        with zipfile.ZipFile(tmp_path / "bad.pt2", "w") as archive:
            for name, data in records.items():
                archive.writestr(f"bad/{name}", data)
        return tmp_path / "bad.pt2"

    return write


def with_json(name: str, change: Callable[[Any], None]) -> Callable[[Records], None]:
    def apply(records: Records) -> None:
        parsed = json.loads(records[name])
        change(parsed)
        records[name] = json.dumps(parsed).encode()

    return apply


def pickled(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(((Canary(canary),), {}), buffer)
    return buffer.getvalue()


def graph_of(model: Any) -> Any:
    return model["graph_module"]["graph"]


def first_size(part: Any) -> Any:
    """The first record of a symbolic size."""
    if isinstance(part, dict) and "expr_str" in part:
        return part
    items = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return next((found for item in items if (found := first_size(item))), None)


def test_what_kit_writes_has_no_pickle(good: Path):
    records = pt2._records(good)
    assert records["data/sample_inputs/model.pt"] == b""
    assert not any(entry["use_pickle"] for entry in json.loads(records[WEIGHTS])["config"].values())
    for name, data in records.items():
        assert not zipfile.is_zipfile(io.BytesIO(data)), f"{name} is as torch.save writes"


def test_rewritten_unchanged_it_loads(changed: Callable[..., Path]):
    run = runners.runner(changed(lambda records: None))
    image = torch.zeros(1, 3, 20, 20, dtype=torch.uint8).numpy()
    assert run(image).shape == (1, 1, 20, 20)


def test_pickled_inputs_are_not_read(changed: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The danger is real: torch falls back to a full unpickling."""
    canary = tmp_path / "canary"
    path = changed(lambda records: records.update({"data/sample_inputs/model.pt": pickled(canary)}))
    with pytest.raises(WeightsError, match=r"bad\.pt2 holds pickled example inputs"):
        runners.runner(path)
    assert not canary.exists()
    caplog.set_level(logging.ERROR, "torch._export.serde.serialize")  # torch 2.14 warns with too few arguments
    torch.export.load(path)
    assert canary.exists()


def evil_size(model: Any) -> None:
    first_size(model)["expr_str"] = "__import__('pathlib').Path('canary').touch()"


def evil_guard(model: Any) -> None:
    model["guards_code"].append("__import__('os').remove('x')")


def evil_operator(model: Any) -> None:
    graph_of(model)["nodes"][0]["target"] = "torch.os.system"


def evil_file(model: Any) -> None:
    graph_of(model)["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def evil_name(model: Any) -> None:
    model["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = ["x=print(1)"]


def evil_tree(model: Any) -> None:
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("builtins.tuple", "evil.module")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (evil_size, 'holds "__import__'),
        (evil_guard, "as guards_code"),
        (evil_operator, "holds 'torch.os.system' as target"),
        (evil_file, "from_file"),
        (evil_name, "as forward_arg_names"),
        (evil_tree, "as in_spec"),
    ],
)
def test_code_in_a_graph_is_refused(
    changed: Callable[..., Path], change: Callable[[Any], None], message: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = changed(with_json(MODEL, change))
    with pytest.raises(WeightsError, match=rf"bad\.pt2 .*{message}") as error:
        runners.runner(path)
    assert "people you trust" in error.value.hint
    assert not Path("canary").exists()


def test_pickled_weights_and_strange_records_are_refused(changed: Callable[..., Path]):
    def pickle_first(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    with pytest.raises(WeightsError, match=r"bad\.pt2 holds pickled weights"):
        runners.runner(changed(with_json(WEIGHTS, pickle_first)))
    library = {"data/aotinductor/model/model.so": b"ELF"}
    with pytest.raises(WeightsError, match=r"bad\.pt2 holds data/aotinductor/model/model\.so"):
        runners.runner(changed(lambda records: records.update(library)))
    with pytest.raises(WeightsError, match=r"bad\.pt2 does not load as pt2"):
        runners.runner(changed(lambda records: records.pop(MODEL) and None))
