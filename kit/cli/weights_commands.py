"""Commands about weights: freeze runs into one file, list and verify files. Heavy imports wait inside."""

from pathlib import Path
from typing import Annotated

import typer

from kit.cli.application import HERE, Debug, Device, Json, Root, Views, app, show_listing
from kit.console import result, say, table
from kit.paths import Paths

PANEL = "Weights"  # of `kit --help`
Formats = Annotated[
    str,
    typer.Option(
        "--format",
        help="Further formats beside TorchScript: pt2, onnx, onnx-gis (for QGIS and WebODM), or several: pt2,onnx. "
        "onnx-gis:1024 is for tiles of 1024 px, by default 512. Each takes minutes. Default: none.",
        show_default=False,
    ),
]
About = Annotated[
    Path | None, typer.Option("--about", help="JSON object of texts for the card: imagery, labels, licence.")
]


@app.command(rich_help_panel=PANEL)
def export(
    runs: Annotated[list[str], typer.Argument(help="Runs <recipe>/fold<k>, of one or several recipes.")],
    name: Annotated[str, typer.Option(help="Name of the weights.")],
    views: Views = "flips",
    formats: Formats = "torchscript",
    weights: Annotated[
        str, typer.Option("--weights", help="Weight of each run in the vote: 0.5,0.3,0.2. Default: equal.")
    ] = "",
    float16: Annotated[
        bool, typer.Option("--float16", help="Store the weights as float16: half the file. They compute in float32.")
    ] = False,
    about: About = None,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", hidden=True, help="Not needed: kit submit --adaptive calibrates itself.")
    ] = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Freeze finished runs into one weights file.

    Example: kit export lite0/fold0 lite0/fold1 --name duo --views d4 --format onnx
    """
    from kit.deploy.freeze.formats import chosen
    from kit.deploy.weights import card
    from kit.pipeline.export_runs import FileOptions, export_runs

    others = chosen(formats)
    files = FileOptions(
        others, "float16" if float16 else "float32", about=card.read_about(about) if about else card.About()
    )
    result(str(export_runs(runs, name, Paths(root), views, files, weights=_numbers(weights)).path))


def _numbers(text: str) -> list[float]:
    """Returns the numbers in a comma-separated list; a usage error where one is none."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as cause:
        raise typer.BadParameter(f"{text!r}: expected numbers as in 0.5,0.3,0.2", param_hint="--weights") from cause


@app.command(rich_help_panel=PANEL)
def best(
    runs: Annotated[list[str], typer.Argument(help="Runs <recipe>/fold<k>, or a recipe for its finished folds.")],
    name: Annotated[str, typer.Option(help="Name of the weights.")],
    seconds_per_chip: Annotated[
        float,
        typer.Option(
            help="Longest prediction time of a chip of 1024 px on this machine, s. Default: no limit.",
            show_default=False,
        ),
    ] = 0.0,
    views: Views = "flips",
    formats: Formats = "torchscript",
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Choose the members and their weights that score best on validation tiles, and export them.

    Several runs of one recipe and fold are also tried as the mean of their network weights.

    The gain is checked on other tiles than the choice. Without a gain, the best single candidate is exported.

    Example: kit best lite0 efficientnet_b4 --name best --seconds-per-chip 5
    """
    from kit.deploy.freeze.formats import chosen
    from kit.pipeline import best_ensemble

    options = best_ensemble.BestOptions(views, chosen(formats), seconds_per_chip or float("inf"))
    result(str(best_ensemble.best(runs, name, Paths(root), options).path))


@app.command(rich_help_panel=PANEL)
def weights(
    folder: Annotated[str, typer.Option(help="Write these weights as a folder for model hubs.", metavar="NAME")] = "",
    stac: Annotated[
        str, typer.Option(help="Write a STAC item of these weights, with the MLM extension.", metavar="NAME")
    ] = "",
    describe: Annotated[
        str, typer.Option(help="Add --about and the areas of --data to the card of these weights.", metavar="NAME")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="The folder or item to write. Default: ROOT/hub/NAME, ROOT/weights/NAME.stac.json."),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, for --folder and --stac: cc-by-4.0, mit ...")
    ] = "",
    about: About = None,
    data: Annotated[str, typer.Option(help="Data set of the training, for --describe.", show_default=False)] = "",
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """List weights: views, validation score, parity with the trained networks, formats, checksum.

    Files that no longer have their listed checksum are marked.

    Example: kit weights
    """
    from kit.deploy.weights.listing import COLUMNS, list_weights

    paths = Paths(root)
    if (count := sum(map(bool, (folder, stac, describe)))) > 1 or (out and not (folder or stac)):
        raise typer.BadParameter(
            "give one of --folder, --stac and --describe" if count else "--out needs --folder or --stac"
        )
    if bool(describe) != bool(about or data):
        raise typer.BadParameter("--describe needs --about or --data, and they need --describe")
    if folder or stac or describe:
        from kit.deploy.weights import card
        from kit.pipeline import publish

        if folder:
            result(str(publish.publish(folder, paths, out, licence or "other")))
        elif stac:
            result(str(publish.publish_item(stac, paths, out, licence)))
        else:
            result(str(publish.describe(describe, paths, card.read_about(about) if about else card.About(), data)))
        return
    nothing = "no weights here yet, kit map uses the starter weights; train some: kit run RECIPE"
    show_listing(list_weights(paths.weights), COLUMNS, as_json, nothing)


@app.command(rich_help_panel=PANEL)
def verify(
    weights: Annotated[str, typer.Argument(help="NAME.pt, or a name in ROOT/weights.")],
    device: Device = "",
    as_json: Json = False,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Verify weights: card, checksum, and that every format predicts what the trained networks predicted.

    Their predictions on several image sizes are stored in NAME.pt, so this works on any machine.

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
        table(("check", "result"), [(check.name, check.fault or check.result) for check in verified.checks])
        table(COLUMNS, [row.cells() for row in verified.rows])
    verified.require()
    if not verified.compared:
        say(f"{verified.path.name} holds no predictions of its networks to compare with: export the runs again")
    if not as_json:
        result(f"verified {verified.path.name}")
