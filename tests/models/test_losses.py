import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from kit.models.losses import CrossEntropy


def make(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    mask = torch.randint(0, 2, (3, 16, 20))
    mask[:, :5] = 255
    return torch.randn(3, 2, 16, 20, requires_grad=True), mask


def test_cross_entropy_is_the_mean_over_known_pixels():
    logits, mask = make()
    expected = functional.cross_entropy(logits, mask, ignore_index=255)
    torch.testing.assert_close(CrossEntropy()(logits, mask), expected)


def test_label_smoothing_agrees_with_smp():
    logits, mask = make()
    theirs = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255, reduction="sum")
    # torch spreads the smoothing over all classes, smp likewise
    expected = theirs(logits, mask) / (mask != 255).sum()
    torch.testing.assert_close(CrossEntropy(label_smoothing=0.1)(logits, mask), expected)


def test_ignored_pixels_have_no_gradient():
    logits, mask = make()
    CrossEntropy()(logits, mask).backward()
    assert (logits.grad[:, :, :5] == 0).all()
    assert (logits.grad[:, :, 5:] != 0).any()


def test_a_batch_without_known_pixels_is_zero():
    logits, mask = make()
    loss = CrossEntropy()(logits, torch.full_like(mask, 255))
    loss.backward()
    assert loss == 0
    assert not logits.grad.isnan().any()
