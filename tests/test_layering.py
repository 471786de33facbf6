"""The house: a room imports only from rooms above it, rich and torch.jit stay behind one door."""

import ast
from pathlib import Path

import pytest

import kit

ROOT = Path(kit.__file__).parent
# each room may import the rooms before it; `deploy` never sees `training`
ROOMS = {
    "base": set(),
    "data": {"base"},
    "models": {"base", "data"},
    "training": {"base", "data", "models"},
    "deploy": {"base", "data", "models"},
    "pipeline": {"base", "data", "models", "training", "deploy"},
    "cli": {"base", "data", "models", "training", "deploy", "pipeline"},
}
BASE = {"errors", "outputs", "paths", "console"}
FILES = sorted(ROOT.rglob("*.py"))
RECIPES = sorted((ROOT.parent / "recipes").glob("*.py"))


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


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module or ""}
            if node.module == "kit":
                found |= {f"kit.{alias.name}" for alias in node.names if alias.name != "__version__"}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_above_it(file: Path):
    room = room_of(".".join(["kit", *file.relative_to(ROOT).with_suffix("").parts]))
    allowed = ROOMS[room] | {room}
    for module in imports_of(file):
        if module.split(".")[0] == "kit":
            assert room_of(module) in allowed, f"{room} imports {module}"
        assert module.split(".")[0] != "recipes", "kit never imports a recipe by name"


def importers(package: str) -> set[str]:
    return {str(f.relative_to(ROOT)) for f in FILES if any(m.split(".")[0] == package for m in imports_of(f))}


def test_rich_has_one_door():
    assert importers("rich") == {"console.py"}


def test_typer_has_one_door():
    assert importers("typer") == {"cli.py"}


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
    [("torch.jit", {"deploy/torchscript.py"}), ("torch.export", {"deploy/pt2.py", "deploy/formats.py"}),
     ("torch.onnx", {"deploy/formats.py"})],
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
    for room in ("data", "models", "training", "deploy"):
        assert list((tests / room).glob("test_*.py")), room
