"""The one door to TorchScript: deprecated in PyTorch, so every torch.jit call of the kit stands here."""

import io
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

exported = torch.jit.export  # marks a method, beside forward, that scripting keeps


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the deprecation notices, and the tracer's about size branches: parity at odd sizes is measured instead."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def trace(core: nn.Module, example: Tensor) -> nn.Module:
    """Returns the operators that `core` runs on `example`; other shapes pass where the network has no size branch."""
    with _quiet(), torch.no_grad():
        traced: nn.Module = torch.jit.trace(core, example, check_trace=False)
        return traced


def frozen(module: nn.Module, methods: Sequence[str]) -> Any:
    """Returns `module` scripted with its weights as constants; `forward` and `methods` can be called.

    Cores are traced before and not frozen by themselves: scripting a wrapper of frozen cores fails.
    """
    with _quiet():
        return torch.jit.freeze(torch.jit.script(module.eval()), preserved_attrs=list(methods))


def named_devices(module: Any) -> list[str]:
    """Returns the devices that stand by name in a frozen module's graphs: there `map_location` cannot move them."""
    methods = [module._c._get_method(name) for name in module._c._method_names()]
    constants = [node for method in methods for node in method.graph.findAllNodes("prim::Constant")]
    return [node.s("value") for node in constants if node.output().type().kind() == "DeviceObjType"]


def save(module: Any, path: Path) -> None:
    """Writes a frozen module; without the debug records, which hold this machine's paths."""
    buffer = io.BytesIO()  # torch.jit.save to a path writes the path's stem into the archive
    with _quiet():
        torch.jit.save(module, buffer)
    with zipfile.ZipFile(buffer) as made, zipfile.ZipFile(path, "w") as shipped:
        for entry in made.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                shipped.writestr(zipfile.ZipInfo(entry.filename), made.read(entry))


def add_extra(path: Path, name: str, text: str) -> None:
    """Adds an extra text file to a saved module, where `torch.jit.load` finds it."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(zipfile.ZipInfo(f"{root}/extra/{name}"), text)


def load(path: Path, device: str) -> Any:
    """Returns the module in a file, on `device`.

    Raises:
        RuntimeError: the file is not TorchScript, or is damaged.
    """
    with _quiet():
        return torch.jit.load(str(path), map_location=device)


def read_extra(path: Path, name: str) -> str | None:
    """Returns an extra text file of a TorchScript archive without running anything of it; None when it has none.

    Raises:
        zipfile.BadZipFile: the file is not an archive.
    """
    with zipfile.ZipFile(path) as archive:
        found = [entry for entry in archive.namelist() if entry.split("/")[1:] == ["extra", name]]
        return archive.read(found[0]).decode() if found else None
