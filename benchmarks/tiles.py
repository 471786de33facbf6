"""The tiles that benchmarks train on: those of a data root, or of the sample city, drawn for the while."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kit.data.dataset import Fold, split_fold
from kit.data.folds.assign import fold_numbers
from kit.data.index import read_index
from kit.data.tiles.options import PrepareOptions
from kit.data.tiles.prepare import prepare
from kit.paths import Paths
from kit.sample.sample import draw_sample


@contextmanager
def data_root(given: Path | None) -> Iterator[Path]:
    """Yields a root with a prepared data set: the given one, or a temporary one with the sample city in 2 folds."""
    if given is not None:
        yield given
        return
    with TemporaryDirectory() as folder:
        paths = Paths(Path(folder))
        draw_sample(paths.sample)
        prepare(paths.sample / "train_tier_1", paths, PrepareOptions(name="sample", by="scene", k=2))
        yield paths.root


def fold_of(root: Path, **options: Any) -> Fold:
    """Returns the first fold of the root's data set; the options are `Fold`'s."""
    _, index = read_index(Paths(root))
    return split_fold(index, fold_numbers(index)[0], **options)
