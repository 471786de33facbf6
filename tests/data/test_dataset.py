from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch

from kit.data.dataset import Fold, TileDataset, dataloaders, split_fold
from kit.data.prepare import read_index
from kit.errors import DataError
from kit.paths import Paths

CROP = A.Compose([A.RandomCrop(16, 16), A.D4()])


@pytest.fixture
def fold(workplace: Path) -> Fold:
    _, index = read_index(Paths(workplace))
    return split_fold(index, 0, workers=0)


def crops_of(fold: Fold, workers: int, epochs: int = 2) -> list[list[bytes]]:
    """Draws the same tile over and over, and returns the bytes of each crop per epoch."""
    one = fold.train.iloc[[0] * 8]
    loaders = dataloaders(Fold(0, one, fold.valid, seed=5, workers=workers), CROP, batch_size=2)
    drawn = []
    for epoch in range(epochs):
        loaders.train.dataset.epoch = epoch
        loaders.train.get_idxs = lambda: list(enumerate([0] * 8))
        drawn.append([crop.numpy().tobytes() for images, _ in loaders.train for crop in images])
    return drawn


def test_crops_differ_over_places_epochs_and_workers(fold: Fold):
    first, second = crops_of(fold, workers=2)
    assert len(set(first)) == 8
    assert len(set(second)) == 8
    assert not set(first) & set(second)


def test_crops_do_not_depend_on_the_number_of_workers(fold: Fold):
    assert crops_of(fold, workers=0) == crops_of(fold, workers=2)


def test_image_and_mask_move_together(fold: Fold):
    dataset = TileDataset(fold.train, CROP, seed=1)
    for place in range(20):
        image, mask = dataset[place, place % len(dataset)]
        bright = image.float().mean(0) > 128
        assert not ((mask == 1) != bright)[mask != 255].any()


def test_shapes_and_types(fold: Fold):
    image, mask = TileDataset(fold.valid)[0]
    assert (image.shape, image.dtype) == ((3, 64, 64), torch.uint8)
    assert (mask.shape, mask.dtype) == ((64, 64), torch.int64)
    assert set(np.unique(mask)) <= {0, 1, 255}


def test_fold_all_trains_on_everything(workplace: Path):
    _, index = read_index(Paths(workplace))
    everything = split_fold(index, "all")
    assert len(everything.train) == len(index)
    assert len(everything.valid) == 0


def test_unknown_fold(workplace: Path):
    _, index = read_index(Paths(workplace))
    with pytest.raises(DataError, match=r"no fold 7 among \[0, 1\]"):
        split_fold(index, 7)


def test_lost_tile_is_named(fold: Fold):
    Path(fold.train["mask"].iloc[0]).unlink()
    with pytest.raises(DataError, match="a tile cannot be read"):
        TileDataset(fold.train)[0]
