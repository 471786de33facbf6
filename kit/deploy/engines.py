"""What computes one core of a frozen ensemble, and how: layouts, precisions, and OpenVINO beside torch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kit.deploy import torchscript
from kit.deploy.weights import Weights
from kit.errors import KitError, nearest
from kit.models.devices import autocast_dtype

Engine = Literal["torch", "openvino"]
ENGINES = ("torch", "openvino")
Network = Callable[[Tensor], Tensor]
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # as OpenVINO names them


@dataclass(frozen=True)
class Setting:
    """How one core computes.

    Args:
        layout: `plain` as shipped, `channels_last`, or `packed` (reordered for oneDNN ahead of time).
        dtype: of the convolutions: `float32`, `bfloat16` or `float16`.
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
        raise KitError(f"no engine {engine!r}, expected {' or '.join(ENGINES)}", nearest(engine, ENGINES))
    if engine == "openvino":
        _openvino()
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
        start = time.perf_counter()
        torch.conv2d(image, weight)
        seconds.append(time.perf_counter() - start)
    return seconds[1] < 2 * seconds[0]


def network(weights: Weights, core: int, setting: Setting, engine: Engine) -> Network:
    """Returns one core as a function: float32 (N, 3, H, W), 0..255, padded -> logits (N, 1, H, W).

    Args:
        weights: as loaded, with cores.
        core: its number.
        setting: how it computes.
        engine: what computes.
    """
    if engine == "openvino":
        return _openvino_network(torchscript.core(weights.module, core), setting.dtype)
    dtype: torch.dtype = getattr(torch, setting.dtype)
    function = torchscript.core(weights.module, core, setting.layout, dtype)
    memory = torch.channels_last if setting.layout == "channels_last" else torch.contiguous_format
    device = torch.device(weights.device).type

    def run(x: Tensor) -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return function(x.contiguous(memory_format=memory))

    return run


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as cause:
        raise KitError("--engine openvino needs OpenVINO, which is not installed", "pip install openvino") from cause
    return openvino


def _openvino_network(function: Network, dtype: str) -> Network:
    openvino = _openvino()
    model = openvino.convert_model(function, example_input=torch.full((1, 3, 64, 64), 127.0))
    model.reshape([-1, 3, -1, -1])
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[dtype]}
    compiled = openvino.Core().compile_model(model, "CPU", options | {"INFERENCE_NUM_THREADS": torch.get_num_threads()})

    def run(x: Tensor) -> Tensor:
        logits: np.ndarray[Any, Any] = compiled(x.contiguous().numpy())[0]
        return torch.from_numpy(logits.copy())

    return run
