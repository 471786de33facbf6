import pytest
import torch

from kit.errors import KitError
from kit.system import devices
from kit.system.devices import autocast_dtype, pick_device


@pytest.mark.parametrize(
    ("device", "bf16", "dtype"),
    [
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),  # fp16 on a CPU would be slower still
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),  # a V100, as the seed's six
    ],
)
def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch, device: str, bf16: bool, dtype: torch.dtype):
    monkeypatch.setattr(devices, "has_fast_bf16", lambda _: bf16)
    assert autocast_dtype(torch.device(device)) == dtype


def test_the_best_device_is_chosen_and_a_missing_one_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    with pytest.raises(KitError, match="no device 'nonsense' here"):
        pick_device("nonsense")
