"""The house: a room imports only from rooms above it, rich and torch.jit stay behind one door."""

import ast
from pathlib import Path

import pytest

import kit

ROOT = Path(kit.__file__).parent
# each room may import the rooms before it; `deploy` never sees `training`
ROOMS = {
    "base": set(),
    "system": {"base"},
    "data": {"base", "system"},
    "sample": {"base", "system", "data"},
    "measures": {"base", "system", "data"},
    "models": {"base", "system", "data"},
    "training": {"base", "system", "data", "measures", "models"},
    "deploy": {"base", "system", "data", "measures", "models"},
    "pipeline": {"base", "system", "data", "sample", "measures", "models", "training", "deploy"},
    "solutions": {"base", "system", "data", "sample", "measures", "models", "training", "deploy", "pipeline"},
    "audit": {"base", "system", "data", "measures", "models", "training", "deploy", "pipeline"},
    "report": {"base", "system", "data", "measures", "models", "training", "deploy", "pipeline"},
    "cli": {
        *("base", "system", "data", "sample", "measures", "models", "training", "deploy", "pipeline"),
        *("solutions", "audit", "report"),
    },
}
# the rooms within a room, in order; a file imports from its own and from those before it. "": the files beside them
SUBROOMS = {
    "data": ["sources", "folds", "", "tiles"],
    "deploy": [
        "",
        "trust",
        "weights",
        "freeze",
        "proof",
        "engine",
        "adaptive",
        "mosaics",
        "submission",
        "mapping",
        "country",
    ],
}
BASE = {"errors", "outputs", "paths", "console"}
FILES = sorted(file for file in ROOT.rglob("*.py") if file.parent != ROOT / "recipes")
RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.py"))


@pytest.mark.parametrize("file", [*FILES, *RECIPES], ids=lambda file: file.stem)
def test_devices_are_chosen_in_one_place(file: Path):
    """`.cuda()` or a device by name would tie the code to a machine."""
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Attribute) and call.attr == "cuda"]


def room_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1 or parts[1] in BASE:
        return "base"
    return "cli" if parts[1] in ("cli", "__main__", "__init__") else parts[1]


def is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def subroom_of(module: str) -> str:
    """`engine` for `kit.deploy.engine.predict`, nothing for a file beside the rooms."""
    parts = module.split(".")
    return parts[2] if len(parts) > 2 and ROOT.joinpath(*parts[1:3]).is_dir() else ""


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module or ""}
            found |= {name for alias in node.names if is_module(name := f"{node.module}.{alias.name}")}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_above_it(file: Path):
    room = room_of(".".join(["kit", *file.relative_to(ROOT).with_suffix("").parts]))
    allowed = ROOMS[room] | {room}
    for module in imports_of(file):
        if module.split(".")[0] == "kit":
            assert room_of(module) in allowed, f"{room} imports {module}"
        assert not f"{module}.".startswith(("recipes.", "kit.recipes.")), "kit never imports a recipe by name"


@pytest.mark.parametrize("room", SUBROOMS)
def test_rooms_within_a_room_keep_their_order(room: str):
    order = SUBROOMS[room]
    assert {file.parent.name for file in (ROOT / room).glob("*/__init__.py")} == {name for name in order if name}
    breaches = []
    for file in sorted((ROOT / room).rglob("*.py")):
        name = str(file.relative_to(ROOT))
        place = order.index(subroom_of(".".join(["kit", *file.relative_to(ROOT).with_suffix("").parts])))
        # `from kit.deploy.engine import openvino` imports the package, and then the module
        for module in imports_of(file):
            later = module.startswith(f"kit.{room}.") and order.index(subroom_of(module)) > place
            package = (ROOT.parent.joinpath(*module.split(".")) / "__init__.py").is_file()
            if later and not package:
                breaches.append(f"{name} imports {module}")
    assert not breaches


def importers(package: str) -> set[str]:
    return {str(f.relative_to(ROOT)) for f in FILES if any(m.split(".")[0] == package for m in imports_of(f))}


def test_rich_has_one_door():
    assert importers("rich") == {"console.py"}


def test_typer_has_one_door():
    assert {file.split("/")[0] for file in importers("typer")} == {"cli"}


def test_deploy_never_imports_fastai():
    assert not {file for file in importers("fastai") if file.startswith("deploy/")}


def mentions(file: Path, module: str) -> bool:
    """Whether a file imports a submodule of torch, or reaches it as an attribute."""
    name = module.removeprefix("torch.")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "torch" and name in {a.name for a in node.names}:
            return True
        if isinstance(node, ast.Attribute) and ast.unparse(node) == module:
            return True
    return any(found == module or found.startswith(f"{module}.") for found in imports_of(file))


@pytest.mark.parametrize(
    ("module", "doors"),
    [("torch.jit", {"deploy/weights/torchscript.py"}),
     ("torch.export", {"deploy/trust/pt2.py", "deploy/freeze/formats.py"}),
     ("torch.onnx", {"deploy/freeze/formats.py"})],
)  # fmt: skip
def test_formats_of_torch_have_one_door(module: str, doors: set[str]):
    """TorchScript is deprecated: it will be replaced in one place."""
    assert {str(file.relative_to(ROOT)) for file in FILES if mentions(file, module)} == doors
    assert not [file for file in RECIPES if mentions(file, module)]


@pytest.mark.parametrize(
    "line", ["import torch.jit", "from torch import jit", "from torch.jit import script", "x = torch.jit.load(y)",
             "import torch.jit.frontend"],
)  # fmt: skip
def test_the_door_is_watched(tmp_path: Path, line: str):
    (tmp_path / "m.py").write_text(line)
    assert mentions(tmp_path / "m.py", "torch.jit")
    assert not mentions(tmp_path / "m.py", "torch.onnx")


def test_only_results_are_printed():
    for file in FILES:
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        printed = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert not printed or file.name == "console.py", file


def test_tests_mirror_the_rooms():
    tests = Path(__file__).parent
    rooms = [room for room in ROOMS if (ROOT / room).is_dir()]
    rooms += [f"{room}/{name}" for room, names in SUBROOMS.items() for name in names if name]
    for room in rooms:
        assert list((tests / room).rglob("test_*.py")), room
    names = [file.name for file in tests.rglob("*.py") if file.name != "conftest.py"]
    assert len(names) == len(set(names)), "pytest imports test files by their bare names"
