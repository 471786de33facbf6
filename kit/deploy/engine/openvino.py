"""Runs networks with OpenVINO, in float32, bfloat16 or int8.

Source: int8 models are made after training by NNCF (Kozlov et al. 2020, arXiv:2002.08679), with fast bias correction.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.console import muted
from kit.errors import KitError, WeightsError
from kit.system.files import replacing

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names; int8 is part of the model itself


def package(name: str = "openvino", needed_by: str = "--engine openvino") -> Any:
    """Imports openvino or nncf, without their telemetry.

    Raises:
        KitError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # both work without it
    try:
        with muted():
            return __import__(name)
    except ImportError as cause:
        raise KitError(f"{needed_by} needs {name}, which is not installed", f"pip install {name}") from cause


def converted(function: Callable[[Tensor], Tensor]) -> Any:
    """Returns a network as an OpenVINO model, for any batch size, height and width."""
    with muted():
        model = package().convert_model(function, example_input=torch.full((1, 3, 64, 64), 127.0))
    model.reshape([-1, 3, -1, -1])
    return model


def quantise(function: Callable[[Tensor], Tensor], tiles: Sequence[Tensor], path: Path) -> None:
    """Writes a network in int8: the model as `path` (.xml) and its weights beside it (.bin).

    Args:
        function: the network.
        tiles: real images, float32 (1, 3, H, W), 0..255, padded, to calibrate the ranges of 8 bits.
        path: of the model.
    """
    openvino, nncf = package(), package("nncf", "--engine openvino-int8")
    with muted():
        model = nncf.quantize(
            converted(function), nncf.Dataset([tile.numpy() for tile in tiles]), subset_size=len(tiles)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".int8.") as folder:
        new = Path(folder) / path.name
        openvino.save_model(model, new, compress_to_fp16=False)
        for suffix in (".bin", ".xml"):  # the model last: if it exists, both are complete
            with replacing(path.with_suffix(suffix)) as temporary:
                new.with_suffix(suffix).rename(temporary)


def read(path: Path) -> Any:
    """Returns a model that `quantise` wrote.

    Raises:
        WeightsError: it is damaged.
    """
    try:
        return package().Core().read_model(path)
    except RuntimeError as cause:
        raise WeightsError(f"{path} is not an OpenVINO model", "remove it: kit writes it again") from cause


def compiled(model: Any, dtype: str) -> Callable[[Tensor], Tensor]:
    """Returns a model as a function: float32 (N, 3, H, W), 0..255, padded -> logits (N, 1 or 3, H, W)."""
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if dtype in PRECISIONS:
        options["INFERENCE_PRECISION_HINT"] = PRECISIONS[dtype]
    network = package().Core().compile_model(model, "CPU", options)

    def run(x: Tensor) -> Tensor:
        logits: np.ndarray[Any, Any] = network(x.contiguous().numpy())[0]
        return torch.from_numpy(logits.copy())

    return run
