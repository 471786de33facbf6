"""The out-of-fold score of a round, and its gain over an earlier one on the tiles that both held out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from kit.data.index import read_index
from kit.data.masks import Counts, count, pool
from kit.errors import RunError
from kit.paths import Paths
from kit.pipeline.compare_runs import compare_tiles
from kit.pipeline.postprocess import held_out_tiles, read_tiles
from kit.solutions.rounds import titled
from kit.system.files import read_json, replacing, write_json

COLUMNS = ("round", "networks", "tiles", "jaccard", "compared with", "gain", "low", "high", "weights")


@dataclass(frozen=True)
class RoundScore:
    """How a round predicts the tiles that it held out."""

    round: str  # its name
    networks: int  # of the round
    tiles: int  # that at least one of them held out
    jaccard: float | None  # of the mean of their probabilities, pooled over these tiles; None where there are none
    compared_with: str = ""  # an earlier round; empty where no tile was held out by both
    gain: float | None = None  # difference in Jaccard on these tiles
    low: float | None = None  # where its 95 % interval begins, see `kit.pipeline.compare_runs`
    high: float | None = None  # where it ends

    @property
    def lost(self) -> bool:
        """Whether the earlier round scored better."""
        return self.gain is not None and self.gain < 0

    def __str__(self) -> str:
        if self.jaccard is None:
            return f"{titled(self.round)}: nothing was held out, so there is no score"
        score = f"{titled(self.round)}: out-of-fold Jaccard {self.jaccard:.4f} on {self.tiles} tiles"
        if self.gain is None:
            return score
        interval = "" if self.low is None else f" [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{score}, {self.gain:+.4f}{interval} beside {titled(self.compared_with)}"

    def cells(self, kept: str) -> tuple[object, ...]:
        """Returns a table row, see COLUMNS.

        Args:
            kept: round whose weights are used after this one.
        """
        numbers = (self.networks, self.tiles, self.jaccard, self.compared_with, self.gain, self.low, self.high)
        return (self.round, *("" if cell is None else cell for cell in numbers), kept)


def score_round(
    name: str, folders: Sequence[Path], paths: Paths, data: str, file: Path, before: Path | None
) -> RoundScore:
    """Returns the score of a round, and writes it: `<round>.json`, and `<round>.csv` with the counts of each tile.

    Args:
        name: of the round.
        folders: of its runs.
        paths: of the working root.
        data: name of the data set with the tiles.
        file: `<round>.json`.
        before: that of the round to compare with.
    """
    places = read_index(paths, data)[1].set_index("tile")
    rows = []
    for tile, probability, truth in read_tiles(held_out_tiles(folders, paths), f"score {name}"):
        place = places.loc[tile.name]
        counts = asdict(count(probability > 0.5, truth))
        rows.append({"tile": tile.name, "area": place["area"], "scene": place["scene"], **counts})
    tiles = pd.DataFrame(rows, columns=["tile", "area", "scene", "tp", "fp", "fn"])
    jaccard = pool(Counts(row.tp, row.fp, row.fn) for row in tiles.itertuples()).jaccard if rows else None
    score = RoundScore(name, len(folders), len(tiles), jaccard)
    with replacing(file.with_suffix(".csv")) as temporary:
        tiles.to_csv(temporary, index=False)
    if before is not None:
        types = dict.fromkeys(["tile", "area", "scene"], "str")
        earlier = pd.read_csv(before.with_suffix(".csv"), dtype=types, keep_default_na=False)
        if set(earlier["tile"]) & set(tiles["tile"]):
            pooled = compare_tiles(earlier, tiles, (before.stem, name))
            score = replace(score, compared_with=before.stem, gain=pooled.difference, low=pooled.low, high=pooled.high)
    write_json(file, asdict(score))
    return score


def read_score(file: Path) -> RoundScore | None:
    """Returns the score of a round; None where there is none."""
    return read_json(file, RoundScore, error=RunError, hint=f"remove {file}") if file.is_file() else None
