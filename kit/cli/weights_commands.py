"""Commands about weights: freeze runs into one file, list and verify files. Heavy imports wait inside."""

from typing import Annotated

import typer

from kit.cli.application import HERE, Debug, Device, Json, Root, app
from kit.console import result, say, table
from kit.paths import Paths

PANEL = "Weights"  # of `kit --help`


@app.command(rich_help_panel=PANEL)
def export(
    runs: Annotated[list[str], typer.Argument(help="<recipe>/fold<k>, of any recipes.")],
    name: Annotated[str, typer.Option(help="Of the weights.")],
    views: Annotated[str, typer.Option(help="none, flips or d4.")] = "flips",
    formats: Annotated[
        str, typer.Option("--format", help="pt2 and onnx beside the TorchScript file, with commas; minutes each.")
    ] = "torchscript",
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
    from kit.pipeline.export_runs import export_runs

    others = chosen(formats)
    result(str(export_runs(runs, name, Paths(root), views, others).path))


@app.command(rich_help_panel=PANEL)
def weights(as_json: Json = False, root: Root = HERE, debug: Debug = False) -> None:
    """List the weights: views, score out of fold, parity with the networks they were frozen from, formats, checksum.

    Each file is held against the checksum it is listed with.

    Example: kit weights
    """
    import json
    from dataclasses import asdict

    from kit.deploy.weights.listing import COLUMNS, list_weights

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


@app.command(rich_help_panel=PANEL)
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
        table(("check", "found"), [(check.name, check.fault or check.result) for check in verified.checks])
        table(COLUMNS, [row.cells() for row in verified.rows])
    verified.require()
    if not verified.compared:
        say(f"{verified.path.name} holds nothing of its networks to be compared with: export the runs again")
    if not as_json:
        result(f"verified {verified.path.name}")
