"""Commands about predictions: submissions, maps, mosaics, scores. Heavy imports wait inside."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kit.cli.application import (
    HERE,
    ClusterAddress,
    Debug,
    Device,
    Json,
    Part,
    Root,
    app,
    check_nproc,
    number_or_auto,
    parse_part,
)  # fmt: skip
from kit.console import result, say, table
from kit.outputs import as_name, check_name
from kit.paths import Paths
from kit.system.files import check_writable

PANEL = "Prediction"  # of `kit --help`

WeightsName = Annotated[str, typer.Option(help="Name, file or address of the weights. Default: the newest.")]
Sha256 = Annotated[str, typer.Option(help="Expected SHA-256 of the weights, 64 hex digits.")]
Tune = Annotated[bool, typer.Option(help="Measure once which settings predict fastest on this machine.")]
EngineName = Annotated[str, typer.Option(help="Engine that runs the networks: torch, openvino or openvino-int8.")]
Adaptive = Annotated[bool, typer.Option("--adaptive", help="Skip passes that would hardly change the masks.")]
Clean = Annotated[
    bool, typer.Option(help="Use the threshold and clean-up chosen on validation tiles (stored in the card).")
]
Threshold = Annotated[
    float | None, typer.Option(help="Probability above which a pixel is building. Default: 0.5.", min=0, max=1)
]
Smallest = Annotated[float | None, typer.Option(help="Remove objects smaller than this, m². Default: 0.", min=0)]
SmallestOnMap = Annotated[float | None, typer.Option(help="Remove objects smaller than this, m². Default: 2.", min=0)]
NumberOfProcesses = Annotated[int, typer.Option(help="Processes that share the chips, one per GPU.", min=1)]
WithNeighbours = Annotated[
    bool, typer.Option("--mosaic", help="Predict each chip with a margin of its neighbours; kit mosaic finds them.")
]
ToTrainingResolution = Annotated[
    bool, typer.Option("--scale", help="Resample chips to the training resolution; that of each mosaic is estimated.")
]
ChipResolution = Annotated[
    float | None, typer.Option(help="Ground resolution of all chips, m per pixel; excludes --scale.", min=0.001)
]
Holes = Annotated[float | None, typer.Option(help="Fill holes smaller than this, m². Default: 0.", min=0)]
HolesOnMap = Annotated[float | None, typer.Option(help="Fill holes smaller than this, m². Default: 2.", min=0)]


def _start_ranks(nproc: int, gsd: float | None, scale: bool) -> bool:
    """Starts this command in `nproc` processes, waits for them and returns True; False if this process is to do it."""
    from kit.system.launcher import launched
    from kit.system.processes import launch

    check_nproc(nproc)
    if gsd and scale:
        raise typer.BadParameter("mutually exclusive with --scale, which estimates it", param_hint="--gsd")
    if nproc == 1 or launched():
        return False
    launch(nproc, sys.argv[1:])
    return True


def _agreed_weights(weights: str, sha256: str, paths: Paths) -> Path:
    """Returns the weights file that rank 0 chooses or downloads; all ranks must call it."""
    from kit.deploy.weights.fetch import find_weights
    from kit.system.ranks import agreed, rank

    return Path(agreed(str(find_weights(weights, sha256, paths.weights)) if rank() == 0 else ""))


@app.command(rich_help_panel=PANEL)
def submit(
    test: Annotated[
        Path | None, typer.Argument(help="A STAC catalogue or a folder of chips. Default: the sample's.")
    ] = None,
    weights: WeightsName = "",
    sha256: Sha256 = "",
    name: Annotated[str, typer.Option(help="Name of the submission. Default: <weights>-<test>.")] = "",
    device: Device = "",
    tune: Tune = True,
    engine: EngineName = "torch",
    nproc: NumberOfProcesses = 1,
    part: Part = "",
    merge: Annotated[bool, typer.Option("--merge", help="Pack what the parts have predicted.")] = False,
    adaptive: Adaptive = False,
    mosaic: WithNeighbours = False,
    scale: ToTrainingResolution = False,
    gsd: ChipResolution = None,
    rle: Annotated[bool, typer.Option("--rle", help="Also write rle.csv: run lengths in Kaggle's format.")] = False,
    clean: Clean = False,
    threshold: Threshold = None,
    smallest: Smallest = None,
    holes: Holes = None,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Predict test chips and pack the submission. Rerun to resume.

    Weights at an address are downloaded to ROOT/weights and checked; they need --sha256.

    Example: kit submit test --weights lite0
    """
    from kit.deploy.engine.backends import EngineOptions, check_engine
    from kit.deploy.mosaics.mosaic import table_of
    from kit.deploy.submission.submit import SubmitOptions, merge_parts, submit_part
    from kit.deploy.submission.submit import submit as submit_chips
    from kit.deploy.weights.cleaning import AS_SHIPPED, chosen_cleaning
    from kit.deploy.weights.load import read_card
    from kit.system.processes import joined

    if part and (merge or nproc > 1):
        raise typer.BadParameter("excludes --merge and --nproc", param_hint="--part")
    if not merge and _start_ranks(nproc, gsd, scale):
        return
    paths = Paths(root)
    chips = test or paths.sample / "test"
    with joined(device) as picked:
        chosen = _agreed_weights(weights, sha256, paths)
        say(f"weights {chosen}, test set {chips}")
        cleaning = AS_SHIPPED
        if clean or (threshold, smallest, holes) != (None, None, None):
            cleaning = chosen_cleaning(read_card(chosen), chosen.name, clean, threshold, smallest, holes)
            say(f"masks: {cleaning}")
        where = chips.parent if chips.suffix == ".json" else chips
        folder = paths.submission(name or as_name(f"{chosen.stem}-{where.resolve().name}"))
        tuning = tune and not part and not merge  # else all machines compute alike
        engine_options = EngineOptions(str(picked), check_engine(engine), tuning, adaptive)
        options = SubmitOptions(engine_options, rle, cleaning, mosaic, scale, gsd, table_of(chips, paths))
        if part:
            count = submit_part(chips, chosen, folder, options, parse_part(part))
            say(f"part {part}: {count} chips are predicted")
            result(str(folder))
            return
        finish = merge_parts if merge else submit_chips
        summary = finish(chips, chosen, folder, options)
    say(f"{summary.chips} chips checked: {summary.building_fraction:.1%} building, {summary.empty} without any")
    if rle:
        result(str(folder / "rle.csv"))
    result(str(summary.path))


@app.command(rich_help_panel=PANEL)
def pseudo(
    test: Annotated[Path, typer.Argument(help="Chips to label: a STAC catalogue or a folder of images.")],
    name: Annotated[str, typer.Option(help="Name of the data set to write.")],
    weights: WeightsName = "",
    sha256: Sha256 = "",
    ignore: Annotated[
        str,
        typer.Option(
            metavar="LOW,HIGH|none",
            help="Pixels with a probability in this range become no data. none: label every pixel.",
        ),
    ] = "0.35,0.65",
    soft: Annotated[bool, typer.Option("--soft", help="Also write the probabilities, as soft labels.")] = False,
    min_confidence: Annotated[
        float, typer.Option(help="Skip chips with a lower mean confidence, 0.5 to 1; 0: none.", min=0, max=1)
    ] = 0,
    drop_empty: Annotated[bool, typer.Option("--drop-empty", help="Skip chips without buildings.")] = False,
    images: Annotated[str, typer.Option(help="How images are stored: lossless or jpeg.")] = "lossless",
    round_: Annotated[int, typer.Option("--round", help="Number of the round, stored in the ledger.", min=1)] = 1,
    device: Device = "",
    tune: Tune = True,
    engine: EngineName = "torch",
    nproc: NumberOfProcesses = 1,
    adaptive: Adaptive = False,
    mosaic: WithNeighbours = False,
    scale: ToTrainingResolution = False,
    gsd: ChipResolution = None,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Label chips with trained weights, as a data set to train on. Rerun to resume.

    Also prints how often such labels are right on validation tiles, if the runs of the weights are below ROOT.

    Example: kit pseudo test --weights lite0 --name pseudo1
    """
    from kit.deploy.engine.backends import EngineOptions, check_engine
    from kit.deploy.submission.submit import SubmitOptions
    from kit.deploy.weights.load import read_card
    from kit.pipeline.pseudo_labels import PseudoOptions, parse_ignore
    from kit.pipeline.pseudo_quality import quality_line
    from kit.pipeline.pseudo_set import label_chips
    from kit.system.processes import joined
    from kit.system.ranks import rank

    if _start_ranks(nproc, gsd, scale):
        return
    paths = Paths(root)
    with joined(device) as picked:
        chosen = _agreed_weights(weights, sha256, paths)
        say(f"weights {chosen}, chips {test}")
        prediction = SubmitOptions(
            EngineOptions(str(picked), check_engine(engine), tune, adaptive), mosaic=mosaic, scale=scale, gsd_m=gsd
        )
        options = PseudoOptions(prediction, parse_ignore(ignore), soft, min_confidence, drop_empty, images, round_)
        labels = label_chips(test, chosen, paths, name, options)
        first = rank() == 0
    if first:
        for line in (*labels.lines(), quality_line(read_card(chosen), paths, options)):
            say(line)
        result(str(labels.folder))


@app.command(rich_help_panel=PANEL)
def check_submission(
    submission: Annotated[Path, typer.Argument(metavar="FILE", help="A folder of masks, a .tgz, .zip or rle.csv.")],
    test: Annotated[
        Path | None,
        typer.Option(help="Test set to compare names and sizes with: a STAC catalogue or a folder of chips."),
    ] = None,
    against: Annotated[Path | None, typer.Option(help="An earlier submission to compare with.")] = None,
    data: Annotated[
        str, typer.Option(help="Data set whose share of building is expected. Default: all together.")
    ] = "",
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Check a submission before you hand it in: names, format, sizes, share of building, empty masks.

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


@app.command(rich_help_panel=PANEL)
def score(
    predictions: Annotated[Path, typer.Argument(help="A folder or archive of masks, or a file of polygons.")],
    truth: Annotated[Path, typer.Argument(help="The true masks or polygons.")],
    gsd: Annotated[
        float | None,
        typer.Option(help="Ground resolution of masks, m per pixel: boundary IoU needs it.", min=0.001),
    ] = None,
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Score masks or polygons against the truth: Jaccard index, and buildings matched, merged and split.

    Example: kit score submissions/quickstart-test sample/test_labels
    """
    from kit.cli.printing import show_objects
    from kit.deploy.submission.score import score as score_masks
    from kit.deploy.submission.score_polygons import PolygonScore, are_polygons, score_polygons

    scored = (
        score_polygons(predictions, truth)
        if are_polygons(predictions, truth)
        else score_masks(predictions, truth, gsd or 0.0)
    )
    if isinstance(scored, PolygonScore):
        for notice in scored.notices:
            say(notice)
    if as_json:
        result(scored.to_json())
        return
    *lines, pooled = scored.lines()
    for line in lines or [pooled]:
        result(line)
    show_objects(scored.object_rows())
    result(pooled)


@app.command(rich_help_panel=PANEL)
def mosaic(
    test: Annotated[Path, typer.Argument(help="A STAC catalogue or a folder of chips.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: ROOT/mosaics/<name of test>.")] = None,
    workers: Annotated[
        int | None, number_or_auto(int, 1, "Processes that read chips. auto: one per CPU core.", former=0)
    ] = None,
    cluster: ClusterAddress = "",
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Find the mosaics that shuffled chips were cut from: which chips lie side by side, with a picture of each mosaic.

    Example: kit mosaic test
    """
    from kit.deploy.mosaics.mosaic import table_of
    from kit.deploy.mosaics.write import COLUMNS, as_rows, to_json, write_mosaics
    from kit.system.cluster import chosen_cluster
    from kit.system.workers import on_cluster

    folder = out or table_of(test, Paths(root)).parent
    check_writable(folder)
    with on_cluster(chosen_cluster(cluster, workers)):
        mosaics = write_mosaics(test, folder, workers)
    if as_json:
        result(to_json(mosaics))
    else:
        table(COLUMNS, as_rows(mosaics))
        result(str(folder))


@app.command("map", rich_help_panel=PANEL)
def map_(
    scenes: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE|COLLECTION",
            help="A GeoTIFF or COG, RGB or RGBA of 8 bits: a path or an address. Many scenes: a folder, a STAC "
            "catalogue or search, a .txt with an address per line, or several.",
        ),
    ],
    weights: WeightsName = "",
    sha256: Sha256 = "",
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: ROOT/maps/NAME.")] = None,
    name: Annotated[str, typer.Option(help="Name of the files. Default: <weights>-<scene>.")] = "",
    format_: Annotated[
        str, typer.Option("--format", help="Format of the polygons: gpkg, geojson, fgb or parquet.")
    ] = "gpkg",
    square: Annotated[bool, typer.Option("--square", help="Turn walls to right angles.")] = False,
    simplify: Annotated[
        float | None,
        number_or_auto(
            float, 0, "Simplify outlines: largest distance that they may move, m. auto: two pixels.", former=0
        ),
    ] = None,
    clean: Clean = False,
    threshold: Threshold = None,
    smallest: SmallestOnMap = None,
    holes: HolesOnMap = None,
    min_area: Annotated[float | None, typer.Option(help="Old name of --smallest.", min=0, hidden=True)] = None,
    min_hole: Annotated[float | None, typer.Option(help="Old name of --holes.", min=0, hidden=True)] = None,
    gsd: Annotated[
        float | None,
        number_or_auto(float, 0.001, "Ground resolution to predict at, m per pixel. auto: that of training.", former=0),
    ] = None,
    grid: Annotated[
        str, typer.Option(help="Grid of the rasters: scene (its own pixels) or training (resolution of the weights).")
    ] = "scene",
    window: Annotated[int, typer.Option(help="Largest side of a window, px.")] = 1024,
    overlap: Annotated[int, typer.Option(help="Smallest overlap of neighbouring windows, px.")] = 128,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Let a scene that is a VRT read files outside its folder.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Many scenes: write the plan, say what it takes, stop.")] = False,
    part: Part = "",
    merge: Annotated[bool, typer.Option("--merge", help="Many scenes: merge the parts of a plan.")] = False,
    cluster: ClusterAddress = "",
    workers: Annotated[
        int | None, number_or_auto(int, 1, "Many scenes: processes of this machine. auto: one per CPU core.")
    ] = None,
    prefer: Annotated[
        str,
        typer.Option(
            metavar="newest|finest|FIELD",
            help="Many scenes: where they overlap, use the newest, the finest, or the largest FIELD of its STAC item. "
            "Default: the mean of all.",
        ),
    ] = "",
    cell: Annotated[float, typer.Option(help="Many scenes: side of a cell, m.", min=1)] = 1000,
    bbox: Annotated[str, typer.Option(help="Of a STAC API search: west,south,east,north.")] = "",
    time: Annotated[str, typer.Option("--datetime", help="Of a STAC API search: a date, or from/to.")] = "",
    device: Device = "",
    tune: Tune = True,
    engine: EngineName = "torch",
    adaptive: Adaptive = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Map a scene of any size, or a collection of overlapping scenes as one layer.

    Of a scene: probability and mask as GeoTIFFs, buildings as polygons, an overview picture. Of a collection:
    GeoParquet, PMTiles, a STAC catalogue and a coverage report.

    Objects and holes below 2 m² are removed by default.

    Rerun to resume. With other options for clean-up or polygons, a finished map of a scene is not predicted again.

    Example: kit map city.tif --weights lite0 --square
    """
    from kit.deploy.country.collection import default_name, is_collection, require_pyarrow
    from kit.deploy.engine.backends import EngineOptions, check_engine
    from kit.deploy.mapping.map import CLEANING, MapOptions, map_scene
    from kit.deploy.mapping.map_files import name_of
    from kit.deploy.weights.cleaning import chosen_cleaning
    from kit.deploy.weights.fetch import find_weights
    from kit.deploy.weights.load import read_card
    from kit.system.devices import pick_device

    paths = Paths(root)
    many, scene = is_collection(scenes), scenes[0]
    chosen = find_weights(weights, sha256, paths.weights)
    files = check_name(name) if name else as_name(f"{chosen.stem}-{default_name(scenes) if many else name_of(scene)}")
    say(f"weights {chosen}, {'scenes' if many else 'scene'} {' '.join(scenes[:3])}{' ...' if len(scenes) > 3 else ''}")
    smallest, holes = (min_area if smallest is None else smallest), (min_hole if holes is None else holes)
    cleaning = CLEANING
    if clean or (threshold, smallest, holes) != (None, None, None):
        cleaning = chosen_cleaning(read_card(chosen), chosen.name, clean, threshold, smallest, holes, CLEANING)
    say(f"masks: {cleaning}")
    options = MapOptions(
        cleaning=cleaning, gsd_m=gsd, grid=grid, window_px=window, overlap_px=overlap, format=format_,
        square=square, simplify_m=simplify, allow_outside=allow_outside,
    )  # fmt: skip
    engine_options = EngineOptions(str(pick_device(device)), check_engine(engine), tune, adaptive)
    if many:
        require_pyarrow()
        from kit.cli.map_collection import Steps, map_collection
        from kit.deploy.country.country import CountryRequest

        request = CountryRequest(
            tuple(scenes), chosen, out or paths.map(files), files, options, engine_options, prefer, cell, bbox, time
        )
        map_collection(request, Steps(plan, part, merge, cluster, workers))
        return
    if plan or part or merge or cluster or prefer or bbox or time:
        raise typer.BadParameter("they need a collection of scenes", param_hint="--plan, --part, --merge, --prefer ...")
    summary = map_scene(scene, chosen, out or paths.map(files), files, options, engine_options)
    say(f"{summary.buildings} buildings, {summary.area_m2:,.0f} m², predicted at {summary.gsd_m:.3g} m per pixel")
    for path in (summary.probability, summary.mask, summary.overlay, summary.polygons):
        result(str(path))
