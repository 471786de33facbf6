"""DataLoaders of a fold: augmented random crops for training, whole tiles for validation."""

import random
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import rasterio
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from numpy.typing import NDArray
from rasterio.errors import RasterioIOError
from torch import Tensor

from kit.console import say
from kit.data.folds.assign import fold_numbers
from kit.data.folds.leaks import ADDED
from kit.data.instances import Walls, pack_ids, read_ids
from kit.data.joined_sets import on_ground_of
from kit.data.masks import BUILDING, IGNORE, LAYERS, SOFT_STEPS
from kit.data.rasters import without_notice
from kit.errors import DataError
from kit.system.cpu import default_workers

__all__ = ["Fold", "dataloaders"]

MEMORY_BYTES = 2 << 30  # tiles of a fold up to this size are read once and kept, shared by the loader's workers

MIN_KNOWN, TRIES = 0.1, 6  # a crop with less imagery is drawn again: tiles at a scene's edge are mostly empty

CUT_AGAIN = "cut its scene again: kit prepare SOURCE --scene AREA/SCENE; windows need the scenes where they were"

Key = tuple[int, int]  # place in the epoch's draw, row of the index


@dataclass(frozen=True)
class Fold:
    """The tiles of a training, and those of its validation.

    Args:
        number: of the validation fold; `all` without validation.
        train: rows of the index to train on.
        valid: rows of the index to validate on; empty for `all`.
        seed: random seed.
        device: of the batches.
        workers: loader processes; None: as many as suit the machine.

    Raises:
        DataError: a tile of an added set, or of no fold, would be validated on.
    """

    number: int | str
    train: pd.DataFrame
    valid: pd.DataFrame
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int | None = None

    def __post_init__(self) -> None:
        """Checks that only tiles of numbered folds are validated on."""
        never = self.valid[self.valid["fold"] < 0] if "fold" in self.valid else self.valid.iloc[:0]
        if len(never):
            raise DataError(
                f"fold {self.number}: tile {never['tile'].iloc[0]} belongs to no fold, and cannot be validated on",
                "tiles of added sets and tiles in no fold only train",
            )


def split_fold(index: pd.DataFrame, number: int | str, **options: Any) -> Fold:
    """Returns a fold of an index; `all` trains on everything, the others on no tile that belongs to no fold.

    Tiles of added sets train in every fold, save those that lie on the ground of a validation tile: how many these are
    is said on stderr.

    Raises:
        DataError: there is no such fold, or nothing is left to train on.
    """
    if number == "all":
        return Fold("all", index, index.iloc[:0], **options)
    known = fold_numbers(index)
    if number not in known:
        raise DataError(f"no fold {number} among {known}", "choose another with --fold, or make folds with kit folds")
    if len(known) == 1:
        raise DataError(
            f"fold {number} is the only one: nothing is left to train on", "make more with kit folds, or --all"
        )
    held_out, added = index["fold"] == number, index["fold"] == ADDED
    valid, trained = index[held_out], ~held_out & (index["fold"].isin(known) | added)
    if added.any():
        leaks = on_ground_of(valid, index[added])
        trained &= ~index.index.isin(leaks)
        for name, count in index.loc[leaks, "data"].value_counts(sort=False).items():
            say(
                f"fold {number}: {count} of {(index['data'] == name).sum()} tiles of {name} lie on the ground of "
                "validation tiles, and do not train"
            )
    return Fold(number, index[trained], valid, **options)


def read_tile(image: str, mask: str, layers: bool | Walls = False) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns a tile's image (H, W, 3) and mask (H, W), both uint8; with layers, the mask is (H, W, 3).

    With `Walls`, the mask's bands are those of `pack_ids`.

    Raises:
        DataError: one of them cannot be read, their sizes differ, or the mask has no layers although they are
            requested.
    """
    opened = image
    try:
        with without_notice, rasterio.open(image) as source:
            pixels = _bands_last(source.read((1, 2, 3)))
        opened = mask
        with without_notice, rasterio.open(mask) as truth:
            if layers is True and truth.count != len(LAYERS):
                raise DataError(
                    f"{mask} has {truth.count} band, expected {len(LAYERS)}: {', '.join(LAYERS)}",
                    "cut the data set again: kit prepare CATALOG --layers",
                )
            labels = _bands_last(truth.read()) if layers is True else truth.read(1)
    except (RasterioIOError, IndexError) as cause:  # IndexError: of its bands
        raise DataError(f"tile {opened} cannot be read: {cause.__cause__ or cause}", CUT_AGAIN) from cause
    if pixels.shape[:2] != labels.shape[:2]:
        (height, width), (h, w) = pixels.shape[:2], labels.shape[:2]
        raise DataError(f"tile {image} has {width} x {height} px, its mask {mask} {w} x {h}", CUT_AGAIN)
    return pixels, pack_ids(labels, read_ids(mask, labels)) if isinstance(layers, Walls) else labels


def _bands_last(bands: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns (3, H, W) as (H, W, 3): OpenCV interleaves in a tenth of the time of a transposed copy."""
    return np.asarray(cv2.merge(list(bands)), np.uint8)


class TileDataset:
    """Tiles, augmented: one (image, mask) pair per key.

    Each sample's randomness is seeded by (seed, epoch, place in the draw), so that crops differ over epochs, places
    and workers, and do not depend on how many workers there are. albumentations' own state would repeat the same
    crops in each epoch and worker, and its `set_random_seed` would let all transforms draw the same numbers: here they
    draw from one stream, one after the other.

    Crops with little imagery are drawn again before their colours are changed: the transform is split after its leading
    geometric parts.

    Args:
        rows: of the index.
        transform: augmentation of image and mask together; none gives whole tiles.
        seed: see above.
        layers: masks of `LAYERS`, from a data set prepared with them; or `Walls`, which draws them from any.
        soft: soft labels, where a row has a file of them; in the other rows, building has the probability 1.

    Raises:
        DataError: a data set has no layers although they are requested; or it has soft labels, which have no layers.

    Shape:
        image (3, H, W) uint8, 0 to 255; mask (H, W) uint8: 0, 1, 255 = ignored. With layers, the mask is (3, H, W).
        With `soft`, the mask is (H, W) uint8: probability x 254, 255 = ignored. Augmentations move and fill both kinds
        alike.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        transform: A.Compose | None = None,
        seed: int = 0,
        layers: bool | Walls = False,
        soft: bool = False,
    ) -> None:
        self.rows = rows.reset_index(drop=True)
        self.soft = soft
        labels = self.rows["soft"].where(self.rows["soft"] != "", self.rows["mask"]) if soft else self.rows["mask"]
        self.files = list(zip(self.rows["image"], labels, strict=True))
        self.transform = transform
        self.halves = None if transform is None else _halves(transform)
        self.seed = seed
        self.layers = layers
        self.epoch = 0
        bytes_per_px = 3 + (len(LAYERS) if layers else 1)  # image and mask
        size = int((self.rows["width_px"] * self.rows["height_px"]).sum()) * bytes_per_px
        self.memory: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] | None = (
            {} if size <= MEMORY_BYTES else None
        )
        if layers and soft:
            raise DataError(
                f"{self.rows['data'][self.rows['soft'] != ''].iloc[0]} has soft labels, and the recipe needs layers: "
                f"{', '.join(LAYERS)}",
                "train on it with a recipe of footprints, or add another data set",
            )
        if layers and self.files:
            sets = self.rows["data"] if "data" in self.rows else pd.Series("", self.rows.index)
            for first in sets.drop_duplicates().index:
                self.read(first)  # a data set without layers fails here, not in a loader's worker

    def __len__(self) -> int:
        return len(self.files)

    def read(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Returns a whole tile, as `read_tile`, with soft labels as above; from memory where the fold fits."""
        if self.memory is None:
            return self._read(row)
        if row not in self.memory:
            self.memory[row] = self._read(row)
        return self.memory[row]

    def _read(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image, labels = read_tile(*self.files[row], self.layers)
        if self.soft and not self.rows["soft"].iloc[row]:
            labels[labels == BUILDING] = SOFT_STEPS
        return image, labels

    def __getitem__(self, key: int | Key) -> tuple[Tensor, Tensor]:
        place, row = key if isinstance(key, tuple) else (key, key)
        image, mask = self.read(row)
        if self.halves is not None:
            image, mask = self._augmented(image, mask, place)
        pixels = torch.from_numpy(np.stack(cv2.split(image)))  # as fast as _bands_last
        if self.layers:
            if isinstance(self.layers, Walls):
                mask = self.layers.draw(mask)
            else:
                mask[(mask == IGNORE).any(axis=2)] = IGNORE  # some augmentations fill the first layer alone
                mask = mask.transpose(2, 0, 1)
        return pixels, torch.from_numpy(np.ascontiguousarray(mask))

    def _augmented(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], place: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Returns image and mask, augmented. A crop of nearly no imagery is drawn again, a few times at most."""
        assert self.halves is not None
        numbers = np.random.default_rng([self.seed, self.epoch, place])
        more = random.Random(int(numbers.integers(2**63)))  # some transforms draw from Python's generator
        for part in self.halves:
            part.set_random_state(numbers, more)
        geometry, colour = self.halves
        for _ in range(TRIES):
            crop = geometry(image=image, mask=mask)
            if np.count_nonzero(crop["mask"] != IGNORE) >= MIN_KNOWN * crop["mask"].size:
                break
        crop = colour(**crop)
        return crop["image"], crop["mask"]


def _halves(transform: A.Compose) -> tuple[A.Compose, A.Compose]:
    """Returns a transform's leading geometric parts, and the rest; one that is not always applied stays whole."""
    if transform.p < 1:
        return transform, A.Compose([])
    lead = list(takewhile(lambda part: isinstance(part, A.DualTransform), transform.transforms))
    return A.Compose(lead), A.Compose(transform.transforms[len(lead) :])


def dataloaders(
    fold: Fold, transform: A.Compose, batch_size: int, valid_batch_size: int = 4, layers: bool | Walls = False
) -> DataLoaders:
    """Returns fastai DataLoaders of a fold: augmented crops for training, whole tiles for validation.

    Where a training tile has soft labels, all training targets are soft: float32 (N, H, W), probabilities of building,
    255 = ignored. Otherwise, and in validation, they are int64: 0, 1, 255.

    Args:
        fold: given to the recipe's `data`.
        transform: of training tiles; must end at one crop size.
        batch_size: crops per step.
        valid_batch_size: tiles per validation step.
        layers: masks of footprint, boundary and contact, (3, H, W), as `kit prepare --layers` draws them; or `Walls`,
            which draws them in each crop from the ids of buildings that every data set keeps.

    Raises:
        DataError: a data set has no layers although they are requested.
    """
    soft = "soft" in fold.train and bool((fold.train["soft"] != "").any())
    workers = default_workers(fold.device) if fold.workers is None else fold.workers
    train = TileDataset(fold.train, transform, fold.seed, layers, soft)
    valid = TileDataset(fold.valid, layers=layers)
    if workers and train.memory is not None:  # before the workers are forked, which then share the tiles
        for row in range(len(train)):
            train.read(row)
    shared = {"num_workers": workers, "device": fold.device, "pin_memory": fold.device.type == "cuda"}
    as_targets = _with_soft_targets if soft else _with_hard_targets
    loaders = DataLoaders(
        DataLoader(train, bs=batch_size, shuffle=True, drop_last=True, after_batch=as_targets, **shared),
        DataLoader(valid, bs=valid_batch_size, after_batch=_with_hard_targets, **shared),
        device=fold.device,
    )
    return loaders


def _with_hard_targets(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns a batch with masks as losses want them, int64: eight times the bytes, so not before the device has it."""
    images, masks = batch
    return images, masks.long()


def _with_soft_targets(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns a batch with soft labels as losses want them: float32, probabilities from 0 to 1, 255 = ignored."""
    images, labels = batch
    return images, torch.where(labels == IGNORE, float(IGNORE), labels.float() / SOFT_STEPS)
