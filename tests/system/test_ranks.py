"""Losses on two ranks: two real processes, started once, against one process with the whole batch.

The batch is as uneven as it gets: rank 0 knows nearly all pixels, rank 1 a few, and one of its images not one. Then
the mean of the ranks' own means, which is what a plain loss under DistributedDataParallel amounts to, is far off.
"""

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kit.models.losses import (
    BCE,
    Auxiliary,
    BoundaryWeighted,
    CrossEntropy,
    Dice,
    Focal,
    Jaccard,
    Lovasz,
    Sum,
    distillation,
)
from kit.system.ranks import agreed, as_first, gathered, over_ranks, rank, ranks, wait_for_all

IMAGES, SIDE, RANKS = 6, 12, 2
CHANNELS = {"classes": 2, "footprint": 1, "layers": 3}
Batch = dict[str, Tensor]
Found = dict[str, Tensor]  # the value and the gradients of a loss


def distilled(logits: Tensor, batch: Batch) -> Tensor:
    return distillation(logits, batch["teacher"], 4.0, batch["mask"] != 255)


def of(loss: nn.Module, target: str = "mask") -> Callable[[Tensor, Batch], Tensor]:
    return lambda logits, batch: loss(logits, batch[target])


def auxiliary(logits: Tensor, batch: Batch) -> Tensor:
    return Auxiliary(Sum((1.0, CrossEntropy()), (0.5, Jaccard())))((logits, logits.flip(3)), batch["mask"])


LOSSES: dict[str, tuple[str, Callable[[Tensor, Batch], Tensor]]] = {
    "cross-entropy": ("classes", of(CrossEntropy())),
    "smooth cross-entropy": ("classes", of(CrossEntropy(label_smoothing=0.1))),
    "bce": ("footprint", of(BCE(label_smoothing=0.1))),
    "bce pos_weight": ("footprint", of(BCE(pos_weight=(3.0,)))),
    "bce layers": ("layers", of(BCE(pos_weight=(1.0, 4.0, 9.0)), "layers")),
    "focal": ("classes", of(Focal())),
    "focal layers": ("layers", of(Focal(gamma=0.5, alpha=0.3), "layers")),
    "boundary": ("classes", of(BoundaryWeighted(radius_px=2))),
    "boundary layers": ("layers", of(BoundaryWeighted(radius_px=1), "layers")),
    "dice": ("footprint", of(Dice(smooth=1.0))),
    "dice layers": ("layers", of(Dice(), "layers")),
    "jaccard": ("classes", of(Jaccard())),
    "jaccard layers": ("layers", of(Jaccard(smooth=1.0), "layers")),
    "lovasz per image": ("classes", of(Lovasz(per_image=True))),
    "lovasz per image layers": ("layers", of(Lovasz(per_image=True), "layers")),
    "sum": ("classes", of(Sum((1.0, CrossEntropy()), (0.5, Dice()), (0.3, Lovasz(per_image=True))))),
    "auxiliary": ("classes", auxiliary),
    "distillation": ("classes", distilled),
}
POOLED: dict[str, tuple[str, Callable[[Tensor, Batch], Tensor]]] = {
    "lovasz": ("classes", of(Lovasz())),
    "lovasz layers": ("layers", of(Lovasz(), "layers")),
}
CASES = LOSSES | POOLED
BLANK = {"uneven": (), "rank 1 knows nothing": (3, 4, 5), "nobody knows anything": range(IMAGES)}


def make(blank: str = "uneven") -> Batch:
    """Pixels (6, 1, 12, 12) float64, and targets of all forms; images 0 to 2 are rank 0's."""
    random = torch.Generator().manual_seed(0)
    layers = torch.rand(IMAGES, 3, SIDE, SIDE, generator=random) < torch.tensor([0.6, 0.3, 0.1]).view(3, 1, 1)
    layers[3:, 0] &= torch.rand(3, SIDE, SIDE, generator=random) < 0.2  # few buildings on rank 1
    layers[3:, 2] = False  # and no contact
    image = torch.randn(IMAGES, 1, SIDE, SIDE, generator=random, dtype=torch.float64)
    image[:3] += 2 * layers[:3, :1]  # rank 0's footprints show, rank 1's do not: its loss is another
    image[3:] *= 2
    layers = layers.long()
    layers[0, :, :2] = 255
    layers[3:5, :, 2:] = 255
    layers[5] = 255
    layers[0, 1, :, :6] = 255  # some layers are known where others are not
    for number in BLANK[blank]:
        layers[number] = 255
    teacher = torch.rand(IMAGES, 2, SIDE, SIDE, generator=random)
    return {"image": image, "mask": layers[:, 0].clone(), "layers": layers, "teacher": teacher}


def part(batch: Batch, number: int) -> Batch:
    size = IMAGES // RANKS
    return {key: values[number * size : (number + 1) * size] for key, values in batch.items()}


def network(form: str) -> nn.Module:
    """3 x 3 px are looked at, so that each parameter's gradient depends on every pixel."""
    torch.manual_seed(1)
    net = nn.Conv2d(1, CHANNELS[form], 3, padding=1).double()
    with torch.no_grad():
        net.weight[-1, 0, 1, 1] += 1.5  # it has learned something
    return net


def evaluated(net: nn.Module, loss: Callable[[Tensor, Batch], Tensor], batch: Batch) -> Found:
    """Returns the value, and the gradient of each parameter."""
    value = loss(net(batch["image"]), batch)
    value.backward()
    gradients = {name.removeprefix("module."): p.grad.clone() for name, p in net.named_parameters()}
    return {"value": value.detach(), **gradients}


def work(number: int, folder: Path) -> None:
    """What a rank does; its findings go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=number, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    found: dict[str, Any] = {
        "losses": {
            (blank, name): evaluated(DistributedDataParallel(network(form)), loss, part(make(blank), number))
            for blank in BLANK
            for name, (form, loss) in CASES.items()
        },
        "place": (rank(), ranks()),
        "over_ranks": over_ranks_found(number),
        "gathered": gathered({"rank": number, "share": torch.arange(number + 1), "none": None}),
        "agreed": agreed([f"rank {number}", {"at": torch.tensor(float(number))}]),
    }
    tensors = [torch.full((2,), float(number)), torch.tensor(7 + number)]
    as_first(tensors)
    found["as_first"] = tensors
    if number:
        (folder / "waited").touch()
    wait_for_all()
    found["waited"] = (folder / "waited").exists()
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


def over_ranks_found(number: int) -> dict[str, Any]:
    own = torch.tensor([number + 1.0, 10.0], dtype=torch.float64, requires_grad=True)
    total = over_ranks(own)
    (total**2).sum().backward()
    with torch.no_grad():
        alone = [over_ranks(own) for _ in range(3 * number)]  # rank 0 asks for none: rank 1 would wait for ever
    return {"total": total.detach(), "gradient": own.grad, "alone": alone}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks found, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    assert sys.modules[work.__module__].work is work  # the processes import it
    mp.spawn(work, (folder,), nprocs=RANKS)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(RANKS)]


def whole(name: str, blank: str) -> Found:
    form, loss = CASES[name]
    return evaluated(network(form), loss, make(blank))


def mean_of_own(name: str, blank: str) -> Found:
    """The mean of what each rank finds by itself."""
    form, loss = CASES[name]
    own = [evaluated(network(form), loss, part(make(blank), number)) for number in range(RANKS)]
    return {key: torch.stack([found[key] for found in own]).mean(dim=0) for key in own[0]}


def assert_same(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys() == {"value", "weight", "bias"}
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-12, atol=1e-12)
        assert found[key].dtype == torch.float64


@pytest.mark.parametrize("blank", BLANK)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_one_process_with_the_whole_batch(together: list[dict[str, Any]], name: str, blank: str):
    for found in together:
        assert_same(found["losses"][blank, name], whole(name, blank))


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_of_the_ranks_means_would_be_far_off(name: str):
    """Or the test above could not fail."""
    naive, expected = mean_of_own(name, "uneven"), whole(name, "uneven")
    assert (naive["value"] - expected["value"]).abs() > 1e-3 * expected["value"]
    assert (naive["weight"] - expected["weight"]).norm() > 0.1 * expected["weight"].norm()
    ignored = make()["mask"] == 255
    assert ignored[:3].float().mean() < 0.1
    assert 0.9 > ignored[3:5].float().mean() > 0.8
    assert ignored[5].all()


@pytest.mark.parametrize("name", POOLED)
def test_lovasz_is_the_mean_over_the_pools_of_the_ranks(together: list[dict[str, Any]], name: str):
    for found in together:
        assert_same(found["losses"]["uneven", name], mean_of_own(name, "uneven"))
    expected = whole(name, "uneven")
    assert (together[0]["losses"]["uneven", name]["value"] - expected["value"]).abs() > 0.02 * expected["value"]


@pytest.mark.parametrize("name", POOLED)
def test_a_pool_without_pixels_does_not_count(together: list[dict[str, Any]], name: str):
    form, loss = CASES[name]
    blank = "rank 1 knows nothing"
    alone = evaluated(network(form), loss, part(make(blank), 0))
    for found in together:
        assert_same(found["losses"][blank, name], alone)
        assert_same(found["losses"]["nobody knows anything", name], {key: 0 * value for key, value in alone.items()})


@pytest.mark.parametrize("name", CASES)
def test_where_nobody_knows_anything_there_is_nothing_to_learn(together: list[dict[str, Any]], name: str):
    for values in together[1]["losses"]["nobody knows anything", name].values():
        assert (values == 0).all()


def test_ranks_know_their_place(together: list[dict[str, Any]]):
    assert [found["place"] for found in together] == [(0, 2), (1, 2)]
    assert (rank(), ranks()) == (0, 1)


def test_the_sum_over_ranks_and_its_gradient(together: list[dict[str, Any]]):
    for found in together:
        assert found["over_ranks"]["total"].tolist() == [3.0, 20.0]
        # d/dx of (sum)^2 is 2 x sum; twice that, since the gradients of two ranks are averaged
        assert found["over_ranks"]["gradient"].tolist() == [2 * 2 * 3.0, 2 * 2 * 20.0]


def test_without_gradients_each_rank_is_by_itself(together: list[dict[str, Any]]):
    assert together[0]["over_ranks"]["alone"] == []
    assert [own.tolist() for own in together[1]["over_ranks"]["alone"]] == [[2.0, 10.0]] * 3


def test_what_ranks_give_is_gathered_by_rank(together: list[dict[str, Any]]):
    for found in together:
        assert [given["rank"] for given in found["gathered"]] == [0, 1]
        assert [given["share"].tolist() for given in found["gathered"]] == [[0], [0, 1]]
        assert found["gathered"][1]["none"] is None


def test_ranks_agree_on_what_rank_0_says(together: list[dict[str, Any]]):
    for found in together:
        assert found["agreed"] == ["rank 0", {"at": torch.tensor(0.0)}]
        assert [tensor.tolist() for tensor in found["as_first"]] == [[0.0, 0.0], 7]
        assert found["waited"]


def test_a_process_by_itself_needs_no_others():
    values = torch.ones(2, requires_grad=True)
    assert over_ranks(values) is values
    assert gathered(values)[0] is values
    assert agreed("so") == "so"
    as_first([values])
    wait_for_all()
