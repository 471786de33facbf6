"""One name, one meaning: modules and public classes are unique, and options travel as dataclasses."""

import ast
from collections import defaultdict
from pathlib import Path

import kit

ROOT = Path(kit.__file__).parent
FILES = sorted(file for file in ROOT.rglob("*.py") if "recipes" not in file.relative_to(ROOT).parts)
MOST_PARAMETERS = 8  # of a function; `self` and `cls` do not count


def repeated(places: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: files for name, files in sorted(places.items()) if len(files) > 1}


def test_no_two_modules_have_one_name():
    places: dict[str, list[str]] = defaultdict(list)
    for file in FILES:
        if file.stem not in ("__init__", "__main__"):
            places[file.stem].append(str(file.relative_to(ROOT)))
    assert repeated(places) == {}


def test_no_two_public_classes_have_one_name():
    places: dict[str, list[str]] = defaultdict(list)
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert repeated(places) == {}


def test_no_function_has_more_than_eight_parameters():
    long = []
    for file in FILES:
        if file.relative_to(ROOT).parts[0] == "cli":
            continue  # a command's options are its parameters
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
                names += [a.arg for a in (arguments.vararg, arguments.kwarg) if a]
                count = len([name for name in names if name not in ("self", "cls")])
                if count > MOST_PARAMETERS:
                    long.append(f"{file.relative_to(ROOT)} {node.name}")
    assert long == []
