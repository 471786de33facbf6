"""Losses, by their standard names.

Each takes logits and a target in one of these forms:

    classes     logits (N, 2, H, W), mask (N, H, W): a softmax over background and building
    footprint   logits (N, 1, H, W), mask (N, H, W): a sigmoid
    layers      logits (N, 3, H, W), layers (N, 3, H, W): a sigmoid each for footprint, boundary and contact

Logits have any float dtype. Targets are int64: 0, 1, or `ignore` (255, no data) for pixels without loss and gradient.
The loss is a scalar, in float32 or the logits' dtype if that is wider; it is 0 if all pixels are ignored.

Losses with `soft_targets` also take float targets of the same shape: probabilities from 0 to 1, or `ignore`. If all are
0 or 1, the loss is that of the hard target. Other losses refuse soft targets (`check_soft_targets`).

In distributed training, sums and counts are taken over the batches of all ranks (`kit.system.ranks.over_ranks`): loss
and gradient equal those of one process with the whole batch. Lovasz is an exception: it sorts the pixels of each rank,
and the mean over ranks is taken.
"""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.data.masks import BUILDING, IGNORE
from kit.errors import RecipeError
from kit.models.targets import at_least_float32, building_logits
from kit.system.ranks import over_ranks

__all__ = ["BCE", "Auxiliary", "BoundaryWeighted", "CrossEntropy", "Dice", "Focal", "Jaccard", "Lovasz", "Sum"]

EPS = 1e-7  # avoids 0 / 0 if neither prediction nor target has a pixel
SURE = 1e-6  # a teacher's probabilities are clipped to this distance from 0 and 1: its logits to 13.8


class _PixelLoss(nn.Module):
    """Base class of the losses; `soft_targets` says whether probabilities are accepted as targets."""

    soft_targets: ClassVar[bool] = False
    ignore: int

    def _fitting(self, logits: Tensor, target: Tensor, channels: tuple[int, ...]) -> Tensor:
        """Checks shapes, and returns the logits in at least float32."""
        if target.is_floating_point() and not self.soft_targets:
            raise RecipeError(_refusal([type(self).__name__]), SOFT_REMEDY)
        return _fitting(logits, target, channels)

    def _binary(
        self, logits: Tensor, target: Tensor, channels: tuple[int, ...] = (1, 2, 3)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns binary logits (float32), the truth, and which pixels count (bool), each (N, 1 or 3, H, W).

        Softmax over two classes equals the sigmoid of their difference. The truth is bool; for soft targets it is
        float32, and 0 where the pixel is ignored.
        """
        logits = self._fitting(logits, target, channels)
        logits = building_logits(logits) if logits.shape[1] == 2 else logits
        target = target.reshape(logits.shape)
        known = target != self.ignore
        return logits, target * known if target.is_floating_point() else target == BUILDING, known


class CrossEntropy(_PixelLoss):
    """Mean cross-entropy of two classes.

    Args:
        ignore: target value of ignored pixels; likewise in all losses.
        label_smoothing: 0 to 1, as in torch: this share of the target is spread evenly over both classes.
    """

    soft_targets = True

    def __init__(self, ignore: int = IGNORE, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.ignore, self.label_smoothing = ignore, label_smoothing

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Returns the loss."""
        smoothing = self.label_smoothing
        if mask.is_floating_point():  # for two classes: binary cross-entropy of the difference of their logits
            margin, truth, known = self._binary(logits, mask, (2,))
            return pixel_mean(_bce(margin, truth * (1 - smoothing) + smoothing / 2, known), known)
        logits = self._fitting(logits, mask, (2,))
        total = F.cross_entropy(logits, mask, ignore_index=self.ignore, reduction="sum", label_smoothing=smoothing)
        return pixel_mean(total, mask != self.ignore)


class BCE(_PixelLoss):
    """Mean binary cross-entropy of a footprint or of layers.

    Args:
        label_smoothing: 0 to 0.5: targets of 1 become 1 - label_smoothing, targets of 0 become label_smoothing.
        pos_weight: weight of pixels whose target is 1, one number per channel.
    """

    soft_targets = True
    pos_weight: Tensor | None

    def __init__(
        self, ignore: int = IGNORE, label_smoothing: float = 0.0, pos_weight: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.ignore, self.label_smoothing = ignore, label_smoothing
        weight = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float32).view(-1, 1, 1)
        self.register_buffer("pos_weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        logits, truth, known = self._binary(logits, target, (1, 3))
        if self.pos_weight is not None and len(self.pos_weight) != logits.shape[1]:  # one value would be broadcast
            message = f"{len(self.pos_weight)} values of pos_weight for logits {tuple(logits.shape)}"
            raise RecipeError(message, "give BCE one value per channel")
        soft = truth * (1 - 2 * self.label_smoothing) + self.label_smoothing
        weight = None if self.pos_weight is None else self.pos_weight.to(logits.device)  # the loss is not moved
        return pixel_mean(_bce(logits, soft, known, weight), known)


class Focal(_PixelLoss):
    """Mean focal loss: cross-entropy with less weight on pixels that are predicted well. Lin 2017, arXiv 1708.02002.

    Args:
        gamma: exponent of the weight (1 - p) ** gamma, where p is the probability of the true class; 0: cross-entropy.
        alpha: 0 to 1, weight of building; background has 1 - alpha. None: equal weights.
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = None, ignore: int = IGNORE) -> None:
        super().__init__()
        self.gamma, self.alpha, self.ignore = gamma, alpha, ignore

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        logits, truth, known = self._binary(logits, target)
        right = torch.where(truth, logits, -logits)  # the logit of the true class
        cost = -F.logsigmoid(right)
        # log(1 - p) is -(right + cost). (1 - p) ** gamma itself has an infinite slope at 0 if gamma < 1
        values = cost * (-self.gamma * (right + cost)).exp()
        if self.alpha is not None:
            values = values * torch.where(truth, self.alpha, 1 - self.alpha)
        return pixel_mean((values * known).sum(), known)


class BoundaryWeighted(_PixelLoss):
    """Mean (binary) cross-entropy with more weight on pixels near the outline of a footprint.

    An outline is a border between building and background; ignored pixels and the image's border are none. Like U-Net's
    weight map (Ronneberger 2015, arXiv 1505.04597), but with a constant weight instead of a Gaussian of 5 px.

    Args:
        loss_weight: of pixels near an outline, inside and outside; other pixels have 1.
        radius_px: largest distance in rows and in columns (a square, not a disc).
    """

    def __init__(self, loss_weight: float = 5.0, radius_px: int = 5, ignore: int = IGNORE) -> None:
        super().__init__()
        self.loss_weight, self.radius_px, self.ignore = loss_weight, radius_px, ignore

    def band(self, footprint: Tensor, known: Tensor) -> Tensor:
        """Returns which pixels are near an outline; all arguments and the result are bool (N, 1, H, W)."""
        near, side = torch.cat([footprint, known & ~footprint], dim=1).float(), 2 * self.radius_px + 1
        near = F.max_pool2d(near, (side, 1), 1, (self.radius_px, 0))  # rows, then columns: fewer to compare
        near = F.max_pool2d(near, (1, side), 1, (0, self.radius_px))
        return near.amin(dim=1, keepdim=True) > 0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        logits, truth, known = self._binary(logits, target)
        weights = known * torch.where(self.band(truth[:, :1], known[:, :1]), self.loss_weight, 1.0)
        return pixel_mean(_bce(logits, truth, weights), weights)


class _Overlap(_PixelLoss):
    """1 - tp / (tp + error_share x (fp + fn)), soft counts pooled over the batch.

    The mean over the layers that have positive pixels. With soft targets, tp of a pixel is the minimum of prediction
    and target instead of their product, so that the loss is smallest if they are equal (Wang 2023, arXiv 2303.16296 and
    2302.05666). For targets of 0 and 1 both are the same.
    """

    soft_targets = True
    error_share: float

    def __init__(self, smooth: float = 0.0, ignore: int = IGNORE) -> None:
        super().__init__()
        self.smooth, self.ignore = smooth, ignore

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        logits, truth, known = self._binary(logits, target)
        probs = logits.sigmoid() * known
        overlap = torch.minimum(probs, truth) if truth.is_floating_point() else probs * truth
        sums = [part.sum(dim=(0, 2, 3), dtype=probs.dtype) for part in (overlap, probs, truth)]
        tp, predicted, positive = over_ranks(torch.stack(sums))
        whole = tp + self.error_share * (predicted + positive - 2 * tp)
        return _mean_of(1 - (tp + self.smooth) / (whole + self.smooth).clamp(min=EPS), positive > 0)


class Dice(_Overlap):
    """Soft Dice loss of building, or the mean over layers, pooled over the batch (Milletari 2016, arXiv 1606.04797).

    Args:
        smooth: pixels added to numerator and denominator.
    """

    error_share = 0.5


class Jaccard(_Overlap):
    """Soft Jaccard loss of building, or the mean over layers, pooled over the batch as the challenge's score is.

    Args:
        smooth: pixels added to intersection and union.
    """

    error_share = 1.0


class Lovasz(_PixelLoss):
    """Lovasz-softmax of two classes (mean over those present), or Lovasz hinge of a footprint or layers (their mean).

    Berman 2018, arXiv 1705.08790.

    Args:
        per_image: take the mean over images that have valid pixels, instead of pooling all pixels.
    """

    def __init__(self, per_image: bool = False, ignore: int = IGNORE) -> None:
        super().__init__()
        self.per_image, self.ignore = per_image, ignore

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        given = self._fitting(logits, target, (1, 2, 3))
        softmax = given.shape[1] == 2
        logits, truth, known = self._binary(given, target)
        right = torch.where(truth, logits, -logits)
        errors = (-right).sigmoid() if softmax else 1 - right
        # ignored pixels are sorted to the end: shapes do not depend on data, so the GPU is not synchronised
        errors, order = self._rows(errors.masked_fill(~known, -math.inf)).sort(dim=1, descending=True)
        truth, known = (self._rows(part).gather(1, order) for part in (truth, known))
        classes = torch.stack([truth, known & ~truth] if softmax else [truth])  # with the same errors: sorted once
        losses = (errors.relu() * _jaccard_steps(classes, known)).sum(dim=2)
        present = classes.any(dim=2) if softmax else known.any(dim=1)[None]
        means, known = _mean_of(losses, present), known.any(dim=1)
        return pixel_mean((means * known).sum(), known)

    def _rows(self, part: Tensor) -> Tensor:
        """Returns a row of pixels for each Jaccard index."""
        return part.flatten(0, 1).flatten(1) if self.per_image else part.transpose(0, 1).flatten(1)


def _jaccard_steps(truth: Tensor, known: Tensor) -> Tensor:
    """Returns the increase of the Jaccard loss with each further wrong pixel, (classes, rows, pixels)."""
    left = truth.sum(dim=2, keepdim=True) - truth.cumsum(dim=2)
    union = (truth.sum(dim=2, keepdim=True) + (known & ~truth).cumsum(dim=2)).clamp(min=1).float()
    # the difference of two indices near 1 would lose precision with millions of pixels
    steps = torch.where(truth, 1 / union, left / (union * (union - 1)).clamp(min=1))
    steps[..., 0] = 1 - left[..., 0] / union[..., 0]
    return steps


class Sum(nn.Module):
    """Weighted sum of losses: `Sum((1.0, CrossEntropy()), (0.5, Dice()))`.

    Args:
        terms: pairs of weight and loss.
    """

    def __init__(self, *terms: tuple[float, nn.Module]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.losses = nn.ModuleList(loss for _, loss in terms)

    @property
    def soft_targets(self) -> bool:
        """Whether all of the losses accept soft targets."""
        return not list(_refusing(self))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        terms = zip(self.weights, self.losses, strict=True)
        return torch.stack([weight * loss(logits, target) for weight, loss in terms]).sum()


class Auxiliary(nn.Module):
    """Loss of a network with an auxiliary head, which in training returns (logits, auxiliary logits).

    As in PSPNet, Zhao 2017, arXiv 1612.01105.

    Args:
        loss: applied to both.
        weight: of the auxiliary loss.
    """

    def __init__(self, loss: nn.Module, weight: float = 0.4) -> None:
        super().__init__()
        self.loss, self.weight = loss, weight

    @property
    def soft_targets(self) -> bool:
        """Whether the loss accepts soft targets."""
        return not list(_refusing(self))

    def forward(self, logits: Tensor | tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """Returns the loss. In validation the network returns a single tensor of logits."""
        main, auxiliary = (logits, None) if isinstance(logits, Tensor) else logits
        loss: Tensor = self.loss(main, target)
        return loss if auxiliary is None else loss + self.weight * self.loss(auxiliary, target)


SOFT_REMEDY = (
    "train with CrossEntropy, BCE, Dice, Jaccard or a Sum of them; or write hard labels: kit pseudo without --soft"
)


def check_soft_targets(loss: object) -> None:
    """Checks that a loss and every loss within it accept soft targets.

    Args:
        loss: a loss of this module, or any module whose attribute `soft_targets` is True.

    Raises:
        RecipeError: one of them does not.
    """
    if names := list(dict.fromkeys(_refusing(loss))):
        raise RecipeError(_refusal(names), SOFT_REMEDY)


def _refusing(loss: object) -> Iterator[str]:
    """Yields the names of the losses that only accept hard targets."""
    if isinstance(loss, Sum | Auxiliary):
        for part in loss.losses if isinstance(loss, Sum) else [loss.loss]:
            yield from _refusing(part)
    elif not getattr(loss, "soft_targets", False):
        yield getattr(loss, "__name__", type(loss).__name__)


def _refusal(names: Sequence[str]) -> str:
    several = len(names) > 1
    return f"{' and '.join(names)} {'do' if several else 'does'} not accept soft targets (probabilities)"


def distillation(
    logits: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None = None, weights: Sequence[float] = ()
) -> Tensor:
    """Returns T^2 x KL(teacher || student) of the softened probability of building, averaged over pixels.

    Hinton 2015, arXiv 1503.02531.

    Args:
        logits: the student's, float (N, C, H, W), as `building_logits` takes them.
        teacher: probabilities of its M members, float (N, M, H, W), 0 to 1; softened one by one, then averaged.
        temperature: T, which divides the logits of both.
        valid: bool (N, H, W), which pixels count; all by default.
        weights: of the members in that mean, M numbers with the sum 1; empty: equal weights.
    """
    student = building_logits(at_least_float32(logits)).squeeze(1) / temperature
    if teacher.ndim != 4 or teacher[:, 0].shape != student.shape:
        message = f"teacher probabilities {tuple(teacher.shape)} for logits {tuple(logits.shape)}"
        raise RecipeError(message, "expected (N, members, H, W) of the same N, H, W")
    probs = teacher.detach().float()
    # p and 1 - p are clipped separately: 1 - 1e-6 is imprecise in float32
    margin = probs.clamp(min=SURE).log() - (1 - probs).clamp(min=SURE).log()
    soft = (margin / temperature).sigmoid()
    soft = torch.einsum("nmhw,m->nhw", soft, soft.new_tensor(weights)) if weights else soft.mean(dim=1)
    known = torch.ones_like(soft) if valid is None else valid
    certainty = torch.xlogy(soft, soft) + torch.xlogy(1 - soft, 1 - soft)
    agreement = soft * F.logsigmoid(student) + (1 - soft) * F.logsigmoid(-student)
    return temperature**2 * pixel_mean(((certainty - agreement) * known).sum(), known)


def pixel_mean(total: Tensor, weights: Tensor) -> Tensor:
    """Returns a sum over pixels divided by the sum of their weights, both over all ranks; 0 if that is 0."""
    sums = over_ranks(torch.stack([total, weights.sum(dtype=total.dtype)]))
    mean: Tensor = sums[0] / sums[1].clamp(min=1)
    return mean


def _mean_of(values: Tensor, present: Tensor) -> Tensor:
    """Returns the mean over dimension 0 of the values that are present; 0 if none is."""
    return (values * present).sum(dim=0) / present.sum(dim=0).clamp(min=1)


def _bce(logits: Tensor, truth: Tensor, weights: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    """Returns the weighted sum of binary cross-entropy."""
    return F.binary_cross_entropy_with_logits(
        logits, truth.to(logits.dtype), weight=weights.to(logits.dtype), pos_weight=pos_weight, reduction="sum"
    )


def _fitting(logits: Tensor, target: Tensor, channels: tuple[int, ...]) -> Tensor:
    """Returns the logits in at least float32; RecipeError if the number of channels or the target's shape is wrong."""
    if not isinstance(logits, Tensor):
        raise RecipeError(
            "the network has an auxiliary head, but its loss takes one tensor", "wrap the loss: Auxiliary(loss)"
        )
    if logits.ndim == 4 and logits.shape[1] in channels:
        n, count, *size = logits.shape
        if [*target.shape] == ([n, 3, *size] if count == 3 else [n, *size]):
            return at_least_float32(logits)
    raise RecipeError(
        f"logits {tuple(logits.shape)} with a target {tuple(target.shape)}, expected "
        f"{' or '.join(map(str, channels))} channels and a target of that form and size",
        "a mask (N, H, W) goes with n_out=2, and with n_out=1 save for CrossEntropy; layers (N, 3, H, W) with n_out=3",
    )
