from typing import Any

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD, Adam
from torch import Tensor, nn
from torch.nn import functional

from kit.errors import RunError
from kit.models.losses import Auxiliary, CrossEntropy, distillation
from kit.training.distillation import Distillation
from kit.training.mixing import MixUp
from kit.training.precision import Precision

pytestmark = pytest.mark.usefixtures("one_thread")


class Noise:
    """Random pixels, whose masks say nothing; the first rows are ignored."""

    seed = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(row)
        mask = torch.randint(0, 2, (16, 16), generator=random)
        mask[:3] = 255
        return torch.randint(0, 256, (3, 16, 16), generator=random, dtype=torch.uint8), mask


class Net(nn.Module):
    def __init__(self, channels: int = 2, auxiliary: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.auxiliary = auxiliary

    def forward(self, x: Tensor) -> Any:
        logits = self.conv((x.float() - 127) / 50)
        return (logits, logits.flip(1)) if self.auxiliary and self.training else logits


def make_teacher(members: int = 3) -> Any:
    torch.manual_seed(7)
    nets = [Net(1) for _ in range(members)]
    return lambda pixels: torch.cat([net(pixels).sigmoid() for net in nets], 1)


class Watch(Callback):
    order = 90

    def before_fit(self) -> None:
        self.losses: list[tuple[bool, Tensor, Tensor]] = []

    def after_loss(self) -> None:
        self.losses.append((self.training, self.learn.loss_grad.detach(), self.learn.loss.detach()))


def learner(
    *cbs: Callback, channels: int = 2, auxiliary: bool = False, opt: Any = SGD, lr: float = 0.0, bs: int = 8
) -> Any:
    loaders = DataLoaders(DataLoader(Noise(), bs=bs), DataLoader(Noise(), bs=bs), device=torch.device("cpu"))
    torch.manual_seed(0)
    net = Net(channels, auxiliary)
    learn = Learner(loaders, net, Auxiliary(CrossEntropy()), opt_func=opt, lr=lr, cbs=[Watch(), *cbs])
    learn.logger = lambda _: None
    return learn


@pytest.mark.parametrize("others", [[], [Precision()]])
def test_without_a_teacher_nothing_starts(others: list[Callback]):
    with pytest.raises(RunError, match="the recipe needs a teacher") as error:
        learner(*others, Distillation()).fit(1)
    assert error.value.message == "the recipe needs a teacher"
    assert error.value.hint == "kit run RECIPE --teacher weights/NAME.pt"


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_loss_by_hand(auxiliary: bool):
    learn = learner(Distillation(share=0.6, temperature=20.0), auxiliary=auxiliary)
    teacher = learn.distillation.teacher = make_teacher()
    learn.fit(1)
    (_, trained, shown), (_, validated, _) = learn.watch.losses
    pixels, mask = learn.dls.valid.one_batch()
    learn.model.train()
    with torch.no_grad():
        pred = learn.model(pixels)
        logits = pred[0] if auxiliary else pred
        probs = teacher(pixels)
    soft = ((probs / (1 - probs)).log() / 20).sigmoid().mean(1)
    truth = torch.stack([1 - soft, soft], 1)
    kl = functional.kl_div(torch.log_softmax(logits / 20, 1), truth, reduction="none").sum(1)
    label = learn.loss_func(pred, mask)
    torch.testing.assert_close(trained, 0.4 * label + 0.6 * 20**2 * kl[mask != 255].mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shown, trained)
    torch.testing.assert_close(validated, CrossEntropy()(logits, mask))  # of the masks alone, and of one head


def test_layers_do_not_count_where_any_of_them_is_ignored():
    callback = Distillation(share=1.0)
    callback.teacher = make_teacher()
    pixels = torch.stack([Noise()[row][0] for row in range(2)])
    pred = torch.randn(2, 3, 16, 16)
    layers = torch.zeros(2, 3, 16, 16, dtype=torch.int64)
    layers[:, 1, :, :5] = layers[:, 2, 4] = 255
    known = torch.ones(2, 16, 16, dtype=torch.bool)
    known[:, :, :5] = known[:, 4] = False
    expected = distillation(pred, callback.teacher(pixels), 20.0, known)
    torch.testing.assert_close(callback.joined(torch.tensor(3.0), pred, pixels, layers), expected)


def test_members_count_by_their_weight():
    teacher = torch.rand(2, 3, 8, 8)
    pred = torch.randn(2, 2, 8, 8)
    callback = Distillation(share=1.0)
    callback.teacher, callback.teacher_weights = lambda pixels: teacher, (0.5, 0.25, 0.25)
    mask = torch.zeros(2, 8, 8, dtype=torch.int64)
    weighted = callback.joined(torch.tensor(0.0), pred, torch.zeros(2, 3, 8, 8), mask)
    as_often = distillation(pred, teacher[:, [0, 0, 1, 2]], 20.0)
    torch.testing.assert_close(weighted, as_often)
    assert abs(float(weighted - distillation(pred, teacher, 20.0))) > 1e-4


def test_the_teacher_leaves_no_graph():
    callback = Distillation(share=1.0)
    gradients = []
    weights = torch.ones(1, requires_grad=True)

    def teacher(pixels: Tensor) -> Tensor:
        gradients.append(torch.is_grad_enabled())
        return (pixels[:, :2].float() / 255 * weights).clamp(0.1, 0.9)

    callback.teacher = teacher
    pixels, mask = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.int64)
    pred = torch.randn(2, 2, 8, 8, requires_grad=True)
    callback.joined(torch.tensor(0.0), pred, pixels, mask).backward()
    assert gradients == [False]
    assert weights.grad is None
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("channels", [1, 2])
def test_a_student_of_the_teacher_alone_becomes_the_teacher(channels: int):
    learn = learner(Distillation(share=1.0), channels=channels, opt=Adam, lr=0.05, bs=4)
    learn.loss_func = nothing
    teacher = learn.distillation.teacher = make_teacher(members=1)
    pixels = torch.stack([Noise()[row][0] for row in range(8)])

    def distance() -> float:
        with torch.no_grad():
            logits = learn.model(pixels)
            student = logits.sigmoid() if channels == 1 else logits.softmax(1)[:, 1:]
            return float((student - teacher(pixels)).abs().mean())

    before = distance()
    learn.fit(40)
    assert distance() < 0.1 * before
    assert distance() < 0.02


def nothing(pred: Tensor, mask: Tensor) -> Tensor:
    return pred.sum() * 0


def test_mixup_comes_first():
    """The teacher sees the mixed pixels; the masks' part is the mixed loss."""
    alone, both = learner(MixUp()), learner(MixUp(), Distillation(share=0.5))
    seen = []

    def teacher(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return pixels[:, :1].float() / 255

    both.distillation.teacher = teacher
    for learn in (alone, both):
        learn.fit(1)
    mixed, joined = (learn.watch.losses[0][1] for learn in (alone, both))
    assert seen[0].dtype == torch.float32
    (pixels, mask), share = both.dls.valid.one_batch(), 0.5
    assert not torch.equal(seen[0], pixels.float())
    with torch.no_grad():
        signal = distillation(both.model(seen[0]), teacher(seen[0]), 20.0, mask != 255)
    torch.testing.assert_close(joined, (1 - share) * mixed + share * signal)
