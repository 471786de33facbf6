from typing import Any

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from torch import Tensor, nn

from kit.errors import RecipeError
from kit.models.losses import BCE, Auxiliary, CrossEntropy
from kit.training.callbacks import LossSwitch
from kit.training.mixing import CutMix, MixStyle, MixUp
from kit.training.precision import Precision

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, SIDE = 4, 16


class Tiles:
    """Eight images of one brightness each; the mask of every pixel tells the image: its number modulo 2."""

    def __init__(self, seed: int = 0, layers: bool = False) -> None:
        self.seed, self.layers = seed, layers

    def __len__(self) -> int:
        return 2 * BATCH

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        mask = torch.full((3, SIDE, SIDE) if self.layers else (SIDE, SIDE), row % 2)
        return torch.full((3, SIDE, SIDE), 30 * row, dtype=torch.uint8), mask


class Watch(Callback):
    """Keeps what the network and the loss were given, after every other callback has had its turn."""

    order = 90

    def before_fit(self) -> None:
        self.seen: list[tuple[bool, Tensor, Tensor]] = []
        self.losses: list[Tensor] = []

    def after_pred(self) -> None:
        self.seen.append((self.training, self.xb[0], self.yb[0]))

    def after_loss(self) -> None:
        self.losses.append(self.learn.loss_grad.detach())


class Net(nn.Module):
    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.float() / 255)


def learner(*cbs: Callback, seed: int = 0, layers: bool = False, loss: nn.Module | None = None) -> Any:
    tiles = Tiles(seed, layers)
    loaders = DataLoaders(DataLoader(tiles, bs=BATCH), DataLoader(tiles, bs=BATCH), device=torch.device("cpu"))
    torch.manual_seed(0)
    loss = loss or (BCE() if layers else CrossEntropy())
    learn = Learner(loaders, Net(3 if layers else 2), loss, opt_func=SGD, lr=0.0, cbs=[Watch(), *cbs])
    learn.logger = lambda _: None
    return learn


def batches(learn: Any, epochs: int = 1, training: bool = True) -> list[tuple[Tensor, Tensor]]:
    learn.fit(epochs)
    return [(x, y) for trained, x, y in learn.watch.seen if trained == training]


@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("mixing", [MixUp, CutMix, MixStyle])
def test_draws_depend_on_seed_epoch_and_iteration_alone(mixing: type, layers: bool):
    torch.manual_seed(1)
    np.random.seed(1)
    first = batches(learner(mixing(), layers=layers), epochs=4)
    torch.manual_seed(2)
    np.random.seed(2)
    again = batches(learner(mixing(), layers=layers), epochs=4)
    assert len(first) == len(again) == 8
    assert all(torch.equal(a, b) for pairs in zip(first, again, strict=True) for a, b in zip(*pairs, strict=True))
    other = batches(learner(mixing(), seed=1, layers=layers), epochs=4)
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(first, other, strict=True))
    epochs = [torch.cat([x.float() for x, _ in first[at : at + 2]]) for at in range(0, 8, 2)]
    assert not all(torch.equal(epochs[0], epoch) for epoch in epochs[1:])


@pytest.mark.parametrize("mixing", [[MixUp()], [CutMix()], [MixStyle()]])
def test_nothing_is_drawn_from_the_global_state(mixing: list[Callback]):
    states = []
    for cbs in (mixing, []):
        learn = learner(*cbs)
        np.random.seed(0)
        torch.manual_seed(0)  # loaders draw from it
        learn.fit(2)
        states.append((torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()))
    assert states[0] == states[1]


@pytest.mark.parametrize("mixing", [MixUp(), CutMix(probability=1), MixStyle(1)])
def test_validation_is_not_mixed(mixing: Callback):
    learn = learner(mixing)
    for number, (x, y) in enumerate(batches(learn, training=False)):
        expected = [learn.dls.valid.dataset[BATCH * number + place] for place in range(BATCH)]
        assert torch.equal(x, torch.stack([image for image, _ in expected]))
        assert torch.equal(y, torch.stack([mask for _, mask in expected]))
    torch.testing.assert_close(learn.watch.losses[-1], learn.loss_func(learn.model(x), y))


@pytest.mark.parametrize("layers", [False, True])
def test_mixup_weighs_pixels_and_losses_alike(layers: bool):
    learn = learner(MixUp(), layers=layers)
    loss = learn.loss_func
    for number, (x, y) in enumerate(batches(learn)):
        assert x.dtype == torch.float32
        share = np.random.default_rng([0, 0, number, MixUp.stream, 0]).beta(0.4, 0.4)
        own = 30.0 * (BATCH * number + torch.arange(BATCH))
        others = (x[:, 0, 0, 0] - share * own) / (1 - share)
        partners = (others / 30).round().long() - BATCH * number
        assert sorted(partners.tolist()) == [*range(BATCH)]
        torch.testing.assert_close(x, (share * own + (1 - share) * own[partners])[:, None, None, None].expand_as(x))
        pred = learn.model(x)
        expected = share * loss(pred, y) + (1 - share) * loss(pred, y[partners])
        torch.testing.assert_close(learn.watch.losses[number], expected.detach())


def test_mixstyle_moves_colours_towards_those_of_another_image():
    plain, styled = batches(learner()), batches(learner(MixStyle(1)))
    for number, ((before, y), (after, other_y)) in enumerate(zip(plain, styled, strict=True)):
        assert torch.equal(y, other_y)
        assert after.dtype == torch.uint8
        random = np.random.default_rng([0, 0, number, MixStyle.stream, 0])
        partners, amount = random.permutation(BATCH), torch.from_numpy(random.uniform(size=BATCH)).float()
        expected = torch.lerp(before[:, 0, 0, 0].float(), before[partners][:, 0, 0, 0].float(), amount)
        assert torch.equal(after, expected.round().to(torch.uint8)[:, None, None, None].expand_as(after))
    assert not torch.equal(plain[0][0], styled[0][0])
    for (before, _), (after, _) in zip(batches(learner()), batches(learner(MixStyle(0))), strict=True):
        assert torch.equal(before, after)


def test_mixstyle_refuses_a_share_above_one():
    with pytest.raises(RecipeError, match=r"a share of 1\.5 of the images, expected 0 to 1"):
        MixStyle(1.5)


class Thousandfold(CrossEntropy):
    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        return 1000 * super().forward(logits, mask)


def test_mixup_leaves_the_loss_function_to_a_switch():
    plain, switched = learner(MixUp()), learner(MixUp(), LossSwitch(1, Thousandfold()))
    for learn in (plain, switched):
        learn.fit(2)
    losses, others = (torch.stack(learn.watch.losses).view(2, 4) for learn in (plain, switched))
    torch.testing.assert_close(others, losses * torch.tensor([[1.0], [1000.0]]))


def test_mixup_with_an_auxiliary_head():
    class TwoHeads(Net):
        def forward(self, x: Tensor) -> Any:
            logits = super().forward(x)
            return (logits, -logits) if self.training else logits

    learn = learner(MixUp(), loss=Auxiliary(CrossEntropy()))
    learn.model = TwoHeads()
    learn.fit(1)
    assert all(loss.isfinite() for loss in learn.watch.losses)


@pytest.mark.parametrize("layers", [False, True])
def test_cutmix_pastes_the_same_rectangle_of_image_and_mask(layers: bool):
    learn = learner(CutMix(probability=1), layers=layers)
    pasted = 0
    for number, (x, y) in enumerate(batches(learn, epochs=10)):
        assert x.dtype == torch.uint8
        rows = x[:, 0].long() // 30  # which image each pixel is of
        assert torch.equal(y if not layers else y[:, 1], rows % 2)
        own = (BATCH * (number % 2) + torch.arange(BATCH))[:, None, None]
        cut = (rows != own).any(0)
        pasted += int(cut.sum())
        inside = cut.nonzero()
        if len(inside):
            (top, left), (bottom, right) = inside.amin(0), inside.amax(0)
            assert cut[top : bottom + 1, left : right + 1].all()
            partners = rows[:, top, left]
            assert sorted(partners.tolist()) == own.flatten().tolist()
            assert (rows[:, cut] == partners[:, None]).all()
    assert pasted > 0
    assert torch.equal(learn.dls.train.dataset[3][0], torch.full((3, SIDE, SIDE), 90, dtype=torch.uint8))


def test_cutmix_rectangles():
    random, cutmix = np.random.default_rng(0), CutMix()
    areas = []
    for _ in range(4000):
        rows, columns = cutmix.rectangle(random, 40, 60)
        image = np.zeros((40, 60))
        image[rows, columns] = 1
        areas.append(image.mean())
    assert 0 <= min(areas) < 0.01
    assert 0.9 < max(areas) <= 1
    # a uniform share u, sides sqrt(u); a side s centred anywhere keeps s (1 - s / 4) of itself: the mean over u of
    # u (1 - sqrt(u) / 4) ** 2 is 1/2 - 1/5 + 1/48
    assert np.mean(areas) == pytest.approx(0.5 - 0.2 + 1 / 48, abs=0.02)


def test_cutmix_mixes_with_its_probability():
    learn = learner(CutMix(probability=0.25))
    pixels, mask = learn.dls.train.one_batch()
    mixed = []
    for learn.iter in range(2000):
        learn.epoch, learn.xb, learn.yb = 0, (pixels,), (mask,)
        learn.cut_mix.before_batch()
        mixed.append(learn.xb[0] is not pixels)
    assert np.mean(mixed) == pytest.approx(0.25, abs=0.04)  # four standard deviations


def test_both_and_channels_last():
    """MixUp mixes what CutMix made, pixels and masks."""
    cut, both = learner(CutMix(probability=1)), learner(MixUp(), CutMix(probability=1), Precision())
    pairs = zip(batches(cut, epochs=4), batches(both, epochs=4), strict=True)
    losses = torch.stack(both.watch.losses).view(4, 2, 2)[:, 0].flatten()  # of training
    for number, ((x, y), (mixed, truth)) in enumerate(pairs):
        random = np.random.default_rng([0, number // 2, number % 2, MixUp.stream, 0])
        share, partners = random.beta(0.4, 0.4), random.permutation(BATCH)
        assert torch.equal(truth, y)
        torch.testing.assert_close(mixed, share * x.float() + (1 - share) * x[partners].float())
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        pred = both.model(mixed).detach()
        expected = share * cut.loss_func(pred, y) + (1 - share) * cut.loss_func(pred, y[partners])
        torch.testing.assert_close(losses[number], expected, rtol=0.02, atol=0.01)  # bf16 where the machine has it
