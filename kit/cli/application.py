"""The application: options that commands share, exit codes, and how errors are shown."""

import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from kit import __version__
from kit.console import failure, ignore_known_warnings, no_progress, only_errors, result, say, table
from kit.errors import KitError, RankError
from kit.system.launcher import ignored_variables, launched, launched_by_kit, own_rank

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="From drone imagery of a city to building masks.\n\nExample: kit run quickstart && kit submit",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

Root = Annotated[
    Path, typer.Option("--root", envvar="KIT_ROOT", help="Working folder: data, runs, weights, submissions, maps.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1. Default: a GPU if there is one.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile (for GPUs).")]
Data = Annotated[str, typer.Option(help="Data set. Default: the only one.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A name (see kit recipes) or a path.")]
EncoderWeights = Annotated[Path | None, typer.Option(help="File with the encoder's state dict.")]
Pretrained = Annotated[bool, typer.Option(help="Start from ImageNet weights.")]
Views = Annotated[str, typer.Option(help="Flips and turns that are averaged in prediction: none, flips or d4.")]
Part = Annotated[str, typer.Option(metavar="I/N", help="Do one of N parts, for array jobs; then --merge.")]
ClusterAddress = Annotated[
    str, typer.Option("--cluster", help="A dask scheduler, tcp://HOST:PORT, or local:N. Default: processes.")
]
HERE = Path()
QUIET = "--quiet"  # read by `main`, wherever it stands
INTERRUPTED = 130  # typer's exit code after Ctrl-C


def number_or_auto(
    kind: type[float], least: float, description: str, *names: str, most: float = inf, former: float | None = None
) -> Any:
    """Returns an option that takes a number, or `auto`, which is None.

    Args:
        kind: int or float.
        least: the smallest number.
        description: the help text.
        names: of the option; by default that of the parameter.
        most: the largest number.
        former: another spelling of `auto`, accepted from earlier versions.
    """

    def parse(text: str) -> float | None:
        if text in ("auto", ""):
            return None
        try:
            number = kind(text)
        except ValueError:
            number = float("nan")
        if number == former:
            return None
        if not least <= number <= most or number == inf:
            what = "an integer" if kind is int else "a number"
            upto = f"from {least:g} to {most:,.0f}" if most < inf else f"of at least {least:g}"
            raise typer.BadParameter(f"{text!r}: expected auto or {what} {upto}")
        return number

    return typer.Option(*names, parser=parse, metavar="auto|N", show_default="auto", help=description)


def parse_part(text: str) -> tuple[int, int]:
    """Returns the part and the number of parts in `--part 3/40`; the first is 1."""
    part, _, count = text.partition("/")
    if not (part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count)):
        raise typer.BadParameter(f"{text!r}: expected I/N, for example 3/40; the first part is 1", param_hint="--part")
    return int(part), int(count)


def show_listing(lines: Sequence[Any], columns: Sequence[str], as_json: bool, nothing: str) -> None:
    """Prints a listing as a table or as JSON, and the problems of its lines.

    Args:
        lines: dataclasses with `problem` and `cells()`.
        columns: titles of the cells.
        as_json: whether to print JSON.
        nothing: the notice for an empty listing.
    """
    if not lines:
        say(nothing)
    for line in lines:
        if line.problem:
            say(line.problem)
    if as_json:
        result(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        table(columns, [line.cells() for line in lines])


def check_nproc(nproc: int) -> None:
    """Raises a usage error if --nproc asks for processes where a launcher has already started several."""
    if nproc > 1 and launched() and not launched_by_kit():
        raise typer.BadParameter("a launcher has already started several processes: leave it out", param_hint="--nproc")


def _version(requested: bool) -> None:
    if requested:
        from kit.system.doctor import versions

        result(__version__)
        result(versions())
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions and exit.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option(QUIET, help="Print results and errors only. May also stand behind the command.")
    ] = False,
    local_rank: Annotated[int, typer.Option("--local-rank", "--local_rank", hidden=True)] = 0,
) -> None:
    """From drone imagery of a city to building masks."""


def _fail(message: str, hint: str) -> None:
    """Shows an error; of several processes that work together, the first to fail does."""
    if launched():
        from kit.system.processes import first_to_fail

        if not first_to_fail():
            return
    failure(message, hint)


def main() -> None:
    """Runs a command; exit code 0: done, 1: an error, 2: wrong usage."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its version
    ignore_known_warnings()
    own = own_rank()
    only_errors(own is not None and own.number > 0)
    no_progress(QUIET in sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    if notice := ignored_variables():
        say(notice)
    try:
        arguments = [argument for argument in sys.argv[1:] if argument != QUIET]
        code = app(arguments, prog_name="kit", standalone_mode=False)
        if code != INTERRUPTED:
            sys.exit(code if isinstance(code, int) else 0)
        raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", "rerun the same command to resume")
    except KitError as error:
        if debug:
            traceback.print_exc()
        if not (isinstance(error, RankError) and error.shown):
            _fail(error.message, error.hint)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # typer's usage error
            error.show()
            sys.exit(error.exit_code)
        if debug:
            traceback.print_exc()
        _fail(f"{type(error).__name__}: {error}", "this is a fault of kit: rerun with --debug and report it")
    sys.exit(1)
