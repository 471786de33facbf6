"""Commands about training: recipes, runs, and how they compare. Heavy imports wait inside."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kit.cli.application import (
    HERE,
    Compiled,
    Data,
    Debug,
    Device,
    EncoderWeights,
    Json,
    Pretrained,
    RecipeName,
    Root,
    Views,
    app,
    check_nproc,
    number_or_auto,
    show_listing,
)
from kit.console import result, say, table
from kit.paths import Paths
from kit.system.files import check_writable

PANEL = "Training"  # of `kit --help`
Added = Annotated[
    list[str] | None,
    typer.Option(
        "--add",
        metavar="NAME[=W]",
        help="Also train on this data set in every fold, without validating on it. W: how often its groups "
        "are drawn, relative to those of --data; 1 by default. Repeatable.",
    ),
]


@app.command(rich_help_panel=PANEL)
def recipes(as_json: Json = False, root: Root = HERE, debug: Debug = False) -> None:
    """List recipes: encoder, million parameters, GFLOP for one 512 x 512 px image, purpose.

    For a solution, parameters and GFLOP are those of all networks of its last round.

    Example: kit recipes
    """
    import json

    from kit.pipeline.cost import describe_recipes
    from kit.solutions.estimates import describe_solutions

    rows = describe_recipes(Paths(root)) + describe_solutions(Paths(root))
    if as_json:
        result(json.dumps(rows, indent=1))
    else:
        table(
            ("recipe", "encoder", "params_m", "gflop_512", "purpose"),
            [[str(value) for value in row.values()] for row in rows],
        )


@app.command(rich_help_panel=PANEL)
def check(
    recipe: RecipeName,
    data: Annotated[str, typer.Option(help="Data set. Default: the only one, or a sample.")] = "",
    add: Added = None,
    device: Device = "",
    compiled: Compiled = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Use tiny crops: takes seconds, gives no estimates.")] = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Test a recipe: shapes, cost, memory, time per epoch and fold, an export, a sheet of its crops.

    Example: kit check efficientnet_b4
    """
    _check_runs_writable(recipe, root)

    from kit.data.added import parse_added
    from kit.pipeline.check import check as check_recipe

    checked = check_recipe(recipe, Paths(root), data, device, compiled, tiny, parse_added(add or ()))
    table(("property", recipe), checked.rows)
    result(str(checked.sheet))


@app.command(rich_help_panel=PANEL)
def lr_find(
    recipe: RecipeName,
    data: Data = "",
    add: Added = None,
    fold: Annotated[int, typer.Option(help="The fold to hold out.")] = 0,
    device: Device = "",
    encoder_weights: EncoderWeights = None,
    pretrained: Pretrained = True,
    steps: Annotated[int, typer.Option(help="Training steps during which the learning rate rises.", min=20)] = 100,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Find a learning rate for a recipe: train briefly while the rate rises, plot the loss, suggest two rates.

    Example: kit lr-find lite0 --data tier1
    """
    _check_runs_writable(recipe, root)

    from kit.data.added import parse_added
    from kit.models.pretrained import Source
    from kit.pipeline.lr_find import lr_find as find_rate

    source, added = Source(pretrained, encoder_weights), parse_added(add or ())
    search = find_rate(recipe, Paths(root), data, fold, device, source, steps, added)
    table(("suggestion", "rate"), [(name, f"{rate:.1e}") for name, rate in search.rates.items()])
    result(str(search.picture))


@app.command(rich_help_panel=PANEL)
def run(
    recipe: RecipeName,
    data: Data = "",
    add: Added = None,
    fold: Annotated[str, typer.Option(help="Folds to hold out: 0 or 0,2 or all.")] = "all",
    all_: Annotated[bool, typer.Option("--all", help="Hold nothing out: train one network on every fold.")] = False,
    minutes: Annotated[
        float | None,
        number_or_auto(
            float,
            0,
            "Train each fold for this wall time, validation included. auto: as long as its epochs take.",
            most=1_000_000,
            former=0,
        ),
    ] = None,
    epochs: Annotated[
        int | None, number_or_auto(int, 1, "Train this many epochs. auto: the recipe's.", former=0)
    ] = None,
    steps: Annotated[
        int | None,
        number_or_auto(int, 1, "Train this many steps per fold, spread over the epochs. auto: whole epochs.", former=0),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.", min=0, max=2**32 - 1)] = 0,
    name: Annotated[
        str, typer.Option(help="Name of the runs and weights, to train one recipe in several ways. Default: RECIPE.")
    ] = "",
    views: Views = "flips",
    device: Device = "",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16. Default: the one that trains fastest.")] = "",
    encoder_weights: EncoderWeights = None,
    pretrained: Pretrained = True,
    teacher: Annotated[
        Path | None, typer.Option(help="Weights file that the recipe learns from (distillation).")
    ] = None,
    start_from: Annotated[
        str,
        typer.Option(
            help="Start from trained weights: starter, an export, a recipe, <recipe>/fold<k> or a safetensors file."
        ),
    ] = "",
    nproc: Annotated[
        int, typer.Option(metavar="N", help="Processes that train a fold together, one per GPU.", min=1)
    ] = 1,
    parallel_folds: Annotated[
        int, typer.Option(metavar="N", help="Folds trained at once, each on its own GPUs.", min=1)
    ] = 1,
    workers: Annotated[
        int | None,
        number_or_auto(
            int,
            0,
            "Loader processes per training process; 0: load in the training process. auto: by cores and device.",
            former=-1,
        ),
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(metavar="N", help="Minutes between checkpoints within an epoch; 0: none.", min=0)
    ] = 10.0,
    track: Annotated[
        str,
        typer.Option(metavar="NAME", help="Log to tensorboard, mlflow or trackio; several: a,b.", envvar="KIT_TRACK"),
    ] = "",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Like --track tensorboard.")] = False,
    compiled: Compiled = False,
    export: Annotated[bool, typer.Option(help="Export the trained networks as weights at the end.")] = True,
    test: Annotated[
        Path | None, typer.Option(help="Solutions only: chips to label and submit. Default: the sample's.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Solutions only: show stages, state and cost, without running them.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Solutions only: run all stages on a few tiny crops, with random weights.")
    ] = False,
    keep_if_better: Annotated[
        bool,
        typer.Option(
            "--keep-if-better", help="Solutions only: discard a round that scores worse than the previous one."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume although the recipe or settings have changed.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete earlier runs of these folds and train from the start.")
    ] = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Train a recipe's folds, score them on their validation tiles, export the ensemble. Rerun to resume.

    A solution, such as open_cities, runs all of its rounds, from prepared tiles to a checked submission.

    Example: kit run lite0 --data tier1 --fold 0,1 --minutes 12
    """
    _check_runs_writable(name or recipe, root)

    from dataclasses import replace

    from kit.data.added import parse_added
    from kit.models.pretrained import Source
    from kit.pipeline.run import RunOptions, run_side_by_side
    from kit.pipeline.run import run as run_recipe
    from kit.solutions.dry_play import dry_play
    from kit.solutions.play import SolutionOptions, play
    from kit.solutions.rounds import load_solution
    from kit.solutions.show_plan import show_plan
    from kit.system.launcher import launched
    from kit.system.processes import launch
    from kit.training.fit import Setup
    from kit.training.length import LengthOptions
    from kit.training.precision import DTYPES
    from kit.training.recipe import find_recipe, is_known_solution
    from kit.training.tracking import TRACKERS

    if resume and restart:
        raise typer.BadParameter("mutually exclusive with --restart", param_hint="--resume")
    if precision and precision not in DTYPES:
        raise typer.BadParameter(f"{precision!r}, expected {', '.join(DTYPES)}", param_hint="--precision")
    tracked = tuple(dict.fromkeys([*filter(None, track.split(",")), *(["tensorboard"] if tensorboard else [])]))
    if unknown := [name for name in tracked if name not in TRACKERS]:
        raise typer.BadParameter(f"{unknown[0]!r}, expected {', '.join(TRACKERS)}", param_hint="--track")
    if minutes is not None and steps is not None:
        raise typer.BadParameter("mutually exclusive with --steps", param_hint="--minutes")
    check_nproc(max(nproc, parallel_folds))
    paths, own = Paths(root), (test, plan, dry_run, keep_if_better)
    a_solution = is_known_solution(recipe, paths)
    if own != (None, False, False, False) and not a_solution:
        find_recipe(recipe, paths)  # one that is unknown has an error of its own
        raise typer.BadParameter(
            f"{recipe} is a recipe; --test, --plan, --dry-run and --keep-if-better are for solutions",
            param_hint="RECIPE",
        )
    setup = Setup(
        LengthOptions(minutes, epochs, steps), Source(pretrained, encoder_weights), compiled, precision,
        checkpoint_minutes=checkpoint_minutes, track=tracked, resume=resume, restart=restart,
    )  # fmt: skip
    if a_solution:
        of_rounds = (
            add, fold, all_, minutes, epochs, steps, seed, name, views, encoder_weights, teacher, start_from, export,
        ) != (None, "all", False, None, None, None, 0, "", "flips", None, None, "", True)  # fmt: skip
        if of_rounds:
            raise typer.BadParameter(
                f"the rounds of {recipe} set folds, length, seed, views, names and what is learned from: edit a copy "
                "of it in recipes/",
                param_hint="RECIPE",
            )
        if nproc > 1 and not launched() and not plan:
            return launch(nproc, sys.argv[1:])
        solution = load_solution(recipe, paths)
        playing = SolutionOptions(
            data, test, keep_if_better, restart, device, workers,
            replace(setup, restart=False), parallel_folds,
        )  # fmt: skip
        if plan:
            show_plan(solution, paths, playing)
        elif dry_run:
            dry_play(solution, paths, device)
        else:
            result(str(play(solution, paths, playing)))
        return None
    options = RunOptions(
        data=data, added=parse_added(add or ()), folds=_folds(fold, all_), seed=seed, device=device,
        workers=workers, setup=setup, teacher=teacher, start_from=start_from, views=views, export=export, name=name,
    )  # fmt: skip
    if parallel_folds > 1 and not launched():
        exported = run_side_by_side(recipe, Paths(root), options, sys.argv[1:], parallel_folds, nproc)
    elif nproc > 1 and not launched():
        return launch(nproc, sys.argv[1:])
    else:
        exported = run_recipe(recipe, Paths(root), options)
    if exported:
        result(str(exported.path))
    return None


def _check_runs_writable(recipe: str, root: Path) -> None:
    check_writable(Paths(root).check_sheet(Path(recipe).stem).parent)


def _folds(text: str, all_: bool) -> tuple[int | str, ...]:
    if all_:
        return ("all",)
    if text == "all":
        return ()
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected folds such as 0 or 0,2, or all", param_hint="--fold") from None


@app.command(rich_help_panel=PANEL)
def runs(as_json: Json = False, root: Root = HERE, debug: Debug = False) -> None:
    """List runs: state, Jaccard index on validation tiles, best epoch, minutes; and the pooled score of each recipe.

    An unfinished run shows the best score in its log.

    Example: kit runs
    """
    from kit.pipeline.runs import COLUMNS, list_runs

    show_listing(list_runs(Paths(root)), COLUMNS, as_json, "no runs here yet: kit run RECIPE")


@app.command(rich_help_panel=PANEL)
def compare(
    first: Annotated[str, typer.Argument(help="A run <recipe>/fold<k>, or a recipe for all its finished folds.")],
    second: Annotated[
        str, typer.Argument(help="The run or recipe to compare with. Differences are second minus first.")
    ],
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Compare two runs on their common validation tiles: Jaccard index, and F1 of buildings, with 95 % intervals.

    The intervals are bootstrapped over tiles. They are too narrow, because neighbouring tiles are similar.

    Example: kit compare lite0 mobilenetv4/fold0
    """
    from kit.pipeline.compare_runs import compare as compare_runs

    compared = compare_runs(first, second, Paths(root))
    for notice in compared.notices():
        say(notice)
    if as_json:
        result(compared.to_json())
    else:
        table(compared.columns(), [row.cells() for row in (*compared.scenes, compared.pooled)])
        if compared.objects:
            table(("F1 of buildings", *compared.columns()[1:]), [row.cells() for row in compared.objects])
    say(compared.verdict())


@app.command(rich_help_panel=PANEL)
def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs <recipe>/fold<k>, or recipes for all their finished folds."),
    ],
    out: Annotated[Path | None, typer.Option(help="HTML file to write. Default: ROOT/reports/<recipes>.html.")] = None,
    view_tiles: Annotated[
        int,
        typer.Option(
            metavar="N", help="Tiles of each recipe to predict again, which shows what views change; 0: none.", min=0
        ),
    ] = 8,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Write a report of finished runs, one HTML page: scores with intervals, calibration, where they fail, worst tiles.

    Example: kit report lite0 mobilenetv4/fold0
    """
    from kit.outputs import as_name
    from kit.report.report import write_report

    paths = Paths(root)
    file = out or paths.report(as_name("-".join(name.strip("/") for name in runs)))
    check_writable(file.parent)
    write_report(runs, paths, file, view_tiles)
    result(str(file))
