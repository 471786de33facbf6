"""The pages in docs: recipes train and export, names, commands, tables and messages are true."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import albumentations as A
import pytest
import torch
import typer
from factories import write_catalog
from fastai.vision import all as fv
from torch import nn
from torch.distributed import launch
from torch.distributed import run as torchrun

import kit
from kit.cli import app
from kit.errors import RecipeError
from kit.models import losses
from kit.models.pretrained import Source
from kit.paths import Paths
from kit.pipeline.check import check
from kit.pipeline.run import RunOptions
from kit.pipeline.run import run as run_recipe
from kit.training.fit import Setup
from kit.training.recipe import SIGNATURES, known_recipes, known_solutions

DOCS = Path(__file__).parents[1] / "docs"
PAGE, TRAINING, DATA, MOSAICS, SOLUTION = (
    (DOCS / f"{name}.md").read_text() for name in ("recipes", "training", "data", "mosaics", "solution")
)
RECIPES = dict(re.findall(r"<!-- recipe: (\w+) -->\n```python\n(.+?)```", PAGE + TRAINING, re.S))
LAUNCHERS = {"torch.distributed.run": torchrun.parse_args, "torch.distributed.launch": launch.parse_args}


def prose(page: str) -> str:
    return re.sub(r"^```.+?^```", "", page, flags=re.M | re.S)


def inline(page: str) -> list[str]:
    return sorted(set(re.findall(r"`([^`\n]+)`", prose(page))))


def shell(page: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.+?)```", page, re.S)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]


PROSE, INLINE = prose(PAGE), inline(PAGE)
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands
MODULES = (
    "data.dataset", "models.unet", "models.losses", "models.metrics",
    "training.callbacks", "training.schedules", "training.mixing", "training.distillation",
)  # fmt: skip
SIDE_PX = 512  # of a tile: the crop of the page's first recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with layers, a tile a scene, and the page's recipes."""
    from factories import prepare

    folder = tmp_path_factory.mktemp("docs")
    size = {"width": SIDE_PX, "height": SIDE_PX}
    areas = {"kam": {"a": {"seed": 1, **size}, "b": {"seed": 2, **size}}, "znz": {"c": {"seed": 3, **size}}}
    catalog = write_catalog(folder / "train", areas)
    prepare(catalog, Paths(folder), grid="native", side_px=SIDE_PX, by="scene", k=3, layers=True)
    (folder / "recipes").mkdir()
    for name, text in RECIPES.items():
        (folder / "recipes" / f"{name}.py").write_text(text)
    return folder


def test_every_recipe_of_the_page_is_found():
    pages = PAGE + TRAINING
    assert len(RECIPES) == pages.count("```python") == pages.count("<!-- recipe: ")


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_trains_and_exports(name: str, root: Path, monkeypatch: pytest.MonkeyPatch):
    exported = "unet(" in RECIPES[name] or "encoder=" in RECIPES[name]
    if not exported:  # lite0's network, whose export is tried with kit's own recipes: most of the time of a check
        monkeypatch.setattr("kit.pipeline.check._export_row", lambda *_: "")
    rows = dict(check(name, Paths(root), tiny=True).rows)
    assert "no gradient" not in rows["parameters"]
    assert not exported or "100.00% of mask pixels equal" in rows["export"]
    quoted = dict(re.findall(r"^(\w+(?: \w+)*)  +(.+)$", re.search(r"```\n(of the recipe.+?)```", PAGE, re.S)[1], re.M))
    if quoted["of the recipe"] == name:
        for row in ("encoder", "parameters", "cost"):
            assert rows[row] == quoted[row]
        explained = re.search(r"\| row \| content \|\n\|[-|]+\n((?:\|.+\n)+)", PAGE)[1]
        cells = [cell for line in explained.splitlines() for cell in line.split("|")[1].strip().split(", ")]
        assert cells == list(quoted)[1:]
        assert set(rows) <= set(cells)


def test_the_small_ones_are_as_short_as_promised():
    lines = [line for line in RECIPES["longer"].splitlines() if line][1:]  # after the docstring
    assert len(lines) == 4
    assert RECIPES["first"].count("\n") <= 30


def scope() -> dict[str, Any]:
    """What the page's code may name: kit's public names, and those of the libraries, as recipes import them."""
    found: dict[str, Any] = {"A": A, "fv": fv, "torch": torch, "learn": fv.Learner, "partial": partial, "slice": slice}
    for name in MODULES:
        found |= {key: value for key, value in vars(import_module(f"kit.{name}")).items() if not key.startswith("_")}
    return found


def parameters(names: dict[str, Any]) -> Iterator[str]:
    """Yields the arguments of kit's functions and classes, of the Learner, and of an augmentation."""
    for thing in [*names.values(), fv.Learner, A.ElasticTransform]:
        if callable(thing) and (thing in (fv.Learner, A.ElasticTransform) or thing.__module__.startswith("kit.")):
            yield from inspect.signature(thing).parameters


def resolved(names: dict[str, Any], expression: ast.expr) -> Any:
    """Returns what `a.b.c` is."""
    if isinstance(expression, ast.Attribute):
        owner = resolved(names, expression.value)
        attributes = inspect.signature(owner).parameters if owner is fv.Learner else {}  # it keeps its arguments
        return attributes.get(expression.attr) or getattr(owner, expression.attr)
    assert isinstance(expression, ast.Name)
    return names[expression.id]


@pytest.mark.parametrize("code", INLINE)
def test_names_in_the_text_exist(code: str, tmp_path: Path):
    names = scope()
    try:
        node = ast.parse(code).body[0]
    except (SyntaxError, IndexError):
        return  # a command, a path, an encoder's tag
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        assert node.targets[0].id.isupper() or node.targets[0].id in set(parameters(names))
        return
    value = node.value if isinstance(node, ast.Expr) else None
    if isinstance(value, ast.Call) and ast.unparse(value.func) in SIGNATURES:
        assert f"def {ast.unparse(value)}" in SIGNATURES[ast.unparse(value.func)]
    elif isinstance(value, ast.Call) and ast.unparse(value.func) != "slice":
        given = [argument for argument in value.args if ast.unparse(argument) != "..."]
        keywords = {str(keyword.arg): None for keyword in value.keywords}
        inspect.signature(resolved(names, value.func)).bind_partial(*given, **keywords)
    elif isinstance(value, ast.Attribute) and ast.unparse(value).startswith(("A.", "fv.", "learn.")):
        resolved(names, value)
    elif isinstance(value, ast.Name):
        words = {*names, *SIGNATURES, *parameters(names), *RECIPES, *known_recipes(Paths(tmp_path)), *COMMANDS}
        words |= {
            "ROUNDS",
            "recipes",
            "to",
            "encoder",
            "step",
            "features_only",
            "tf_efficientnet_lite0",
            "tf_efficientnet_lite2",
            "KIT_ROOT",
            "Learner",
        }
        assert code in words


def kit_arguments(line: str) -> list[str]:
    """The words that follow `kit`, or what a launcher takes for it; none for another program's command."""
    words = shlex.split(line, comments=True)
    while "=" in words[0]:  # of the environment
        words.pop(0)
    if words[0] == "torchrun":
        words[:1] = ["python", "-m", "torch.distributed.run"]
    if words[:2] != ["python", "-m"]:
        return words[1:] if words[0] == "kit" else []
    launched = LAUNCHERS[words[2]](words[3:])
    assert (launched.module, launched.training_script) == (True, "kit")
    return list(launched.training_script_args)


@pytest.mark.parametrize("line", [*shell(PAGE), *shell(TRAINING), *shell(DATA), *shell(MOSAICS), *shell(SOLUTION)])
def test_commands_parse(line: str, root: Path):
    if not (words := kit_arguments(line)):
        assert line in ("pip install 'footprintkit[trackio]'", "trackio show --project kit")
        return
    command, *arguments = words
    context = COMMANDS[command].make_context(command, arguments)  # a usage error where something is unknown or missing
    for name in [context.params.get("recipe"), *(run.split("/")[0] for run in context.params.get("runs", ()))]:
        assert name is None or name in known_recipes(Paths(root)) | known_solutions(Paths(root))


@pytest.mark.parametrize("page", ["map", "submit", "weights"])
def test_commands_of_other_pages_parse(page: str):
    lines = [line for line in shell((DOCS / f"{page}.md").read_text()) if line.startswith("kit ")]
    assert lines
    for line in lines:
        command, *arguments = kit_arguments(line)
        COMMANDS[command].make_context(command, arguments)


def options(command: str) -> set[str]:
    """The options of a command, in all spellings."""
    return {text for p in COMMANDS[command].params for text in [*p.opts, *p.secondary_opts]}


def test_commands_and_options_in_the_text_exist():
    known = {name: options(name) for name in COMMANDS}
    of_torchrun = {text for action in torchrun.get_args_parser()._actions for text in action.option_strings}
    for code in [*INLINE, *inline(TRAINING), *inline(DATA), *inline(MOSAICS), *inline(SOLUTION)]:
        words = code.split()
        if words[0] == "kit":
            assert {word for word in words[2:] if word.startswith("-")} <= known[words[1]], code
        elif words[0].startswith("--"):
            assert words[0] in set().union(*known.values(), of_torchrun), code


def rows_below(title: str, page: str = TRAINING) -> list[list[str]]:
    """The cells of the first table below a heading of a page."""
    table = re.search(rf"^##+ {title}\n(?:(?!##).*\n)+?\|[-|]+\|\n((?:\|.+\n)+)", page, re.M)
    assert table, title
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]


def test_the_table_of_options_is_whole():
    documented = re.findall(r"`(--[\w-]+)", " ".join(row[0] for row in rows_below("Options")))
    assert len(documented) == len(set(documented))
    known = {text for p in COMMANDS["run"].params for text in [*p.opts, *p.secondary_opts] if text.startswith("--")}
    elsewhere = {"--data", "--root", "--debug", "--pretrained", "--export", "--help"}
    assert set(documented) == known - elsewhere


def test_the_run_folder_and_its_tables_are_as_told(workplace: Path, capsys: pytest.CaptureFixture[str]):
    options = RunOptions(folds=(0,), setup=Setup(source=Source(pretrained=False)), export=False)
    run_recipe("tiny", Paths(workplace), options)
    made = {path.name + "/" * path.is_dir() for path in (workplace / "runs/tiny/fold0").iterdir()}
    documented = [row[0].strip("`") for row in rows_below("The run folder")]
    assert set(documented) - {"tensorboard/", "plan.csv", "inside/"} == made  # of --track, --minutes, layers

    columns = rows_below("Watching it")
    log = (workplace / "runs/tiny/fold0/log.csv").read_text().splitlines()[0].split(",")
    areas = {"jaccard_kum": ["jaccard_kam"], "jaccard_nbo": []}  # of the page, of this data set
    names = [name for row in columns for name in re.findall(r"`(\w+)`", row[1])]
    assert [name for documented in names for name in areas.get(documented, [documented])] == log
    documented = [name for row in columns for name in re.findall(r"`([\w ]+)`", row[0])]
    heads = re.findall(r"^ +epoch .+left$", TRAINING, re.M)
    assert heads[-1].split() == " ".join(documented).split()
    shown = re.search(r"^ +epoch .+left$", capsys.readouterr().err, re.M)
    assert shown
    assert shown[0] in heads


@pytest.mark.parametrize("page", ["training", "data", "map", "submit", "weights"])
def test_the_messages_are_kit_s(page: str):
    texts = {
        node.value
        for file in Path(kit.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for message, _ in rows_below("When something goes wrong", (DOCS / f"{page}.md").read_text()):
        for part in message.strip("`").split("..."):
            assert any(part.strip() in text for text in texts), message


def test_the_table_of_losses_is_whole_and_true():
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|(.*?)\|(.*?)\|(.*?)\|", PAGE, re.M)
    public = {n for n, c in vars(losses).items() if inspect.isclass(c) and issubclass(c, nn.Module) and n[0] != "_"}
    wrappers = {"Sum", "Auxiliary"}
    assert {name for name, *_ in rows} == public - wrappers - {"Tensor"}
    for name, *cells, soft in rows:
        loss = getattr(losses, name)()
        assert loss.soft_targets == (soft.strip() == "yes")
        for cell, channels in zip(cells, (2, 1, 3), strict=True):
            target = torch.randint(0, 2, (2, 3, 8, 8) if channels == 3 else (2, 8, 8))
            try:
                taken = bool(loss(torch.randn(2, channels, 8, 8), target).isfinite())
            except RecipeError:
                taken = False
            assert taken == (cell.strip() == "yes"), (name, channels)


PAGES = [
    "recipes.md",
    "training.md",
    "data.md",
    "mosaics.md",
    "weights.md",
    "submit.md",
    "map.md",
    "scores.md",
    "solution.md",
    "report.md",
]


@pytest.mark.parametrize("name", PAGES)
def test_links_hold(name: str):
    for file, target in re.findall(r"\]\(([\w.]*)(?:#([^)]+))?\)", (DOCS / name).read_text()):
        if file and not file.endswith(".md"):
            assert (DOCS / file).is_file()
            continue
        titles = re.findall(r"^#+ (.+)$", prose((DOCS / (file or name)).read_text()), re.M)
        anchors = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
        assert target in {"", *anchors}
