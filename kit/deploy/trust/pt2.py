"""The file of `torch.export`, read only when it holds no more than kit writes.

`torch.export.load` by itself unpickles what a file marks as pickled, loads compiled libraries in it, calls any function
of torch that a graph names, and evaluates sizes and guards as Python.
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kit.deploy.trust.zip_records import LARGEST_BYTES, read_entry
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
# what a graph may hold under a key, where that is not a name
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
    "as_string": re.compile(r"[\w.' <>=]*"),  # the message of an assertion
    "stack_trace": NOTHING,
    "nn_module_stack": re.compile(r"[\w.,;@]*"),
    "torch_fn": re.compile(r"[\w.;]*"),
    "torch_version": re.compile(r"[\w.+]*"),
}
DAMAGES = (
    zipfile.BadZipFile, zlib.error, OSError, KeyError, ValueError, TypeError, RuntimeError, AssertionError,
    AttributeError,
)  # fmt: skip
HINT = "read only files of people you trust; this one is not as kit export writes it, with torch 2.15"


def load(path: Path) -> torch.export.ExportedProgram:
    """Returns the program in a file, after checking that reading it runs no code of the file's own.

    Raises:
        WeightsError: the file is none of torch.export, is damaged, or holds more than a graph and tensors.
    """
    try:
        records = _records(path)
        _check(records, path)
        clean = io.BytesIO()  # torch reads what was checked: its own reader of zips could see other records
        with zipfile.ZipFile(clean, "w") as archive:
            for name, data in records.items():
                archive.writestr(zipfile.ZipInfo(f"model/{name}"), data)
        clean.seek(0)
        program: torch.export.ExportedProgram = torch.export.load(clean)
    except DAMAGES as cause:
        raise WeightsError(f"{path} does not load as pt2: {str(cause).strip().splitlines()[0]}", HINT) from cause
    return program


def _records(path: Path) -> dict[str, bytes]:
    """Returns the records of an archive, by their names below its one folder."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
        stored = sum(entry.file_size for entry in entries if entry.compress_type == zipfile.ZIP_STORED)
        if packed > LARGEST_BYTES or stored > path.stat().st_size:
            raise ValueError(f"its records claim {(packed + stored) / 1e6:.0f} MB")
        return {entry.filename.partition("/")[2]: read_entry(archive, entry) for entry in entries}


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
            raise WeightsError(f"{path} holds {text[:80]!r} as {key or 'a name'}, which kit never writes", HINT)


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
