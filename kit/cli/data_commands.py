"""Commands about data: draw a sample, cut scenes into tiles, assign folds. Heavy imports wait inside."""

from pathlib import Path
from typing import Annotated

import typer

from kit.cli.application import HERE, Debug, Json, Root, app
from kit.console import result, say, table
from kit.errors import CutError
from kit.paths import Paths

PANEL = "Data"  # of `kit --help`


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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
    gsd: Annotated[float, typer.Option(help="Metres per pixel of images without a georeference.")] = 0.0,
    where: Annotated[str, typer.Option(help="Use the labels that fit an SQL condition: \"kind = 'building'\".")] = "",
    building_value: Annotated[
        list[str] | None,
        typer.Option(help="Class or colour of buildings in ready-made masks: 2 or 255,0,0; repeatable."),
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Accept scenes such as VRTs that read files outside their folder.")
    ] = False,
    scene: Annotated[list[str] | None, typer.Option(help="Cut AREA/SCENE again, and no other; repeatable.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; by default one a core.", min=0)] = 0,
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Cut scenes into tiles: images, masks, index, folds, contact sheets. Stopped, it goes on where it was.

    Example: kit prepare train_tier_1 --name tier1
    """
    from kit.cli.printing import show_prepared
    from kit.data.tiles.options import PrepareOptions, Style
    from kit.data.tiles.prepare import prepare as prepare_tiles
    from kit.data.tiles.ready_masks import parse_values

    paths = Paths(root)
    style = Style(grid, side, overlap, min_valid, layers, boundary, contact, images)
    options = PrepareOptions(
        name, by, k, pattern, where, allow_outside, tier, gsd, parse_values(building_value or ()), tuple(scene or ()),
        workers, style,
    )  # fmt: skip
    try:
        made = prepare_tiles(source, paths, options)
    except CutError as error:
        if error.made:
            show_prepared(error.made, as_json)
        raise
    show_prepared(made, as_json)
    if not as_json:
        result(str(paths.data(made.name)))


@app.command(rich_help_panel=PANEL)
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
