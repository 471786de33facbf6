"""The file of `torch.export`: written without pickles, and read only when it holds no more than kit writes."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kit.errors import WeightsError

RECORDS = re.compile(
    r"data/weights/(model_weights_config\.json|weight_\d+)|data/constants/(model_constants_config\.json|tensor_\d+)"
    r"|models/model\.json|data/sample_inputs/model\.pt|extra/card\.json|archive_(format|version)|byteorder|version"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
NAMES = re.compile(r"[\w.]*")  # of steps, tensors and modules: torch writes them into the code of `forward`
NOTHING = re.compile(r"(?!)")
SIZES = (
    "Symbol|Integer|Float|precision|Rational|positive|nonnegative|integer|True|False|None",
    "Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|IntTrueDiv|FloatTrueDiv|FloatPow",
    "ToFloat|TruncToInt|TruncToFloat|FloorToInt|CeilToInt|RoundToInt",
    "And|Or|Not|Equality|Unequality|GreaterThan|StrictGreaterThan|LessThan|StrictLessThan",
)
# what a graph may say under a key, where that is not a name
TEXTS = {
    "target": re.compile(
        r"torch\.ops\.aten\.(?!from_file|__(?!and__|or__|xor__))\w+\.(?!_)\w+|torch\.sym_[a-z]+"
        r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|getitem|and_|or_|[gl][te]|eq|ne)"
    ),
    "expr_str": re.compile(rf"({'|'.join(SIZES)}|'[su]\d+'|[\s\d().,=-])*"),  # sympy evaluates it as Python
    "in_spec": (  # a tree could name a class, which is imported
        tree := re.compile(
            r'([\[\]{}\s\d:,]|null|"(null|\[\]|type|context|children_spec|builtins\.(tuple|list|dict))")*'
        )
    ),
    "out_spec": tree,
    "guards_code": NOTHING,
    "as_operator": NOTHING,
    "as_string": re.compile(r"[\w.' <>=]*"),  # what an assertion says
    "stack_trace": NOTHING,
    "nn_module_stack": re.compile(r"[\w.,;@]*"),
    "torch_fn": re.compile(r"[\w.;]*"),
    "torch_version": re.compile(r"[\w.+]*"),
}
HINT = "read only files of people you trust; this one is not as kit export writes it, with torch 2.15"


def save(program: torch.export.ExportedProgram, path: Path, card: str) -> None:
    """Writes an exported program.

    Left out are the example inputs, which torch would pickle; where in the source each step stands, with paths of this
    machine; and the assertions that tensors are of the example's device and type.

    Args:
        program: changed in place.
        path: ends in .pt2.
        card: JSON, for the extra file `card.json`.
    """
    program._example_inputs = None
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
            continue
        node.meta.pop("stack_trace", None)
        if isinstance(node.meta.get("val"), torch.Tensor):
            node.meta["val"] = _short(node.meta["val"])
    torch.export.save(program, path, extra_files={"card.json": card})


def _short(value: torch.Tensor) -> torch.Tensor:
    """Returns the shape of a step's result, with `Max(1, side)` in strides shortened to `side`: no side is below 1.

    Loading parses each stride, and would take four times as long.
    """
    fake_mode = getattr(value, "fake_mode", None)
    if fake_mode is None or all(isinstance(stride, int) for stride in value.stride()):
        return value
    with fake_mode:
        strides = [_without_max(stride) for stride in value.stride()]
        return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)


def _without_max(stride: Any) -> Any:
    if isinstance(stride, int):
        return stride
    short = stride.node.expr.replace(
        lambda part: type(part).__name__ == "Max" and len(part.args) == 2 and part.args[0] == 1,
        lambda part: part.args[1],
    )
    return stride.node.shape_env.create_symintnode(short, hint=stride.node.hint)


def load(path: Path) -> torch.export.ExportedProgram:
    """Returns the program in a file, once it is known that reading it runs no code but torch's.

    `torch.export.load` by itself unpickles what a file marks as pickled, loads compiled libraries in it, calls whatever
    function of torch a graph names, and evaluates sizes and guards as Python.

    Raises:
        WeightsError: the file is none of torch.export, is damaged, or holds any of that.
    """
    try:
        records = _records(path)
        _check(records, path)
        clean = io.BytesIO()  # what was checked is what is read: no second reader of the archive may differ
        with zipfile.ZipFile(clean, "w") as archive:
            for name, data in records.items():
                archive.writestr(zipfile.ZipInfo(f"model/{name}"), data)
        clean.seek(0)
        program: torch.export.ExportedProgram = torch.export.load(clean)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, RuntimeError, AssertionError) as cause:
        raise WeightsError(f"{path} does not load as pt2: {str(cause).strip().splitlines()[0]}", HINT) from cause
    return program


def _records(path: Path) -> dict[str, bytes]:
    """Returns the records of an archive, by their names below its one folder."""
    with zipfile.ZipFile(path) as archive:
        return {entry.filename.partition("/")[2]: archive.read(entry) for entry in archive.infolist()}


def _check(records: dict[str, bytes], path: Path) -> None:
    """Raises WeightsError when a record could make torch run code of the file's own."""
    for name in records:
        if not RECORDS.fullmatch(name):
            raise WeightsError(f"{path} holds {name}, expected a graph and tensors alone", HINT)
    if records["data/sample_inputs/model.pt"]:
        raise WeightsError(f"{path} holds pickled example inputs", HINT)
    for kind in ("weights", "constants"):
        for payload in json.loads(records[f"data/{kind}/model_{kind}_config.json"])["config"].values():
            if payload["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
                raise WeightsError(f"{path} holds pickled {kind}", HINT)
    for key, text in _texts(json.loads(records["models/model.json"])):
        if not TEXTS.get(key, NAMES).fullmatch(text):
            raise WeightsError(f"{path} says {text[:80]!r} as {key or 'a name'}, unknown here", HINT)


def _texts(part: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields all texts of parsed JSON: the key that each stands under, or nothing for the keys themselves."""
    if isinstance(part, str):
        yield key, part
    elif isinstance(part, list):
        for item in part:
            yield from _texts(item, key)
    elif isinstance(part, dict):
        for name, value in part.items():
            yield "", name
            yield from _texts(value, name)
