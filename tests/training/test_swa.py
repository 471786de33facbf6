"""The average of the weights of the last epochs, and the batch norms that belong to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from factories import TINY_RECIPE
from fastai.callback.core import Callback, CancelEpochException
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from safetensors.torch import load_file
from torch import Tensor, nn

from kit.errors import RecipeError
from kit.models.losses import CrossEntropy
from kit.training.callbacks import EMA, SWA, BalancedSampler
from kit.training.precision import Precision

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, TILES, SIDE = 2, 8, 8
Cli = Callable[..., tuple[int, str, str]]


class Crops:
    """Eight images; crops depend on the epoch and the place in the draw."""

    seed, epoch = 3, 0

    def __init__(self) -> None:
        self.drawn: list[tuple[int, int]] = []
        self.rows = pd.DataFrame({"tile": range(TILES), "area": "a", "scene": ["s"] * 2 + ["t"] * (TILES - 2)})

    def __len__(self) -> int:
        return TILES

    def __getitem__(self, key: Any) -> tuple[Tensor, Tensor]:
        place, row = key if isinstance(key, tuple) else (key, key)
        self.drawn.append((place, row))
        random = torch.Generator().manual_seed(1000 * self.epoch + 100 * row + place)
        image = torch.randint(0, 20 + 25 * row, (3, SIDE, SIDE), dtype=torch.uint8, generator=random)
        return image, (image[0] > 60).long()


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.conv(x.float() / 255)).relu()))


class Watch(Callback):
    """Keeps the network's tensors at the end of each epoch's training, in validation, and when the next one begins."""

    order = 75  # after SWA

    def before_fit(self) -> None:
        self.trained, self.validated, self.begun = ([], [], [])

    def before_epoch(self) -> None:
        self.begun.append(self.tensors())

    def after_train(self) -> None:
        self.trained.append(self.tensors())

    def before_validate(self) -> None:
        self.validated.append(self.tensors())
        assert not any(module.training for module in self.model.modules())

    def tensors(self) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.model.state_dict().items()}


def learner(*cbs: Callback, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    loaders = DataLoaders(
        DataLoader(Crops(), bs=BATCH, shuffle=True), DataLoader(Crops(), bs=BATCH), device=torch.device("cpu")
    )
    loaders.train.rng.seed(0)
    learn = Learner(loaders, Net(dropout), CrossEntropy(), opt_func=SGD, lr=0.3, cbs=[Watch(), *cbs])
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda _: None
    return learn


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in other)


PARAMETERS = [name for name, _ in Net().named_parameters()]
NORMS = [name for name, _ in Net().named_buffers()]


def test_the_mean_of_the_last_epochs_is_validated_and_kept():
    learn = learner(SWA(2))
    learn.fit(5)
    watch = learn.watch
    for epoch in range(2, 5):
        for name in PARAMETERS:
            mean = torch.stack([weights[name].double() for weights in watch.trained[2 : epoch + 1]]).mean(dim=0)
            torch.testing.assert_close(watch.validated[epoch][name].double(), mean, atol=1e-7, rtol=1e-6)
    assert not same(watch.validated[4], {name: watch.trained[4][name] for name in PARAMETERS})
    assert same(learn.model.state_dict(), watch.validated[4])


def test_nothing_changes_before_the_first_epoch_that_counts():
    learn = learner(SWA(2))
    learn.fit(5)
    for epoch in range(2):
        assert same(learn.watch.validated[epoch], learn.watch.trained[epoch])


@pytest.mark.parametrize("cbs", [(), (BalancedSampler,)])
def test_training_goes_on_as_if_it_were_not_there(cbs: tuple[type[Callback], ...]):
    """Live weights and running means come back; neither the draw nor torch's random state is touched."""
    plain = learner(*cbs, dropout=0.5)
    plain.fit(4)
    averaged = learner(SWA(0), *cbs, dropout=0.5)
    averaged.fit(4)
    for epoch in range(4):
        assert same(averaged.watch.begun[epoch], plain.watch.begun[epoch])
        assert same(averaged.watch.trained[epoch], plain.watch.trained[epoch])
        assert not same(averaged.watch.validated[epoch], plain.watch.validated[epoch])


def measured_by_hand(crops: Crops, keys: list[tuple[int, int]], weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean over batches of the mean and the unbiased variance that the batch norm sees."""
    means, variances = [], []
    for start in range(0, len(keys), BATCH):
        images = torch.stack([crops[key][0] for key in keys[start : start + BATCH]]).float() / 255
        seen = nn.functional.conv2d(images, weights["conv.weight"], weights["conv.bias"], padding=1)
        means.append(seen.mean(dim=(0, 2, 3)))
        variances.append(seen.var(dim=(0, 2, 3)))
    return torch.stack(means).mean(dim=0), torch.stack(variances).mean(dim=0)


@pytest.mark.parametrize("batches", [3, 32])  # six crops of eight tiles; more than there are tiles
@pytest.mark.parametrize("sampler", [False, True])
def test_the_running_means_are_those_of_the_average(batches: int, sampler: bool):
    learn = learner(SWA(1, batches), Precision("fp32"), *([BalancedSampler()] if sampler else []))
    learn.dls.train.dataset.epoch = 7
    learn.fit(3)
    crops, watch = learn.dls.train.dataset, learn.watch
    keys = crops.drawn[-batches * BATCH :]
    assert [place for place, _ in keys] == list(range(batches * BATCH))
    if sampler:
        assert keys == learn.balanced_sampler.draw(crops.rows, 3, 7, batches * BATCH)
    else:
        assert len({row for _, row in keys}) == min(len(keys), TILES)
    mean, variance = measured_by_hand(crops, keys, watch.validated[2])
    torch.testing.assert_close(watch.validated[2]["norm.running_mean"], mean)
    torch.testing.assert_close(watch.validated[2]["norm.running_var"], variance)
    assert watch.validated[2]["norm.num_batches_tracked"] == batches
    assert not same(watch.validated[2], {name: watch.trained[2][name] for name in NORMS})
    assert learn.model.norm.momentum == 0.1


@pytest.mark.parametrize(
    ("start", "epochs", "first"), [(0.75, 12, 9), (0.75, 2, 1), (0.75, 1, 0), (0.0, 3, 0), (3, 12, 3), (0, 2, 0)]
)
def test_the_first_epoch(start: float, epochs: int, first: int):
    averaging = SWA(start, batches=1)
    learner(averaging).fit(epochs)
    assert averaging.first == first
    assert averaging.count == epochs - first


def test_a_new_fit_begins_a_new_average():
    learn = learner(SWA(0, batches=1))
    learn.fit(2)
    learn.fit(1)
    assert learn.swa.count == 1
    assert same(learn.model.state_dict(), {name: learn.watch.trained[0][name] for name in PARAMETERS})


class Stop(Callback):
    """Saves at the end of epoch 2, when SWA has put the live weights back."""

    order = 80

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_epoch(self) -> None:
        if self.epoch == 2:
            self.rng = self.dls.train.rng.getstate()
            torch.save({"model": self.model.state_dict(), "swa": self.learn.swa.state_dict()}, self.file)


class GoOn(Callback):
    """Leaves epochs 0 to 2 out, and restores what was saved."""

    order = 60  # after the Recorder

    def __init__(self, file: Path, rng: Any) -> None:
        self.saved, self.rng = torch.load(file, weights_only=True), rng

    def before_epoch(self) -> None:
        if self.epoch < 3:
            raise CancelEpochException
        if self.epoch == 3:
            self.model.load_state_dict(self.saved["model"])
            self.learn.swa.load_state_dict(self.saved["swa"])
            self.dls.train.rng.setstate(self.rng)


def test_a_fit_that_was_cut_short_ends_with_the_same_average(tmp_path: Path):
    whole = learner(SWA(1), Stop(tmp_path / "saved.pt"))
    whole.fit(5)
    going_on = GoOn(tmp_path / "saved.pt", whole.stop.rng)
    assert going_on.saved["swa"]["count"] == 2
    resumed = learner(SWA(1), going_on)
    resumed.fit(5)
    assert resumed.swa.count == 4
    assert same(resumed.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("start", [-1, -0.1, 1.0, 1.5, float("nan")])
def test_a_start_that_cannot_be_is_told(start: float):
    with pytest.raises(RecipeError, match=r"start .*, expected a share from 0 to 1, or an epoch"):
        SWA(start)


def test_no_batches_are_told():
    with pytest.raises(RecipeError, match="0 batches, expected 1 or more"):
        SWA(batches=0)


def test_two_averages_are_told():
    with pytest.raises(RecipeError, match="EMA and SWA both") as caught:
        learner(SWA(), EMA()).fit(1)
    assert "remove_cb" in caught.value.hint


def test_the_best_weights_of_a_run_are_the_average(workplace: Path, cli: Cli):
    """Held out is nothing, so the last epoch is the best."""
    file = workplace / "trained.pt"
    text = TINY_RECIPE.replace("EMA(0.9)]", "SWA(1), Keep()]").replace("import EMA,", "import SWA,")
    text = text.replace("fit_one_cycle(2, slice(1e-4, 1e-3))", "fit(4, 1e-2)")
    text += (
        "\n\nclass Keep(fv.Callback):\n"
        "    weights = []\n\n"
        "    def after_train(self):\n"
        "        self.weights.append({name: p.detach().clone() for name, p in self.model.named_parameters()})\n"
        f"        fv.torch.save(self.weights, {str(file)!r})\n"
    )
    (workplace / "recipes/tiny.py").write_text(text)
    code, _, err = cli("run", "tiny", "--root", workplace, "--no-pretrained", "--all")
    assert code == 0, err
    trained = torch.load(file, weights_only=True)
    best = load_file(workplace / "runs/tiny/foldall/best.safetensors")
    for name, last in trained[-1].items():
        mean = torch.stack([weights[name].double() for weights in trained[1:]]).mean(dim=0)
        torch.testing.assert_close(best[name].double(), mean, atol=1e-7, rtol=1e-5)
        assert last.numel() == 1 or not torch.equal(best[name], last)
