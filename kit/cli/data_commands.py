"""Commands about data: draw a sample, cut scenes into tiles, assign folds, repair labels. Heavy imports wait inside."""

from pathlib import Path
from typing import Annotated

import typer

from kit.cli.application import (
    HERE,
    ClusterAddress,
    Debug,
    Device,
    Json,
    Root,
    app,
    number_or_auto,
    parse_part,
)  # fmt: skip
from kit.console import result, say, table
from kit.errors import CutError
from kit.paths import Paths
from kit.system.files import check_writable

PANEL = "Data"  # of `kit --help`


@app.command(rich_help_panel=PANEL)
def sample(
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: ROOT/sample.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed. The same seed draws the same bytes.", min=0)] = 0,
    scale: Annotated[float, typer.Option(help="Draw training scenes of this many times the area.", min=1)] = 1,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Draw the sample city: scenes with footprints, some of them damaged, test chips, and the chips' true masks.

    Example: kit sample --scale 4
    """
    folder = out or Paths(root).sample
    check_writable(folder)

    from kit.sample.sample import draw_sample

    result(str(draw_sample(folder, seed, scale)))


@app.command(rich_help_panel=PANEL)
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="A STAC catalogue (folder, file or address), a folder of images with labels, or a CSV."),
    ],
    name: Annotated[str, typer.Option(help="Name of the data set. Default: that of the catalogue or folder.")] = "",
    grid: Annotated[
        str, typer.Option(help="Grid of the tiles: z19 (any zoom), 0.1m (any resolution) or native.")
    ] = "z19",
    side: Annotated[int, typer.Option(help="Side of a tile, px.", min=32, max=4096)] = 1024,
    overlap: Annotated[int, typer.Option(help="Overlap of neighbouring tiles, px.", min=0)] = 0,
    min_valid: Annotated[
        float, typer.Option(help="Skip tiles with a smaller fraction of imagery.", min=0, max=1)
    ] = 0.01,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Write masks of footprint, boundary and contact, for recipes with 3 channels."),
    ] = False,
    boundary: Annotated[str, typer.Option(help="With --layers: width of boundaries, px or m.")] = "5px",
    contact: Annotated[
        str, typer.Option(help="With --layers: largest gap between footprints in contact, px or m.")
    ] = "5m",
    images: Annotated[
        str, typer.Option(help="Format of the images: lossless, jpeg, or scene (VRTs that read the scenes).")
    ] = "lossless",
    by: Annotated[str, typer.Option(help="Unit that is held out together, see kit folds.")] = "auto",
    k: Annotated[int, typer.Option("-k", help="Number of folds.")] = 5,
    pattern: Annotated[
        str,
        typer.Option(
            help="Regular expression with groups (?P<area>...) and (?P<scene>...) for the paths of images in a folder."
        ),
    ] = "",
    tier: Annotated[
        int | None,
        number_or_auto(
            int, 1, "Quality of the labels: 1 careful, 2 rough. auto: read from the catalogue's id.", former=0
        ),
    ] = None,
    gsd: Annotated[
        float | None,
        number_or_auto(
            float, 0.001, "Ground resolution of images without a georeference, m per pixel. auto: unknown.", former=0
        ),
    ] = None,
    where: Annotated[str, typer.Option(help="SQL condition that labels must meet: \"kind = 'building'\".")] = "",
    building_value: Annotated[
        list[str] | None,
        typer.Option(help="Class or colour of buildings in ready-made masks: 2 or 255,0,0. Repeatable."),
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Accept scenes such as VRTs that read files outside their folder.")
    ] = False,
    scene: Annotated[
        list[str] | None, typer.Option(help="Cut only the scene AREA/SCENE, even if it is cut already. Repeatable.")
    ] = None,
    workers: Annotated[int | None, number_or_auto(int, 1, "Processes. auto: one per CPU core.", former=0)] = None,
    cluster: ClusterAddress = "",
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Cut the scenes of one of N parts; then the same without --part.")
    ] = "",
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Cut scenes into tiles: images, masks, index, folds, contact sheets. Rerun to resume.

    Example: kit prepare train_tier_1 --name tier1
    """
    from kit.cli.printing import show_prepared
    from kit.data.tiles.options import PrepareOptions, Style
    from kit.data.tiles.prepare import prepare as prepare_tiles
    from kit.data.tiles.prepare import prepare_part
    from kit.data.tiles.ready_masks import parse_values
    from kit.system.cluster import chosen_cluster
    from kit.system.workers import on_cluster

    paths = Paths(root)
    style = Style(grid, side, overlap, min_valid, layers, boundary, contact, images)
    options = PrepareOptions(
        name, by, k, pattern, where, allow_outside, tier, gsd, parse_values(building_value or ()),
        tuple(scene or ()), workers, style,
    )  # fmt: skip
    try:
        with on_cluster(chosen_cluster(cluster, workers)):
            if part:
                folder, scenes = prepare_part(source, paths, options, parse_part(part))
                say(f"part {part}: {scenes} scenes are cut")
                result(str(folder))
                return
            prepared = prepare_tiles(source, paths, options)
    except CutError as error:
        if error.prepared:
            show_prepared(error.prepared, as_json)
        raise
    show_prepared(prepared, as_json)
    if not as_json:
        result(str(paths.data(prepared.name)))


@app.command(rich_help_panel=PANEL)
def folds(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    by: Annotated[
        str, typer.Option(help="Unit that is held out together: scene, area, block, auto, or tile (which leaks).")
    ] = "scene",
    k: Annotated[int, typer.Option("-k", help="Number of folds.")] = 5,
    block_m: Annotated[float | None, typer.Option(help="Side of a block, m. Default: 8 tiles.")] = None,
    gap_m: Annotated[float | None, typer.Option(help="Gap between blocks of two folds, m. Default: one tile.")] = None,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Assign folds to the tiles of a data set again, without cutting.

    Tiles of two folds never overlap on the ground, except with --by tile; tiles that would are in no fold ("none").

    Example: kit folds tier1 --by block -k 5
    """
    check_writable(Paths(root).data(name))

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


@app.command(rich_help_panel=PANEL)
def audit(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    weights: Annotated[str, typer.Option(help="Name, file or address of the weights. Default: the newest.")] = "",
    sha256: Annotated[str, typer.Option(help="Expected SHA-256 of the weights, 64 hex digits.")] = "",
    block_m: Annotated[float, typer.Option(help="Side of the blocks that labels are shifted by, m.")] = 100,
    calibrate_on: Annotated[
        str,
        typer.Option(metavar="NAME", help="Data set with right labels. Default: the validation tiles of the weights."),
    ] = "",
    workers: Annotated[
        int | None, number_or_auto(int, 1, "Processes that compare labels. auto: one per CPU core.")
    ] = None,
    cluster: ClusterAddress = "",
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Let scenes that are VRTs read files outside their folder.")
    ] = False,
    device: Device = "",
    tune: Annotated[bool, typer.Option(help="Measure once which settings predict fastest on this machine.")] = True,
    engine: Annotated[
        str, typer.Option(help="Engine that runs the networks: torch, openvino or openvino-int8.")
    ] = "torch",
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Find labels that are shifted, missing or invented: compare them with what trained weights predict.

    Writes data/NAME/audit: blocks.csv, buildings.csv, tiles.csv, GeoJSON for QGIS, pictures of the worst tiles. The
    data set is not changed. Rerun to resume.

    Example: kit audit tier2 --weights lite0
    """
    from kit.audit.audit import AuditOptions
    from kit.audit.audit import audit as audit_labels
    from kit.deploy.engine.backends import EngineOptions, check_engine
    from kit.deploy.weights.fetch import find_weights
    from kit.system.cluster import chosen_cluster
    from kit.system.devices import pick_device
    from kit.system.workers import on_cluster

    paths = Paths(root)
    chosen = find_weights(weights, sha256, paths.weights)
    say(f"weights {chosen}")
    engine_options = EngineOptions(str(pick_device(device)), check_engine(engine), tune)
    options = AuditOptions(block_m, calibrate_on, workers or 0, allow_outside, engine_options)
    with on_cluster(chosen_cluster(cluster, workers)):
        summary = audit_labels(name, chosen, paths, options)
    for notice in summary.notices:
        say(notice)
    table(("of", "verdict", "number"), summary.rows())
    result(str(summary.folder))


@app.command(rich_help_panel=PANEL)
def repair(
    data: Annotated[str, typer.Argument(metavar="NAME", help="Name of the audited data set.")],
    name: Annotated[str, typer.Option(help="Name of the repaired data set. Default: NAME_repaired.")] = "",
    missing: Annotated[
        str, typer.Option(help="Predicted buildings without a label: add them, or ignore their pixels.")
    ] = "add",
    edge_m: Annotated[
        float, typer.Option(help="Half the width of the band that is ignored along unsure edges, m.", min=0, max=10)
    ] = 0.5,
    workers: Annotated[int | None, number_or_auto(int, 1, "Processes. auto: one per CPU core.")] = None,
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Repair labels as kit audit says, in a data set of their own. To undo changes edit its repairs.csv and rerun.

    Example: kit repair tier2 --missing ignore
    """
    import json
    from dataclasses import asdict

    from kit.data.tiles.repair import RepairOptions
    from kit.data.tiles.repair import repair as repair_labels

    repaired = repair_labels(Paths(root), data, RepairOptions(name, missing, edge_m, workers))
    if as_json:
        result(json.dumps(asdict(repaired), default=str, indent=1))
        return
    table(("change", "number"), [(change, str(number)) for change, number in sorted(repaired.changes.items())])
    if repaired.undone:
        say(f"{repaired.undone} changes are undone in repairs.csv")
    result(str(repaired.folder))
