"""The commands: each parses, calls one function, and prints its result. Heavy imports wait inside."""

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer

from kit import __version__
from kit.console import failure, result, say, table
from kit.errors import CutError, KitError, RankError
from kit.outputs import as_name, check_name
from kit.paths import Paths

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="From drone imagery of a city to building masks.\n\nExample: kit run quickstart && kit submit",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

Root = Annotated[Path, typer.Option("--root", envvar="KIT_ROOT", help="Folder of data, runs, weights, submissions.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; the best there is by default.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile: for GPUs.")]
HERE = Path()
INTERRUPTED = 130  # how typer answers Ctrl-C


@app.command()
def sample(
    out: Annotated[Path | None, typer.Option(help="Where to; ROOT/sample by default.")] = None,
    seed: Annotated[int, typer.Option(help="Another city for another number; the same bytes for the same.")] = 0,
    scale: Annotated[float, typer.Option(help="Training scenes of so many times the area.", min=1)] = 1,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Draw the sample city: scenes with footprints, test chips with their truth aside.

    Example: kit sample --scale 4
    """
    from kit.sample.sample import draw_sample

    result(str(draw_sample(out or Paths(root).sample, seed, scale)))


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="A STAC catalogue (folder, file or address), a folder of images with labels, or a CSV."),
    ],
    name: Annotated[str, typer.Option(help="Of the data set; by default that of the catalogue or the folder.")] = "",
    grid: Annotated[str, typer.Option(help="z19 (any zoom), 0.1m (any resolution) or native.")] = "z19",
    side: Annotated[int, typer.Option(help="Side of a tile, px.", min=32, max=4096)] = 1024,
    overlap: Annotated[int, typer.Option(help="What neighbouring tiles share, px.", min=0)] = 0,
    min_valid: Annotated[float, typer.Option(help="Skip tiles with a smaller share of imagery.", min=0, max=1)] = 0.01,
    layers: Annotated[
        bool, typer.Option("--layers", help="Masks of footprint, boundary and contact, for 3-channel recipes.")
    ] = False,
    boundary: Annotated[str, typer.Option(help="With --layers: window that makes boundaries, px or m.")] = "5px",
    contact: Annotated[str, typer.Option(help="With --layers: how near two footprints are in contact.")] = "5m",
    images: Annotated[str, typer.Option(help="lossless, jpeg, or scene: windows, no pixels are copied.")] = "lossless",
    by: Annotated[str, typer.Option(help="What is held out together, see kit folds.")] = "auto",
    k: Annotated[int, typer.Option("-k", help="Number of folds.")] = 5,
    pattern: Annotated[str, typer.Option(help="Searched in a folder's paths: (?P<area>...) and (?P<scene>...).")] = "",
    tier: Annotated[int, typer.Option(help="Of the labels: 1 careful, 2 dirty; else as the catalogue's id tells.")] = 0,
    gsd: Annotated[float, typer.Option(help="Metres per pixel of images without a place on earth.")] = 0.0,
    scene: Annotated[list[str] | None, typer.Option(help="Cut AREA/SCENE again, and no other; repeatable.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; by default one a core.", min=0)] = 0,
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Cut scenes into tiles: images, masks, index, folds, contact sheets. Stopped, it goes on where it was.

    Example: kit prepare train_tier_1 --name tier1
    """
    from kit.data.report import show_prepared
    from kit.data.tiles.prepare import prepare as prepare_tiles

    paths = Paths(root)
    style = {
        "grid": grid, "side_px": side, "overlap_px": overlap, "min_valid": min_valid, "layers": layers,
        "boundary": boundary, "contact": contact, "images": images,
    }  # fmt: skip
    try:
        made = prepare_tiles(
            source, paths, name, by=by, k=k, pattern=pattern, tier=tier, gsd_m=gsd, only=scene or (), workers=workers,
            **style,
        )  # fmt: skip
    except CutError as error:
        if error.made:
            show_prepared(error.made, as_json)
        raise
    show_prepared(made, as_json)
    if not as_json:
        result(str(paths.data(made.name)))


@app.command()
def folds(
    name: Annotated[str, typer.Argument(help="The data set.")],
    by: Annotated[str, typer.Option(help="scene, area, block, tile (the seed's: it leaks), auto.")] = "scene",
    k: Annotated[int, typer.Option("-k", help="Number of folds.")] = 5,
    block_m: Annotated[float | None, typer.Option(help="Side of a block, metres; 8 tiles by default.")] = None,
    gap_m: Annotated[
        float | None, typer.Option(help="Between blocks of two folds, metres; one tile by default.")
    ] = None,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Make the folds of a data set again, without cutting.

    Tiles of two folds never overlap on the ground, except --by tile: those that would are listed as of no fold (none).

    Example: kit folds tier1 --by block -k 5
    """
    from kit.data.folds.assign import fold_numbers
    from kit.data.folds.leaks import NO_FOLD
    from kit.data.index import refold

    index, notice = refold(Paths(root), name, by, k, block_m, gap_m)
    if notice:
        say(notice)
    scenes = index.assign(scene=index["area"] + "/" + index["scene"]).groupby("fold")
    rows = []
    for fold in [*fold_numbers(index), *({NO_FOLD} & set(index["fold"]))]:
        part = scenes.get_group(fold)
        buildings, where = f"{part['building_fraction'].mean():.1%}", ", ".join(sorted(set(part["scene"])))
        rows.append(("none" if fold == NO_FOLD else fold, len(part), buildings, where))
    table(("fold", "tiles", "buildings", "scenes"), rows)
    result(str(Paths(root).data(name) / "index.csv"))


@app.command()
def recipes(as_json: Json = False, root: Root = HERE, debug: Debug = False) -> None:
    """List the recipes: encoder, parameters, cost of one 512 x 512 image.

    Example: kit recipes
    """
    import json

    from kit.pipeline.cost import describe_recipes

    rows = describe_recipes(Paths(root))
    if as_json:
        result(json.dumps(rows, indent=1))
    else:
        table(
            ("recipe", "encoder", "params_m", "gflop_512", "purpose"),
            [[str(value) for value in row.values()] for row in rows],
        )


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="A name (see kit recipes) or a path.")],
    data: Annotated[str, typer.Option(help="The data set; the only one by default, else some is drawn.")] = "",
    device: Device = "",
    compiled: Compiled = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny crops: seconds, and no estimates.")] = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Try a recipe out: shapes, cost, memory, time per epoch and fold, one export, a sheet of its crops.

    Example: kit check efficientnet_b4
    """
    from kit.pipeline.check import check as check_recipe

    checked = check_recipe(recipe, Paths(root), data, device, compiled, tiny)
    table(("of the recipe", recipe), checked.rows)
    result(str(checked.sheet))


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A name (see kit recipes) or a path.")],
    data: Annotated[str, typer.Option(help="The data set; the only one by default.")] = "",
    fold: Annotated[str, typer.Option(help="Folds to hold out: 0 or 0,2 or all.")] = "all",
    all_: Annotated[bool, typer.Option("--all", help="Hold nothing out: one model on every fold.")] = False,
    minutes: Annotated[float, typer.Option(help="Wall time per fold; else the recipe's epochs.", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    views: Annotated[str, typer.Option(help="Of the export: none, flips or d4.")] = "flips",
    device: Device = "",
    encoder_weights: Annotated[Path | None, typer.Option(help="State dict of the encoder.")] = None,
    pretrained: Annotated[bool, typer.Option(help="Start from ImageNet weights.")] = True,
    teacher: Annotated[
        Path | None, typer.Option(help="Weights file that the recipe learns from (distillation).")
    ] = None,
    start_from: Annotated[
        str, typer.Option(help="Begin with trained weights: exported ones, a recipe, <recipe>/fold<k> or safetensors.")
    ] = "",
    nproc: Annotated[int, typer.Option(help="Processes that train a fold together, one a GPU.", min=1)] = 1,
    parallel_folds: Annotated[int, typer.Option(help="Folds side by side, on GPUs of their own.", min=1)] = 1,
    workers: Annotated[int, typer.Option(help="Processes that augment; -1 chooses for the machine.", min=-1)] = -1,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Between checkpoints within an epoch; 0 for none.", min=0)
    ] = 10.0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard, too.")] = False,
    compiled: Compiled = False,
    export: Annotated[bool, typer.Option(help="Freeze the ensemble in the end.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on although recipe or settings have changed.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget earlier runs of these folds.")] = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Train a recipe's folds, score them out of fold, export the ensemble. The same command again goes on.

    Example: kit run lite0 --data tier1 --fold 0,1 --minutes 12
    """
    from kit.models.pretrained import Source
    from kit.pipeline.run import Plan, run_side_by_side
    from kit.pipeline.run import run as run_recipe
    from kit.system.processes import launch, launched, launched_by_kit

    if resume and restart:
        raise typer.BadParameter("goes on, and --restart begins anew: one of them", param_hint="--resume")
    if launched() and not launched_by_kit() and (nproc > 1 or parallel_folds > 1):
        raise typer.BadParameter("several processes were started already: leave it out", param_hint="--nproc")
    plan = Plan(
        data=data, folds=_folds(fold, all_), minutes=minutes, seed=seed, device=device, workers=workers,
        source=Source(pretrained, encoder_weights), views=views, teacher=teacher, start_from=start_from,
        export=export, compiled=compiled, checkpoint_minutes=checkpoint_minutes, tensorboard=tensorboard,
        resume=resume, restart=restart,
    )  # fmt: skip
    if parallel_folds > 1 and not launched():
        made = run_side_by_side(recipe, Paths(root), plan, sys.argv[1:], parallel_folds, nproc)
    elif nproc > 1 and not launched():
        return launch(nproc, sys.argv[1:])
    else:
        made = run_recipe(recipe, Paths(root), plan)
    if made:
        result(str(made.path))
    return None


def _folds(text: str, all_: bool) -> tuple[int | str, ...]:
    if all_:
        return ("all",)
    if text == "all":
        return ()
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of folds, for example 0 or 0,2", param_hint="--fold") from None


@app.command()
def export(
    runs: Annotated[list[str], typer.Argument(help="<recipe>/fold<k>, of any recipes.")],
    name: Annotated[str, typer.Option(help="Of the weights.")],
    views: Annotated[str, typer.Option(help="none, flips or d4.")] = "flips",
    formats: Annotated[
        str, typer.Option("--format", help="pt2 and onnx beside the TorchScript file, with commas; minutes each.")
    ] = "torchscript",
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="Learn where a vote may end early, for kit submit --adaptive.")
    ] = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Freeze finished runs into one weights file.

    Example: kit export lite0/fold0 lite0/fold1 --name duo --views d4 --format onnx
    """
    from kit.deploy.freeze.formats import chosen
    from kit.pipeline.export_runs import export_runs

    others = chosen(formats)
    result(str(export_runs(runs, name, Paths(root), views, others, adaptive).path))


@app.command()
def verify(
    weights: Annotated[str, typer.Argument(help="NAME.pt, or the name of one in ROOT/weights.")],
    device: Device = "",
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Prove weights: card, checksum, and that every format gives what the trained networks gave, at many sizes.

    What the networks gave lies inside NAME.pt: that one file is enough, on any machine.

    Example: kit verify lite0
    """
    from kit.deploy.proof.comparing import COLUMNS
    from kit.deploy.proof.verify import verify as verify_weights
    from kit.deploy.weights.load import named_weights
    from kit.system.devices import pick_device

    verified = verify_weights(named_weights(weights, Paths(root).weights), str(pick_device(device)))
    if as_json:
        result(verified.to_json())
    else:
        table(("check", "found"), [(check.name, check.fault or check.said) for check in verified.checks])
        table(COLUMNS, [row.cells() for row in verified.rows])
    verified.require()
    if not verified.compared:
        say(f"{verified.path.name} holds nothing of its networks to be compared with: export the runs again")
    if not as_json:
        result(f"verified {verified.path.name}")


@app.command()
def submit(
    test: Annotated[
        Path | None, typer.Argument(help="A STAC catalogue or a folder of chips; the sample's by default.")
    ] = None,
    weights: Annotated[str, typer.Option(help="A name, a file or an address; the newest weights by default.")] = "",
    sha256: Annotated[str, typer.Option(help="What the weights must have: 64 hex digits.")] = "",
    name: Annotated[str, typer.Option(help="Of the submission; <weights>-<test> by default.")] = "",
    device: Device = "",
    tune: Annotated[
        bool, typer.Option(help="Measure once how this machine predicts fastest; else as the file was shipped.")
    ] = True,
    engine: Annotated[str, typer.Option(help="torch, openvino or openvino-int8.")] = "torch",
    nproc: Annotated[int, typer.Option(help="Processes that share the chips, one a GPU.", min=1)] = 1,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="End the vote where it is clear: faster, almost the same masks.")
    ] = False,
    mosaic: Annotated[
        bool, typer.Option("--mosaic", help="Predict each chip with what lies around it, where kit mosaic finds that.")
    ] = False,
    scale: Annotated[
        bool, typer.Option("--scale", help="Predict at the resolution of training; each mosaic's own is estimated.")
    ] = False,
    gsd: Annotated[
        float | None, typer.Option(help="Metres per pixel of all chips, where known: as --scale.", min=0.001)
    ] = None,
    rle: Annotated[bool, typer.Option("--rle", help="Write rle.csv, run lengths as Kaggle takes them, too.")] = False,
    clean: Annotated[
        bool, typer.Option(help="Cut masks as was best out of fold, by the card; else at 0.5, as NAME.pt does.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Building is where the probability is above it.", min=0, max=1)
    ] = None,
    smallest: Annotated[float | None, typer.Option(help="Remove smaller objects, m2.", min=0)] = None,
    holes: Annotated[float | None, typer.Option(help="Fill smaller holes, m2.", min=0)] = None,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Predict test chips and pack the submission. The same command again goes on.

    Weights at an address are fetched into ROOT/weights, and checked.

    Example: kit submit test --weights lite0
    """
    from kit.deploy.submission.submit import submit as submit_chips
    from kit.deploy.weights.cleaning import AS_SHIPPED, chosen_cleaning
    from kit.deploy.weights.fetch import find_weights
    from kit.deploy.weights.load import read_card
    from kit.system.processes import joined, launch, launched
    from kit.system.ranks import agreed, rank

    _refuse_nproc_in_a_launched_process(nproc)
    if gsd and scale:
        raise typer.BadParameter("what --scale would estimate is told: leave one out", param_hint="--gsd")
    if nproc > 1 and not launched():
        return launch(nproc, sys.argv[1:])
    paths = Paths(root)
    chips = test or paths.sample / "test"
    with joined(device) as picked:
        chosen = Path(agreed(str(find_weights(weights, sha256, paths.weights)) if rank() == 0 else ""))
        say(f"weights {chosen}, test set {chips}")
        cleaning = AS_SHIPPED
        if clean or (threshold, smallest, holes) != (None, None, None):
            cleaning = chosen_cleaning(read_card(chosen), chosen.name, clean, threshold, smallest, holes)
            say(f"masks: {cleaning}")
        where = chips.parent if chips.suffix == ".json" else chips
        folder = paths.submission(name or as_name(f"{chosen.stem}-{where.resolve().name}"))
        made = submit_chips(
            chips, chosen, folder, str(picked), tune, engine, rle, cleaning, adaptive, mosaic, gsd or scale
        )
    say(f"{made.chips} chips checked: {made.building_fraction:.1%} building, {made.empty} without any")
    if rle:
        result(str(folder / "rle.csv"))
    result(str(made.path))
    return None


def _refuse_nproc_in_a_launched_process(nproc: int) -> None:
    from kit.system.processes import launched, launched_by_kit

    if nproc > 1 and launched() and not launched_by_kit():
        raise typer.BadParameter("several processes were started already: leave it out", param_hint="--nproc")


@app.command()
def check_submission(
    submission: Annotated[Path, typer.Argument(metavar="FILE", help="A folder of masks, a .tgz, .zip or rle.csv.")],
    test: Annotated[Path | None, typer.Option(help="A STAC catalogue or a folder: its chips must be there.")] = None,
    against: Annotated[Path | None, typer.Option(help="An earlier submission: how far this one differs.")] = None,
    data: Annotated[str, typer.Option(help="Whose share of building is compared; all data sets by default.")] = "",
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Look a submission over before it is handed in: names, form, sizes, share of building, empty masks.

    Example: kit check-submission submissions/lite0-test.tgz --test test
    """
    from kit.data.index import building_share
    from kit.data.sources.chips import find_chips
    from kit.deploy.submission.checks import COLUMNS, DIFFERENCE_COLUMNS, check

    chips = find_chips(test) if test else None
    checked = check(submission, chips, against, building_share(Paths(root), data))
    if as_json:
        result(checked.to_json())
    else:
        table(COLUMNS, [check.cells() for check in checked.checks])
        if checked.differing:
            table(DIFFERENCE_COLUMNS, [row.cells() for row in checked.differing])
    checked.require()
    if not as_json:
        result(f"checked {submission}")


@app.command("map")
def map_(
    scene: Annotated[str, typer.Argument(help="A GeoTIFF or COG, RGB or RGBA of 8 bits: a path or an address.")],
    weights: Annotated[str, typer.Option(help="A name, a file or an address; the newest weights by default.")] = "",
    sha256: Annotated[str, typer.Option(help="What the weights must have: 64 hex digits.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to write into; ROOT/maps/NAME by default.")] = None,
    name: Annotated[str, typer.Option(help="Of the files; <weights>-<scene> by default.")] = "",
    format_: Annotated[str, typer.Option("--format", help="Of the polygons: gpkg or geojson.")] = "gpkg",
    square: Annotated[bool, typer.Option("--square", help="Turn walls to right angles.")] = False,
    simplify: Annotated[float, typer.Option(help="How far outlines may move, m; 0: two pixels.", min=0)] = 0.0,
    min_area: Annotated[float, typer.Option(help="Smallest building, m².", min=0)] = 2.0,
    min_hole: Annotated[float, typer.Option(help="Smallest hole that is kept, m².", min=0)] = 2.0,
    threshold: Annotated[float, typer.Option(help="Probability above which a pixel is building.", min=0)] = 0.5,
    gsd: Annotated[
        float, typer.Option(help="Metres per pixel to look with; 0: as the weights were trained.", min=0)
    ] = 0.0,
    grid: Annotated[str, typer.Option(help="Of the rasters: scene, or training for that resolution.")] = "scene",
    window: Annotated[int, typer.Option(help="Side of a window, px.")] = 1024,
    overlap: Annotated[int, typer.Option(help="What neighbouring windows share, px.")] = 128,
    device: Device = "",
    tune: Annotated[
        bool, typer.Option(help="Measure once how this machine predicts fastest; else as the file was shipped.")
    ] = True,
    engine: Annotated[str, typer.Option(help="torch, openvino or openvino-int8.")] = "torch",
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="End the vote where it is clear: faster, almost the same map.")
    ] = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Map a scene of any size: probability and mask as COGs on its own grid, buildings as polygons, a small picture.

    Stopped, it goes on where it was; other polygons of a finished map take no prediction.

    Example: kit map city.tif --weights lite0 --square
    """
    from kit.deploy.mapping.map import Wanted, map_scene, name_of
    from kit.deploy.weights.fetch import find_weights
    from kit.system.devices import pick_device

    paths = Paths(root)
    chosen = find_weights(weights, sha256, paths.weights)
    called = check_name(name) if name else as_name(f"{chosen.stem}-{name_of(scene)}")
    say(f"weights {chosen}, scene {scene}")
    wanted = Wanted(
        threshold=threshold, gsd_m=gsd, grid=grid, window_px=window, overlap_px=overlap, format=format_,
        square=square, simplify_m=simplify, min_area_m2=min_area, min_hole_m2=min_hole,
    )  # fmt: skip
    made = map_scene(
        scene, chosen, out or paths.map(called), called, wanted, str(pick_device(device)), tune, engine, adaptive
    )
    say(f"{made.buildings} buildings of {made.area_m2:,.0f} m², seen at {made.gsd_m:.3g} m per pixel")
    for path in (made.probability, made.mask, made.overlay, made.polygons):
        result(str(path))


@app.command()
def mosaic(
    test: Annotated[Path, typer.Argument(help="A STAC catalogue or a folder of chips.")],
    out: Annotated[Path | None, typer.Option(help="Where to; ROOT/mosaics/<name of test> by default.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that read; by default one a core.", min=0)] = 0,
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Find the mosaics that shuffled chips were cut from: which chips lie side by side, with a picture of each mosaic.

    Example: kit mosaic test
    """
    from kit.deploy.mosaics.write import COLUMNS, as_rows, to_json, write_mosaics

    where = test.parent if test.suffix == ".json" else test
    folder = out or Paths(root).mosaics(as_name(where.resolve().name, "test"))
    found = write_mosaics(test, folder, workers)
    if as_json:
        result(to_json(found))
    else:
        table(COLUMNS, as_rows(found))
        result(str(folder))


@app.command()
def weights(as_json: Json = False, root: Root = HERE, debug: Debug = False) -> None:
    """List the weights: views, score out of fold, parity with the networks they were frozen from, formats, checksum.

    Each file is held against the checksum it is listed with.

    Example: kit weights
    """
    import json
    from dataclasses import asdict

    from kit.deploy.weights.store import COLUMNS, list_weights

    listed = list_weights(Paths(root).weights)
    if not listed:
        say("no weights here yet: kit run RECIPE, or kit submit --weights URL --sha256 SUM")
    for line in listed:
        if line.problem:
            say(line.problem)
    if as_json:
        result(json.dumps([asdict(line) for line in listed], indent=1))
    else:
        table(COLUMNS, [line.cells() for line in listed])


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="A folder or archive of masks.")],
    truth: Annotated[Path, typer.Argument(help="A folder or archive of true masks.")],
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Score masks against the truth: Jaccard per scene and pooled.

    Example: kit score submissions/quickstart-test sample/test_labels
    """
    from kit.deploy.submission.score import score as score_masks

    scored = score_masks(predictions, truth)
    if as_json:
        result(scored.to_json())
    else:
        for line in scored.lines():
            result(line)


@app.command()
def runs(as_json: Json = False, root: Root = HERE, debug: Debug = False) -> None:
    """List the runs: state, Jaccard out of fold, best epoch, minutes; a recipe's finished folds pooled.

    An unfinished run shows the best score that its log has so far.

    Example: kit runs
    """
    import json
    from dataclasses import asdict

    from kit.pipeline.runs import COLUMNS, list_runs

    listed = list_runs(Paths(root))
    if not listed:
        say("no runs here yet: kit run RECIPE")
    for line in listed:
        if line.problem:
            say(line.problem)
    if as_json:
        result(json.dumps([asdict(line) for line in listed], indent=1))
    else:
        table(COLUMNS, [line.cells() for line in listed])


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="<recipe>/fold<k>, or a recipe: its finished folds together.")],
    second: Annotated[str, typer.Argument(help="Likewise; differences are this one minus the first.")],
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Compare two runs on the tiles that both held out: Jaccard per scene and pooled, with 95 % intervals.

    The intervals come from resampling tiles; tiles of a scene are neighbours, so they are optimistic.

    Example: kit compare lite0 mobilenetv4/fold0
    """
    import json
    from dataclasses import asdict

    from kit.pipeline.compare_runs import compare as compare_runs

    compared = compare_runs(first, second, Paths(root))
    for notice in compared.notices():
        say(notice)
    if as_json:
        result(json.dumps(asdict(compared), indent=1))
    else:
        table(compared.columns(), [row.cells() for row in (*compared.scenes, compared.pooled)])
    say(compared.verdict())


@app.command()
def lr_find(
    recipe: Annotated[str, typer.Argument(help="A name (see kit recipes) or a path.")],
    data: Annotated[str, typer.Option(help="The data set; the only one by default.")] = "",
    fold: Annotated[int, typer.Option(help="The fold to hold out.")] = 0,
    device: Device = "",
    encoder_weights: Annotated[Path | None, typer.Option(help="State dict of the encoder.")] = None,
    pretrained: Annotated[bool, typer.Option(help="Start from ImageNet weights.")] = True,
    steps: Annotated[int, typer.Option(help="Of the training in which the rate rises.", min=20)] = 100,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Find a rate for a recipe: a short training in which it rises, drawn, with two suggestions.

    Example: kit lr-find lite0 --data tier1
    """
    from kit.models.pretrained import Source
    from kit.pipeline.lr_find import lr_find as find_rate

    found = find_rate(recipe, Paths(root), data, fold, device, Source(pretrained, encoder_weights), steps)
    table(("suggestion", "rate"), [(name, f"{rate:.1e}") for name, rate in found.rates.items()])
    result(str(found.picture))


def _version(wanted: bool) -> None:
    if wanted:
        result(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
    local_rank: Annotated[int, typer.Option("--local-rank", "--local_rank", hidden=True)] = 0,
) -> None:
    """From drone imagery of a city to building masks."""


def _fail(message: str, hint: str) -> None:
    """Shows an error; of several processes that train together, the first to fail does."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from kit.system.processes import first_to_fail

        if not first_to_fail():
            return
    failure(message, hint)


def main() -> None:
    """Runs a command: exit 0 done, 1 for what the user can mend, 2 for usage."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its version
    # fastai and timm script some functions as they are imported, and torch calls that deprecated
    warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # chips lie nowhere: no news
    try:
        code = app(standalone_mode=False)
        if code != INTERRUPTED:
            sys.exit(code if isinstance(code, int) else 0)
        raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", "the same command again goes on: from the last checkpoint, and with what is missing")
    except KitError as error:
        if debug:
            traceback.print_exc()
        if not (isinstance(error, RankError) and error.told):
            _fail(error.message, error.hint)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # usage, as typer tells it
            error.show()
            sys.exit(error.exit_code)
        if debug:
            traceback.print_exc()
        _fail(f"{type(error).__name__}: {error}", "this is a fault of kit: run it again with --debug and report it")
    sys.exit(1)
