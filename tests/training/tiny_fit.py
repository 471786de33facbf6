"""A Learner of a few weights over noise, with the callbacks of a real fit."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from torch import Tensor, nn

from kit.models.losses import CrossEntropy
from kit.models.metrics import PooledJaccard, PooledLoss
from kit.training.checkpoint import Resume
from kit.training.draws import Deal, Draw
from kit.training.precision import Precision
from kit.training.run_files import RunSettings
from kit.training.runlog import RunLog

AREAS = ["kam", "kam", "znz", "kam", "znz", "znz"]


class Tiles:
    """Noise with brighter buildings, 8 px."""

    seed = epoch = 0

    def __init__(self, n: int) -> None:
        self.rows = pd.DataFrame({"tile": range(n), "area": AREAS[:n]})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> tuple[Tensor, Tensor]:
        row = key[1] if isinstance(key, tuple) else key
        random = torch.Generator().manual_seed(row)
        mask = torch.randint(0, 2, (8, 8), generator=random)
        image = torch.randint(0, 128, (3, 8, 8), generator=random) + 40 * mask
        return image.to(torch.uint8), mask


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv(pixels.float() / 255)


def tiny_learner(
    folder: Path,
    epochs: int,
    *cbs: Callback,
    valid: int = 6,
    saved: dict[str, Any] | None = None,
    precision: str = "fp32",
    model: nn.Module | None = None,
) -> Any:
    """Returns a Learner that writes into `folder`; a callback named `length` must be among `cbs`."""
    loaders = DataLoaders(
        DataLoader(Tiles(6), bs=1, shuffle=True, drop_last=True), DataLoader(Tiles(valid), bs=4),
        device=torch.device("cpu"),
    )  # fmt: skip
    resume, log = Resume(saved, seed=0), RunLog(folder, "tiny fold 0", RunSettings(recipe="tiny"), epochs)
    cbs = (Draw(), Deal(), Precision(precision), resume, log, *cbs)
    learn = Learner(loaders, model or Net(), CrossEntropy(), opt_func=SGD, lr=0.1, metrics=PooledJaccard(), cbs=cbs)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda _: None
    learn.recorder.loss = PooledLoss()
    return learn
