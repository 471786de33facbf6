"""What computes one core of a frozen ensemble, and how: layouts, precisions, and OpenVINO beside torch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kit.deploy.engine import openvino
from kit.deploy.weights import torchscript
from kit.deploy.weights.load import Weights
from kit.errors import KitError, nearest
from kit.system.devices import autocast_dtype
from kit.system.files import cache_folder

Engine = Literal["torch", "openvino", "openvino-int8"]
ENGINES = ("torch", "openvino", "openvino-int8")
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """How one core computes.

    Args:
        layout: `plain` as shipped, `channels_last`, or `packed` (reordered for oneDNN ahead of time).
        dtype: of the convolutions: `float32`, `bfloat16`, `float16` or `int8`.
        views: how many views of an image go through the network together.
    """

    layout: torchscript.Layout = "plain"
    dtype: str = "float32"
    views: int = 1

    def __str__(self) -> str:
        return f"{self.layout}-{self.dtype}-{self.views}"

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """Returns the setting that `str` told.

        Raises:
            ValueError: it is none.
        """
        layout, dtype, views = text.split("-")
        return cls(layout, dtype, int(views))  # type: ignore[arg-type]


def check_engine(engine: str) -> Engine:
    """Returns the engine of that name.

    Raises:
        KitError: there is none, or its package is not installed.
    """
    if engine not in ENGINES:
        raise KitError(f"no engine {engine!r}, expected {', '.join(ENGINES)}", nearest(engine, ENGINES))
    if engine != "torch":
        openvino.package()
    if engine == "openvino-int8":
        openvino.package("nncf", f"--engine {engine}")
    return engine  # type: ignore[return-value]


def layouts(engine: Engine, device: str) -> tuple[torchscript.Layout, ...]:
    """Returns the layouts to try beside the shipped one."""
    if engine != "torch":
        return ()
    return ("channels_last", "packed") if device == "cpu" else ("channels_last",)


def dtypes(device: str) -> tuple[str, ...]:
    """Returns the precisions to try beside float32: half the bits, where the hardware multiplies them."""
    dtype = autocast_dtype(torch.device(device))
    if dtype == torch.float32 or not _pays(dtype, torch.device(device)):
        return ()
    return (str(dtype).removeprefix("torch."),)


def _pays(dtype: torch.dtype, device: torch.device) -> bool:
    """Tells whether a small convolution is not slower than in float32.

    A CPU that has bfloat16 may be told not to use it (ONEDNN_MAX_CPU_ISA): it then is hundreds of times slower.
    """
    if device.type != "cpu":
        return True
    seconds = []
    for kind in (torch.float32, dtype):
        image, weight = torch.zeros(1, 64, 32, 32, dtype=kind), torch.zeros(64, 64, 3, 3, dtype=kind)
        torch.conv2d(image, weight)
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            torch.conv2d(image, weight)
            taken.append(time.perf_counter() - start)
        seconds.append(min(taken))  # one alone may be interrupted
    return seconds[1] < 2 * seconds[0]


def int8_path(weights: Weights, core: int) -> Path:
    """Returns where a core's model in int8 is kept."""
    return cache_folder() / "int8" / f"{weights.sha256[:32]}-{core}.xml"


def network(weights: Weights, core: int, setting: Setting, engine: Engine) -> Network:
    """Returns one core as a function: float32 (N, 3, H, W), 0..255, padded -> logits (N, 1, H, W).

    Args:
        weights: as loaded, with cores.
        core: its number.
        setting: how it computes.
        engine: what computes.
    """
    if setting.dtype == "int8":
        return openvino.compiled(openvino.read(int8_path(weights, core)), setting.dtype)
    if engine != "torch":
        return openvino.compiled(openvino.converted(torchscript.core(weights.module, core)), setting.dtype)
    dtype: torch.dtype = getattr(torch, setting.dtype)
    function = torchscript.core(weights.module, core, setting.layout, dtype)
    memory = torch.channels_last if setting.layout == "channels_last" else torch.contiguous_format
    device = torch.device(weights.device).type

    def run(x: Tensor) -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return function(x.contiguous(memory_format=memory))

    return run
