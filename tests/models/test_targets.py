import pytest
import torch

from kit.errors import RecipeError
from kit.models.targets import building_logits


def test_two_classes_give_their_softmax():
    logits = 3 * torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(building_logits(logits).sigmoid()[:, 0], logits.softmax(1)[:, 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_sigmoids_give_the_footprint(channels: int):
    logits = torch.randn(2, channels, 5, 7)
    assert torch.equal(building_logits(logits), logits[:, :1])


@pytest.mark.parametrize("channels", [4, 5])
def test_other_channels_are_refused(channels: int):
    with pytest.raises(RecipeError, match=rf"{channels} output channels, expected 1 \(footprint\), 2") as error:
        building_logits(torch.zeros(1, channels, 4, 4))
    assert "n_out" in error.value.hint


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_trace_fits_other_sizes(channels: int):
    traced = torch.jit.trace(building_logits, torch.zeros(2, channels, 8, 8))
    logits = torch.randn(1, channels, 5, 7)
    assert torch.equal(traced(logits), building_logits(logits))
