"""What `kit map` does with a collection: plan, parts, merge, and what it prints."""

from dataclasses import dataclass

import typer

from kit.cli.application import parse_part
from kit.console import result, say, table
from kit.deploy.country.country import (
    CountryRequest,
    check_failed,
    estimate,
    make_plan,
    map_cells,
    mark_part,
    merge_map,
    read_plan,
)
from kit.deploy.country.country_plan import CellStates
from kit.deploy.country.merge import CountrySummary
from kit.system.cluster import chosen_cluster
from kit.system.cpu import cpu_count
from kit.system.workers import on_cluster

MORE_WORKERS = (10, 100)  # whose hours a plan shows, without --workers


@dataclass(frozen=True)
class Steps:
    """Which steps of a map to take, and who works."""

    plan: bool = False  # plan alone
    part: str = ""  # one part of the plan, `3/40`
    merge: bool = False  # merge alone
    cluster: str = ""  # see `chosen_cluster`
    workers: int | None = None  # processes of this machine


def map_collection(request: CountryRequest, steps: Steps) -> None:
    """Plans, maps or merges a collection, and prints what came of it."""
    if steps.plan + bool(steps.part) + steps.merge > 1:
        raise typer.BadParameter("they exclude each other", param_hint="--plan, --part and --merge")
    if steps.merge:
        states = read_plan(request)
        _show(merge_map(states), states)
        return
    with on_cluster(chosen_cluster(steps.cluster, steps.workers)):
        if steps.part:
            index, count = parse_part(steps.part)
            states = read_plan(request)
            mark_part(states.files, index, count)
            summary = map_cells(states, states.part(index, count), request, steps.workers)
            say(f"part {index}/{count}: {summary.cells} cells, {summary.mapped} mapped now")
            check_failed(summary.failed, summary.cells)
            result(str(states.files.cells))
            return
        states = make_plan(request)
        if steps.plan:
            _show_plan(states, request, steps.workers)
            return
        map_cells(states, states.cells, request, steps.workers)
    _show(merge_map(states), states)


def _show_plan(states: CellStates, request: CountryRequest, workers: int | None) -> None:
    needed = estimate(states, request, cpu_count())
    hours = [("hours, this machine", f"{needed.hours:,.2g}")]
    counts = [workers] if workers else MORE_WORKERS
    hours += [(f"hours, {n} workers", f"{needed.hours * needed.workers / n:,.2g}") for n in counts]
    rows = [
        ("scenes", f"{needed.scenes:,}"), ("left out", f"{len(states.plan.refused):,}"), ("cells", f"{needed.cells:,}"),
        ("windows", f"{needed.windows:,}"), ("gigapixels", f"{needed.gigapixels:,.3g}"), *hours,
        ("disk, GB", f"{needed.disk_gb:,.2g}"),
    ]  # fmt: skip
    table(("plan", "about"), rows)
    result(str(states.files.plan))


def _show(summary: CountrySummary, states: CellStates) -> None:
    cells = ", ".join(f"{count} {status}" for status, count in sorted(summary.statuses.items()))
    say(f"{summary.count:,} buildings, {summary.area_m2:,.0f} m²; cells: {cells}")
    if summary.cut:
        say(f"{summary.cut} buildings reach further than cells look, and were cut at a cell's edge")
    if summary.tiles:
        result(str(summary.tiles))
    result(str(states.files.collection))
    result(str(summary.coverage))
    result(str(summary.buildings))
    check_failed(summary.failed, len(states.cells))
