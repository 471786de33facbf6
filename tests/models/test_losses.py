"""Each loss against a well-kept implementation; where that has another convention, a comment tells."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from torch import Tensor, nn
from torch.nn import functional

from kit.errors import RecipeError
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
    _jaccard_steps,
    check_soft_targets,
    distillation,
)

FORMS = ("classes", "footprint", "layers")
CHANNELS = {"classes": 2, "footprint": 1, "layers": 3}
LOSSES: dict[str, tuple[nn.Module, tuple[str, ...]]] = {
    "cross-entropy": (CrossEntropy(), ("classes",)),
    "smooth cross-entropy": (CrossEntropy(label_smoothing=0.1), ("classes",)),
    "bce": (BCE(label_smoothing=0.1), ("footprint", "layers")),
    "bce pos_weight": (BCE(pos_weight=(1, 2, 3)), ("layers",)),
    "dice": (Dice(), FORMS),
    "jaccard": (Jaccard(smooth=1.0), FORMS),
    "lovasz": (Lovasz(), FORMS),
    "lovasz per image": (Lovasz(per_image=True), FORMS),
    "focal": (Focal(), FORMS),
    "focal gamma < 1": (Focal(gamma=0.5, alpha=0.3), FORMS),
    "boundary": (BoundaryWeighted(radius_px=2), FORMS),
    "sum": (Sum((1.0, Focal()), (0.5, Dice())), FORMS),
    "auxiliary": (Auxiliary(Jaccard()), FORMS),
}
CASES = [pytest.param(loss, form, id=f"{name}-{form}") for name, (loss, forms) in LOSSES.items() for form in forms]
each_loss = pytest.mark.parametrize(("loss", "form"), CASES)


def make(form: str = "classes", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and a target of 3 images of 16 x 20 px; the first 5 rows are ignored, and a corner of the last layer."""
    random = torch.Generator().manual_seed(seed)
    channels = CHANNELS[form]
    target = torch.randint(0, 2, (3, 3, 16, 20) if form == "layers" else (3, 16, 20), generator=random)
    target[..., :5, :] = 255
    if form == "layers":
        target[:, 2, 8:, 8:] = 255
    return (2 * torch.randn(3, channels, 16, 20, generator=random)).requires_grad_(), target


def flat(logits: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pairs of logits of yes and truth (0, 1) of the pixels that count, one for each layer."""
    if logits.shape[1] == 2:
        logits = (logits[:, 1] - logits[:, 0])[:, None]
    target = target.view(logits.shape)
    return [
        (logits[:, i][target[:, i] != 255], target[:, i][target[:, i] != 255].float()) for i in range(logits.shape[1])
    ]


def assert_same(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    """The same loss, and the same gradient."""
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def mean_over_layers(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    return torch.stack([loss(*pair) for pair in flat(logits, target)]).mean()


def test_cross_entropy_is_the_mean_over_known_pixels():
    logits, mask = make()
    assert_same(CrossEntropy()(logits, mask), functional.cross_entropy(logits, mask, ignore_index=255), logits)


def test_label_smoothing_agrees_with_smp():
    logits, mask = make()
    theirs = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255, reduction="sum")
    # torch spreads the smoothing over all classes, smp likewise; smp's own mean divides by ignored pixels too
    assert_same(CrossEntropy(label_smoothing=0.1)(logits, mask), theirs(logits, mask) / (mask != 255).sum(), logits)


@pytest.mark.parametrize("form", ["footprint", "layers"])
@pytest.mark.parametrize("pos_weight", [None, (3.0, 0.5, 2.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_agrees_with_smp(form: str, pos_weight: tuple[float, ...] | None, smoothing: float):
    logits, target = make(form)
    weights = pos_weight and pos_weight[: logits.shape[1]]
    theirs = smp.losses.SoftBCEWithLogitsLoss(
        ignore_index=255,
        reduction="sum",  # smp's own mean divides by ignored pixels too
        smooth_factor=smoothing or None,
        pos_weight=weights and torch.tensor(weights).view(-1, 1, 1),
    )
    expected = theirs(logits, target.view(logits.shape).float()) / (target != 255).sum()
    assert_same(BCE(label_smoothing=smoothing, pos_weight=weights)(logits, target), expected, logits)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize(("ours", "theirs"), [(Dice, smp.losses.DiceLoss), (Jaccard, smp.losses.JaccardLoss)])
def test_overlap_agrees_with_smp(form: str, smooth: float, ours: type, theirs: type):
    logits, target = make(form)
    # smp takes the mean over both classes of a softmax: only building is compared
    options = {"classes": {"mode": "multiclass", "classes": [1]}, "footprint": {"mode": "binary"}}
    expected = theirs(**options.get(form, {"mode": "multilabel"}), smooth=smooth, ignore_index=255)
    assert_same(ours(smooth)(logits, target), expected(logits, target), logits)


@pytest.mark.parametrize("loss", [Dice(), Jaccard(1.0)])
def test_overlap_is_the_mean_over_layers_with_a_pixel_to_find(loss: nn.Module):
    logits, target = make("layers")
    target[:, 1] = target[:, 1].clamp(max=0)
    # smp divides by all layers
    two = torch.stack([loss(logits[:, [i]], target[:, i]) for i in (0, 2)]).mean()
    assert_same(loss(logits, target), two, logits)
    assert loss(logits, target.where(target == 255, 0)) == 0


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_softmax_agrees_with_smp(per_image: bool):
    logits, mask = make()
    theirs = smp.losses.LovaszLoss("multiclass", per_image=per_image, ignore_index=255)
    assert_same(Lovasz(per_image)(logits, mask), theirs(logits, mask), logits)
    mask[0] = mask[0].where(mask[0] == 255, 0)  # a class that is absent, from one image or from the batch
    assert_same(Lovasz(per_image)(logits, mask), theirs(logits, mask), logits)
    mask = mask.where(mask == 255, 1)
    assert_same(Lovasz(per_image)(logits, mask), theirs(logits, mask), logits)


@pytest.mark.parametrize("form", ["footprint", "layers"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("found", [0, 1, None])
def test_lovasz_hinge_agrees_with_smp(form: str, per_image: bool, found: int | None):
    logits, target = make(form)
    if found is not None:
        target = target.where(target == 255, found)
    theirs = smp.losses.LovaszLoss("binary", per_image=per_image, ignore_index=255)
    # smp's `multilabel` pools the pixels of all layers into one index
    layers = zip(logits.unbind(1), target.view(logits.shape).unbind(1), strict=True)
    expected = torch.stack([theirs(*layer) for layer in layers]).mean()
    assert_same(Lovasz(per_image)(logits, target), expected, logits)


def test_lovasz_per_image_leaves_out_images_without_known_pixels():
    logits, mask = make()
    mask[1] = 255  # smp cannot add such an image to the others
    theirs = smp.losses.LovaszLoss("multiclass", per_image=True, ignore_index=255)(logits[::2], mask[::2])
    assert_same(Lovasz(per_image=True)(logits, mask), theirs, logits)


def test_lovasz_is_exact_for_millions_of_pixels():
    """The usual code takes differences of neighbouring indices: in float32 they are wrong by 4 percent here."""
    truth = torch.rand(1 << 21, generator=torch.Generator().manual_seed(0)) < 0.2
    total = truth.sum()
    jaccard = 1 - (total - truth.cumsum(0)) / (total + (~truth).cumsum(0)).double()
    exact = jaccard.diff(prepend=torch.zeros(1, dtype=torch.float64))
    ours = _jaccard_steps(truth[None, None], torch.ones_like(truth)[None, None])[0, 0]
    assert (ours - exact).norm() / exact.norm() < 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_agrees_with_smp(form: str, alpha: float | None, gamma: float):
    logits, target = make(form)
    # smp's `multiclass` asks each class by itself, its `multilabel` cannot ignore pixels of single layers: its
    # binary form, on the logit of building and on all layers' pixels at once
    pairs = [torch.cat(parts) for parts in zip(*flat(logits, target), strict=True)]
    theirs = smp.losses.FocalLoss("binary", alpha=alpha, gamma=gamma)(*pairs)
    assert_same(Focal(gamma, alpha)(logits, target), theirs, logits)


def test_focal_of_classes_agrees_with_the_softmax_form():
    logits, mask = make()
    theirs = softmax_focal_loss_with_logits(logits[:, :, 5:], mask[:, 5:], gamma=2.0)
    assert_same(Focal()(logits, mask), theirs, logits)


def band_of(mask: np.ndarray, radius_px: int) -> np.ndarray:
    """By cv2, with a square kernel; its border, too, is no outline."""
    kernel = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    inside, outside = (cv2.dilate((mask == value).astype(np.uint8), kernel) for value in (1, 0))
    return (inside & outside).astype(bool)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("radius_px", [1, 3])
def test_boundary_weights_agree_with_cv2(form: str, radius_px: int):
    logits, target = make(form)
    footprint = target[:, 0] if form == "layers" else target
    footprint[:, 5:] = 0
    footprint[:, :11, 4:12] = 1  # touches the ignored rows, once they are ignored again
    footprint[:, :5] = 255
    band = torch.from_numpy(np.stack([band_of(mask, radius_px) for mask in footprint.numpy()]))
    assert not band[:, :5].all(2).any()  # along the ignored rows there is no outline
    truth, known = target.view(3, -1, 16, 20), target.view(3, -1, 16, 20) != 255
    weights = known * (1 + 3.0 * band[:, None])
    if form == "classes":
        values = functional.cross_entropy(logits, target, reduction="none", ignore_index=255)[:, None]
    else:
        values = functional.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
    expected = (values * weights).sum() / weights.sum()
    assert_same(BoundaryWeighted(loss_weight=4.0, radius_px=radius_px)(logits, target), expected, logits)


def test_an_outline_is_near_on_both_sides():
    mask = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    mask[..., 6:] = True
    band = BoundaryWeighted(radius_px=2).band(mask, torch.ones_like(mask))
    assert band[0, 0].all(0).nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_sum_weighs():
    logits, mask = make()
    total = Sum((1.0, CrossEntropy()), (0.5, Dice()))(logits, mask)
    assert_same(total, CrossEntropy()(logits, mask) + 0.5 * Dice()(logits, mask), logits)


def test_auxiliary_logits_count_less():
    logits, mask = make()
    other, _ = make(seed=1)
    loss = Auxiliary(CrossEntropy())
    torch.testing.assert_close(
        loss((logits, other), mask), CrossEntropy()(logits, mask) + 0.4 * CrossEntropy()(other, mask)
    )
    torch.testing.assert_close(loss(logits, mask), CrossEntropy()(logits, mask))


@each_loss
def test_ignored_pixels_have_no_gradient(loss: nn.Module, form: str):
    logits, target = make(form)
    value = loss(logits, target)
    value.backward()
    assert value.shape == ()
    assert (logits.grad[:, :, :5] == 0).all()
    if form == "layers":
        assert (logits.grad[:, 2, 8:, 8:] == 0).all()
    assert (logits.grad[:, :, 5:] != 0).any()
    changed = logits.detach().clone()
    changed[:, :, :5] += 7
    torch.testing.assert_close(loss(changed, target), value)


@each_loss
def test_a_batch_without_known_pixels_is_zero(loss: nn.Module, form: str):
    logits, target = make(form)
    value = loss(logits, torch.full_like(target, 255))
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 40])
def test_half_precision_is_near_single(loss: nn.Module, form: str, dtype: torch.dtype, scale: float):
    logits, target = make(form)
    logits = (scale * logits).clamp(-60, 60).detach()
    half = logits.to(dtype).requires_grad_()
    value = loss(half, target)
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad.isfinite().all()
    torch.testing.assert_close(value, loss(logits, target), rtol=0.01, atol=0.005)


# a smoothed truth cannot be met
@pytest.mark.parametrize(("loss", "form"), [case for case in CASES if not case.id.startswith(("smooth", "bce-"))])
def test_a_perfect_prediction_costs_nothing(loss: nn.Module, form: str):
    _, target = make(form)
    sure = (60.0 * (target == 1) - 30).view(3, -1, 16, 20)
    logits = torch.cat([-sure, sure], 1) if form == "classes" else sure
    assert float(loss(logits, target)) == pytest.approx(0, abs=1e-6)


@each_loss
def test_shapes_that_do_not_fit_are_refused(loss: nn.Module, form: str):
    logits, target = make(form)
    for wrong in (target[..., 1:], target[1:], target.unsqueeze(1), target.flatten(1)):
        with pytest.raises(RecipeError, match=r"logits \(3, \d, 16, 20\) with a target \("):
            loss(logits, wrong)


@pytest.mark.parametrize(
    ("loss", "channels"), [(CrossEntropy(), 1), (CrossEntropy(), 3), (BCE(), 2), (Dice(), 4), (Lovasz(), 5)]
)
def test_channels_that_the_loss_does_not_take_are_refused(loss: nn.Module, channels: int):
    with pytest.raises(RecipeError, match=rf"logits \(2, {channels}, 8, 8\).*, expected [\d or]+ channels") as error:
        loss(torch.zeros(2, channels, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64))
    assert "n_out" in error.value.hint


def test_one_pos_weight_a_channel():
    with pytest.raises(RecipeError, match="3 values of pos_weight for logits"):
        BCE(pos_weight=(1, 2, 3))(*make("footprint"))


def distillation_by_hand(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """As (N, H, W): torch's own KL, of two-class log-softmaxes."""
    probs = teacher.double().clamp(1e-6, 1 - 1e-6)
    soft = ((probs / (1 - probs)).log() / temperature).sigmoid().mean(1)
    student = torch.log_softmax(logits.double() / temperature, 1)
    kl = functional.kl_div(student, torch.stack([1 - soft, soft], 1).log(), reduction="none", log_target=True)
    return temperature**2 * kl.sum(1)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_agrees_with_torch(temperature: float):
    logits, mask = make()
    teacher = torch.rand(3, 4, 16, 20, generator=torch.Generator().manual_seed(1))
    teacher[:, :, 6], teacher[:, :, 7] = 0, 1
    expected = distillation_by_hand(logits, teacher, temperature)
    ours = distillation(logits, teacher, temperature)
    torch.testing.assert_close(ours, expected.mean().float(), rtol=1e-4, atol=1e-5)
    known = mask != 255
    some = distillation(logits, teacher, temperature, known)
    torch.testing.assert_close(some, expected[known].mean().float(), rtol=1e-4, atol=1e-5)
    assert (torch.autograd.grad(some, logits)[0][:, :, :5] == 0).all()
    assert distillation(logits, teacher, temperature, torch.zeros_like(known)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("form", FORMS)
def test_distillation_is_finite_at_both_ends(form: str, temperature: float, dtype: torch.dtype):
    logits = torch.full((1, CHANNELS[form], 4, 4), 60.0, dtype=dtype)
    logits[:, -1:, :2] = logits[:, :1, 2:] = -60
    logits.requires_grad_()
    for sure in (0.0, 1.0):
        loss = distillation(logits, torch.full((1, 2, 4, 4), sure), temperature)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_a_student_that_agrees_has_nothing_to_learn():
    logits, _ = make()
    loss = distillation(logits, logits.softmax(1)[:, 1:], 20.0)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert float(torch.autograd.grad(loss, logits)[0].norm()) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("shape", [(3, 16, 20), (3, 2, 8, 10), (1, 2, 16, 20)])
def test_a_teacher_of_other_pixels_is_refused(shape: tuple[int, ...]):
    with pytest.raises(RecipeError, match=r"teacher probabilities \(.*\) for logits \(3, 2, 16, 20\)"):
        distillation(make()[0], torch.rand(shape), 20.0)


@pytest.mark.parametrize("loss", [CrossEntropy(), Dice(), Lovasz()])
def test_an_auxiliary_head_asks_for_its_loss(loss: torch.nn.Module):
    logits, mask = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(RecipeError, match="auxiliary head") as caught:
        loss((logits, logits), mask)
    assert "Auxiliary(loss)" in caught.value.hint


SOFT_CASES = [case for case in CASES if case.values[0].soft_targets]
each_soft_loss = pytest.mark.parametrize(("loss", "form"), SOFT_CASES)


def test_which_losses_take_soft_targets():
    taking = {name for name, (loss, _) in LOSSES.items() if loss.soft_targets}
    assert taking == {"cross-entropy", "smooth cross-entropy", "bce", "bce pos_weight", "dice", "jaccard", "auxiliary"}


@each_soft_loss
def test_a_soft_target_of_0_and_1_is_the_hard_one(loss: nn.Module, form: str):
    logits, target = make(form)
    assert_same(loss(logits, target.float()), loss(logits, target), logits)


@each_soft_loss
def test_soft_targets_have_the_right_gradient(loss: nn.Module, form: str):
    logits, target = make(form)
    logits = logits[:1, :, 3:9, :6].detach().double().requires_grad_()
    known = target[:1, ..., 3:9, :6] != 255
    soft = torch.rand(known.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (logits, soft.masked_fill(~known, 255)))


@each_soft_loss
def test_ignored_pixels_of_a_soft_target_do_not_count(loss: nn.Module, form: str):
    logits, target = make(form)
    soft = torch.where(target == 255, 255.0, 0.2 + 0.6 * target)
    loss(logits, soft).backward()
    assert (logits.grad[:, :, :5] == 0).all()
    assert (logits.grad[:, :, 5:] != 0).any()
    changed = logits.detach().clone()
    changed[:, :, :5] += 7
    torch.testing.assert_close(loss(changed, soft), loss(logits, soft))
    assert loss(logits, torch.full_like(soft, 255)) == 0


@each_soft_loss
def test_a_soft_target_is_best_met_by_itself(loss: nn.Module, form: str):
    """Not by a surer prediction, as with the product of both for an overlap."""
    smoothing = getattr(loss, "label_smoothing", 0.0)
    if smoothing or getattr(loss, "pos_weight", None) is not None:
        pytest.skip("its minimum is elsewhere on purpose")
    soft = torch.rand((1, 3, 8, 8) if form == "layers" else (1, 8, 8), generator=torch.Generator().manual_seed(1))

    def logits(probs: Tensor) -> Tensor:
        margin = torch.logit(probs, eps=1e-6).view(1, -1, 8, 8)
        return torch.cat([-margin / 2, margin / 2], 1) if form == "classes" else margin

    best = loss(logits(soft), soft)
    for other in ((soft > 0.5).float(), 0.9 * soft, soft + 0.1 * (1 - soft)):
        assert loss(logits(other), soft) > best


def test_soft_cross_entropy_agrees_with_torch():
    logits, _ = make()
    soft = torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(0))
    for smoothing in (0.0, 0.1):
        theirs = functional.cross_entropy(logits, torch.stack([1 - soft, soft], 1), label_smoothing=smoothing)
        assert_same(CrossEntropy(label_smoothing=smoothing)(logits, soft), theirs, logits)


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        (Lovasz(), "Lovasz does"),
        (Focal(), "Focal does"),
        (Sum((1.0, Focal()), (1.0, Dice()), (0.5, BoundaryWeighted())), "Focal and BoundaryWeighted do"),
        (Auxiliary(Lovasz()), "Lovasz does"),
        (nn.CrossEntropyLoss(), "CrossEntropyLoss does"),
        (functional.l1_loss, "l1_loss does"),
    ],
)
def test_losses_of_hard_targets_refuse_soft_ones(loss: object, names: str):
    with pytest.raises(RecipeError, match=f"^{names} not accept soft targets") as error:
        check_soft_targets(loss)
    assert "kit pseudo without --soft" in error.value.hint
    if not isinstance(loss, nn.CrossEntropyLoss) and isinstance(loss, nn.Module):
        logits, target = make("footprint")
        with pytest.raises(RecipeError, match="not accept soft targets"):
            loss(logits, target.float())
