"""Runs one network of frozen weights: with torch in several layouts and precisions, or with OpenVINO."""

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
Network = Callable[[Tensor], Tensor]  # float32 (N, 3, H, W), 0..255, padded -> logits (N, 1 or 3, H, W): building first


@dataclass(frozen=True)
class EngineOptions:
    """How weights are run on this machine."""

    device: str = "cpu"  # as torch names it
    engine: Engine = "torch"  # what computes the networks
    # measure once which settings are fastest on this machine; otherwise compute as exported
    tuning: bool = True
    adaptive: bool = False  # skip passes that hardly change the mask, see `kit.deploy.adaptive`


@dataclass(frozen=True)
class NetworkSetting:
    """How one network computes. Its text is part of a submission's record, and never parsed."""

    # `plain` as exported, `channels_last`, or `packed` (reordered for oneDNN ahead of time)
    layout: torchscript.Layout = "plain"
    dtype: str = "float32"  # of the convolutions: `float32`, `bfloat16`, `float16` or `int8`
    views: int = 1  # how many views of an image go through the network together

    def __str__(self) -> str:
        return f"{self.layout}-{self.dtype}-{self.views}"


def check_engine(engine: str) -> Engine:
    """Returns the engine of that name.

    Raises:
        KitError: there is no such engine, or its package is not installed.
    """
    if engine not in ENGINES:
        raise KitError(f"no engine {engine!r}, expected {', '.join(ENGINES)}", nearest(engine, ENGINES))
    if engine != "torch":
        openvino.package()
    if engine == "openvino-int8":
        openvino.package("nncf", f"--engine {engine}")
    return engine  # type: ignore[return-value]


def layouts(engine: Engine, device: str) -> tuple[torchscript.Layout, ...]:
    """Returns the layouts to try in addition to the exported one."""
    if engine != "torch":
        return ()
    return ("channels_last", "packed") if device == "cpu" else ("channels_last",)


def dtypes(device: str) -> tuple[str, ...]:
    """Returns the precisions to try in addition to float32: half precision, if the hardware has it."""
    dtype = autocast_dtype(torch.device(device))
    if dtype == torch.float32 or not _is_fast(dtype, torch.device(device)):
        return ()
    return (str(dtype).removeprefix("torch."),)


def _is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Returns whether a small convolution in `dtype` is not much slower than in float32.

    A CPU with bfloat16 may be set not to use it (ONEDNN_MAX_CPU_ISA), and is then hundreds of times slower.
    """
    if device.type != "cpu":
        return True
    seconds = []
    for kind in (torch.float32, dtype):
        image, weight = torch.zeros(1, 64, 32, 32, dtype=kind), torch.zeros(64, 64, 3, 3, dtype=kind)
        torch.conv2d(image, weight)
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            torch.conv2d(image, weight)
            runs.append(time.perf_counter() - start)
        seconds.append(min(runs))  # a single run may be interrupted
    return seconds[1] < 2 * seconds[0]


def int8_path(sha256: str, member: int) -> Path:
    """Returns the path of a network's int8 model in the cache."""
    return cache_folder() / "int8" / f"{sha256[:32]}-{member}.xml"


def network(weights: Weights, member: int, setting: NetworkSetting, engine: Engine) -> Network:
    """Returns one network of the ensemble as a function, see `Network`.

    Args:
        weights: as loaded, with networks that can be called one by one.
        member: the network's number.
        setting: how it computes.
        engine: what computes it.
    """
    if setting.dtype == "int8":
        return openvino.compiled(openvino.read(int8_path(weights.sha256, member)), setting.dtype)
    if engine != "torch":
        return openvino.compiled(openvino.converted(torchscript.core(weights.module, member)), setting.dtype)
    dtype: torch.dtype = getattr(torch, setting.dtype)
    function = torchscript.core(weights.module, member, setting.layout, dtype)
    memory = torch.channels_last if setting.layout == "channels_last" else torch.contiguous_format
    device = torch.device(weights.device).type

    def run(x: Tensor) -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return function(x.contiguous(memory_format=memory))

    return run
