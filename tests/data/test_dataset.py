from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from factories import prepare, write_bands

from kit.data.augment import D4, PadIfNeeded
from kit.data.dataset import Fold, TileDataset, dataloaders, read_tile, split_fold
from kit.data.index import read_index
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
    assert (mask.shape, mask.dtype) == ((64, 64), torch.uint8)
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
    mask = Path(fold.train["mask"].iloc[0])
    for spoil in (lambda: mask.write_bytes(mask.read_bytes()[:200]), mask.unlink):
        spoil()
        with pytest.raises(DataError, match=rf"tile {mask} cannot be read: (?!Read failed)"):
            TileDataset(fold.train)[0]


@pytest.mark.parametrize(("size", "bands", "message"), [(8, 3, "has 8 x 8 px, its mask"), (64, 1, "cannot be read")])
def test_a_tile_that_was_replaced_is_named(fold: Fold, size: int, bands: int, message: str):
    image = Path(fold.train["image"].iloc[0])
    write_bands(image, np.zeros((bands, size, size), np.uint8), photometric="minisblack")
    with pytest.raises(DataError, match=rf"tile {image} {message}") as caught:
        TileDataset(fold.train)[0]
    assert "--scene" in caught.value.hint


@pytest.fixture
def layered(tmp_path: Path, catalog: Path) -> Fold:
    prepare(catalog, Paths(tmp_path), "layered", grid="native", side_px=64, by="scene", k=2, layers=True)
    return split_fold(read_index(Paths(tmp_path), "layered")[1], 0, workers=0)


def test_layers_shapes_and_types(layered: Fold):
    image, mask = TileDataset(layered.valid, layers=True)[0]
    assert (image.shape, image.dtype) == ((3, 64, 64), torch.uint8)
    assert (mask.shape, mask.dtype) == ((3, 64, 64), torch.uint8)
    assert set(np.unique(mask)) <= {0, 1, 255}
    torch.testing.assert_close(mask[0], TileDataset(layered.valid)[0][1])
    images, masks = dataloaders(layered, CROP, batch_size=2, layers=True).train.one_batch()
    assert (images.shape, masks.shape, masks.dtype) == ((2, 3, 16, 16), (2, 3, 16, 16), torch.int64)


@pytest.mark.parametrize(
    "augment",
    [
        A.RandomCrop(32, 32),
        A.D4(),
        A.RandomSizedCrop((20, 60), (48, 48)),
        A.PadIfNeeded(90, 90, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255),
        A.ColorJitter(p=1),
    ],
    ids=lambda augment: type(augment).__name__,
)
def test_each_layer_moves_as_a_mask_of_its_own(layered: Fold, augment: A.BasicTransform):
    """Resized to the nearest, padded with 255 in all three."""
    transform = A.Compose([augment])
    image, mask = read_tile(layered.train["image"].iloc[0], layered.train["mask"].iloc[0], layers=True)
    for seed in range(8):
        transform.set_random_seed(seed)
        together = transform(image=image, mask=mask)["mask"]
        for layer in range(3):
            transform.set_random_seed(seed)
            alone = transform(image=image, mask=mask[..., layer].copy())["mask"]
            np.testing.assert_array_equal(together[..., layer], alone)
    assert set(np.unique(together)) <= {0, 1, 255}


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30], ids=["read again", "kept"])
def test_a_data_set_without_layers_is_told_at_once(fold: Fold, memory_bytes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kit.data.dataset.MEMORY_BYTES", memory_bytes)
    with pytest.raises(DataError, match=r"tif has 1 band, expected 3: footprint, boundary, contact") as error:
        dataloaders(fold, CROP, batch_size=2, layers=True)
    assert "kit prepare CATALOG --layers" in error.value.hint


@pytest.mark.parametrize(("layers", "bytes_per_px"), [(False, 4), (True, 6)])
def test_tiles_are_kept_where_they_fit(layered: Fold, layers: bool, bytes_per_px: int, monkeypatch: pytest.MonkeyPatch):
    need = len(layered.train) * 64 * 64 * bytes_per_px
    for room, kept in ((need, True), (need - 1, False)):
        monkeypatch.setattr("kit.data.dataset.MEMORY_BYTES", room)
        assert (TileDataset(layered.train, layers=layers).memory is not None) == kept


def test_crops_without_imagery_are_drawn_again(workplace: Path):
    """Of a tile with imagery in one corner, plain random crops would be empty most of the time."""
    _, index = read_index(Paths(workplace))
    dataset = TileDataset(index.head(1), A.Compose([A.RandomCrop(16, 16)]))
    image, mask = np.zeros((96, 96, 3), np.uint8), np.full((96, 96), 255, np.uint8)
    mask[:32, :32] = 1
    dataset.memory[0] = image, mask
    known = [float((dataset[(place, 0)][1] != 255).float().mean()) for place in range(40)]
    # a single crop holds a tenth of imagery in 13 % of draws, one of six in 57 %
    assert sum(share >= 0.1 for share in known) > 15
    dataset.memory[0] = image, np.full((96, 96), 255, np.uint8)
    assert (dataset[(0, 0)][1] == 255).all()  # nothing to be found: the last draw stands


def test_what_is_unknown_in_one_layer_is_unknown_in_all(workplace: Path):
    """albumentations fills all layers of a mask in some transforms, and the first alone in others."""
    _, index = read_index(Paths(workplace))
    fill_first = A.Lambda(mask=lambda mask, **_: np.dstack([np.full(mask.shape[:2], 255, np.uint8), mask[..., 1:]]))
    dataset = TileDataset(index.head(0), A.Compose([fill_first]), layers=True)
    dataset.files, dataset.memory = [("", "")], {0: (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8))}
    assert (dataset[(0, 0)][1] == 255).all()


def test_transforms_draw_independently(fold: Fold):
    """albumentations' `set_random_seed` would give all of them the same numbers: always both or neither here."""
    flips = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    dataset = TileDataset(fold.train, flips)
    image, mask = dataset.read(0)
    mask = np.zeros_like(mask)
    mask[0, 0] = 1  # where this corner goes tells which flips were made
    dataset.memory[0] = image, mask
    corners = [tuple(map(int, np.argwhere(dataset[(place, 0)][1].numpy() == 1)[0])) for place in range(400)]
    last = len(mask) - 1
    counts = [corners.count(corner) for corner in ((0, 0), (0, last), (last, 0), (last, last))]
    assert sum(counts) == 400
    assert min(counts) > 100 - 4 * (400 * 0.25 * 0.75) ** 0.5


def test_colours_are_changed_once_on_the_crop_that_stands(workplace: Path):
    """A crop that is drawn again is not coloured before; what follows the geometry comes once."""
    _, index = read_index(Paths(workplace))
    calls = []
    count_calls = A.Lambda(image=lambda image, **_: calls.append(1) or image)
    dataset = TileDataset(index.head(1), A.Compose([A.RandomCrop(16, 16), A.ColorJitter(p=1), count_calls]))
    dataset.memory[0] = np.zeros((96, 96, 3), np.uint8), np.full((96, 96), 255, np.uint8)
    dataset[(0, 0)]
    assert len(calls) == 1


@pytest.mark.parametrize("element", ["e", "r90", "r180", "r270", "v", "h", "t", "hvt"])
@pytest.mark.parametrize("shape", [(33, 47, 3), (33, 47)])
def test_d4_is_that_of_albumentations(element: str, shape: tuple[int, ...]):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    made = D4(p=1).apply(pixels, element)
    np.testing.assert_array_equal(made, A.D4(p=1).apply(pixels, element))
    assert made.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("side", [40, 64])
def test_padding_is_that_of_albumentations_without_a_copy(side: int):
    options = {"border_mode": cv2.BORDER_CONSTANT, "fill": 7, "fill_mask": 255}
    random = np.random.default_rng(0)
    image, mask = random.integers(0, 256, (48, 56, 3), dtype=np.uint8), random.integers(0, 2, (48, 56), dtype=np.uint8)
    made, theirs = (
        A.Compose([pad(side, side, **options)])(image=image, mask=mask) for pad in (PadIfNeeded, A.PadIfNeeded)
    )
    np.testing.assert_array_equal(made["image"], theirs["image"])
    np.testing.assert_array_equal(made["mask"], theirs["mask"])
    assert np.shares_memory(made["image"], image) == (side == 40)


def add_soft_labels(root: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Writes rasters of probability x 254 that rise from left to right, ignored in their last row of pixels."""
    files = []
    for mask in rows["mask"]:
        with rasterio.open(mask) as source:
            profile = source.profile | {"count": 1}
            levels = np.tile(np.linspace(0, 254, source.width).round().astype(np.uint8), (source.height, 1))
        levels[-1] = 255
        file = root / "soft" / Path(mask).name
        file.parent.mkdir(exist_ok=True)
        with rasterio.open(file, "w", **profile) as target:
            target.write(levels, 1)
        files.append(str(file))
    return rows.assign(soft=files)


def test_soft_labels_are_probabilities_and_hard_ones_0_and_1(fold: Fold, tmp_path: Path):
    soft, hard = add_soft_labels(tmp_path, fold.train.iloc[:1]), fold.train.iloc[1:2]
    train = pd.concat([soft, hard])
    loaders = dataloaders(Fold(0, train, fold.valid, workers=0), A.Compose([]), batch_size=2)
    loaders.train.get_idxs = lambda: [(0, 0), (1, 1)]
    images, targets = loaders.train.one_batch()
    assert (images.dtype, targets.dtype, targets.shape) == (torch.uint8, torch.float32, (2, 64, 64))
    torch.testing.assert_close(targets[0, 0], torch.linspace(0, 1, 64), atol=0.5 / 254, rtol=0)
    assert (targets[0, -1] == 255).all()
    mask = torch.from_numpy(read_tile(hard["image"].iloc[0], hard["mask"].iloc[0])[1])
    torch.testing.assert_close(targets[1], mask.float())
    assert loaders.valid.one_batch()[1].dtype == torch.int64
    assert dataloaders(fold, CROP, batch_size=2).train.one_batch()[1].dtype == torch.int64


def test_soft_labels_move_with_the_image_and_are_filled_with_ignored(fold: Fold, tmp_path: Path):
    pad = A.PadIfNeeded(90, 90, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255)
    moves = A.Compose([pad, A.D4(), A.RandomCrop(80, 80), A.RandomSizedCrop((40, 80), (48, 48))])
    dataset = TileDataset(add_soft_labels(tmp_path, fold.train), moves, seed=1, soft=True)
    levels = np.tile(np.arange(0, 254, 4, dtype=np.uint8), (64, 1))  # 64 columns
    dataset.memory[0] = np.dstack([levels] * 3), levels
    for place in range(20):
        image, labels = dataset[(place, 0)]
        known = labels != 255
        assert known.any()
        # the image is interpolated where it is resized, its labels are not: a column more or less
        assert ((image[0].int() - labels.int()).abs() <= 8)[known].float().mean() > 0.9
        assert (image[0][~known] < 250).all()


def test_soft_labels_have_no_layers(layered: Fold, tmp_path: Path):
    train = add_soft_labels(tmp_path, layered.train)
    with pytest.raises(DataError, match="layered has soft labels, and the recipe needs layers"):
        dataloaders(Fold(0, train, layered.valid, workers=0), CROP, batch_size=2, layers=True)


def test_each_data_set_must_have_the_layers(layered: Fold, fold: Fold):
    train = pd.concat([layered.train, fold.train], ignore_index=True)
    with pytest.raises(DataError, match=r"tif has 1 band, expected 3"):
        dataloaders(Fold(0, train, layered.valid, workers=0), CROP, batch_size=2, layers=True)


def test_a_soft_raster_that_is_lost_is_named(fold: Fold, tmp_path: Path):
    rows = add_soft_labels(tmp_path, fold.train)
    Path(rows["soft"].iloc[0]).unlink()
    with pytest.raises(DataError, match=r"tile .* cannot be read"):
        TileDataset(rows, soft=True)[0]
