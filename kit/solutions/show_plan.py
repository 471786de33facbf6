"""What `kit run SOLUTION --plan` shows: rounds and stages with their state, and what they cost."""

from kit.console import say, table
from kit.data.index import read_index
from kit.errors import CatalogError
from kit.paths import Paths
from kit.solutions.estimates import CARDS, CHALLENGE, SAMPLE_CITY, DataSize, StageCost, costs
from kit.solutions.play import Player, SolutionOptions
from kit.solutions.preflight import check_rounds, chips_of
from kit.solutions.rounds import Solution
from kit.solutions.stages import read_records

COLUMNS = ("round", "stage", "makes", "state", "PFLOP", *(f"{card} h" for card in CARDS), "GB")


def show_plan(solution: Solution, paths: Paths, options: SolutionOptions) -> None:
    """Prints the stages of a solution; neither data nor weights need be there.

    Raises:
        KitError: a round is wrong, as far as it shows without data.
    """
    player = Player(solution, paths, options)
    check_rounds(player.planner, player.recipes)
    size = _size(player)
    states = player.planner.states(read_records(player.folder))
    estimates = costs(player.planner.stages, player.recipes, size)
    rows = [
        (stage.round, stage.kind, stage.name, state, *_cells(cost))
        for stage, state, cost in zip(player.planner.stages, states, estimates, strict=True)
    ]
    left = [cost for cost, state in zip(estimates, states, strict=True) if state != "done"]
    total = StageCost(sum(cost.gflop for cost in left), sum(cost.disk_gb for cost in left))
    table(COLUMNS, [*rows, ("", "", "left to do", "", *_cells(total))])
    say(
        f"estimated for {size.tiles:,} tiles in {size.folds} folds and {size.chips:,} chips of 1024 px; hours of one "
        "card in mixed precision, which may be half or twice as many"
    )


def _size(player: Player) -> DataSize:
    """Returns the size of the data; that of the sample, or of the challenge, where there is none."""
    usual = SAMPLE_CITY if player.solution.sample else CHALLENGE
    tiles, folds = usual.tiles, usual.folds
    if player.inputs.data:
        tiles = len(read_index(player.paths, player.inputs.data)[1])
        folds = len(player.inputs.folds)
    sets = {each.name for round_ in player.solution.rounds for each in round_.added} & set(player.paths.data_names())
    added = {name: len(read_index(player.paths, name)[1]) for name in sorted(sets)}
    try:
        chips = len(chips_of(player.solution, player.paths, player.options.test))
    except CatalogError:
        chips = usual.chips
    return DataSize(tiles, folds, added, chips)


def _cells(cost: StageCost) -> tuple[str, ...]:
    hours = [cost.hours(card) for card in CARDS]
    return tuple(f"{number:,.1f}" if number >= 0.05 else "" for number in (cost.gflop / 1e6, *hours, cost.disk_gb))
