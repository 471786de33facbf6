"""All calls of torch.jit: TorchScript is deprecated in PyTorch, and will be replaced here alone."""

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import torch
from torch import Tensor, nn

Layout = Literal["plain", "channels_last", "packed"]
FLOAT32 = 6  # in TorchScript, which numbers dtypes
CONVOLUTIONS = ("aten::_convolution", "aten::conv2d", "aten::conv_transpose2d")

exported = torch.jit.export  # marks a method, beside forward, that scripting keeps


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides deprecation warnings, and the tracer's about size branches: parity at odd sizes is measured instead."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def trace(core: nn.Module, example: Tensor) -> nn.Module:
    """Returns the operators that `core` runs on `example`; they serve other sizes if it does not branch on them."""
    with _quiet(), torch.no_grad():
        traced: nn.Module = torch.jit.trace(core, example, check_trace=False)
        return traced


def frozen(module: nn.Module, methods: Sequence[str], cores: int) -> Any:
    """Returns `module` scripted with its weights as constants; `forward`, `methods` and `core_0`, ... can be called.

    Cores are traced before and not frozen by themselves: scripting a wrapper of frozen cores fails.

    Args:
        module: an ensemble, with its traced networks in `cores`.
        methods: beside `forward`.
        cores: how many there are.
    """
    names = [core_name(number) for number in range(cores)]
    with _quiet():
        scripted = torch.jit.script(module.eval())
        for number, name in enumerate(names):
            scripted.define(f"def {name}(self, x):\n    return getattr(self.cores, '{number}')(x)\n")
        with TemporaryFile() as file:  # the graphs of a loaded module are freed with it, of a scripted one never
            torch.jit.save(scripted, file)
            file.seek(0)
            loaded = torch.jit.load(file)
        return torch.jit.freeze(loaded, preserved_attrs=[*methods, *names])


def core_name(number: int) -> str:
    """Returns the name of the method that runs one network of a frozen ensemble."""
    return f"core_{number}"


def has_cores(module: Any) -> bool:
    """Returns whether the networks of a frozen ensemble can be called one by one: not in files of kit 0.1.0."""
    return hasattr(module, core_name(0))


def core(
    module: Any, number: int, layout: Layout = "plain", dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], Tensor]:
    """Returns one network of a frozen ensemble as a function, with its convolution weights in another layout or dtype.

    Args:
        module: as `load` returns it, with cores.
        number: of the core.
        layout: of the weights: `plain` as they are, `channels_last`, or `packed` for oneDNN, which fuses and reorders
            ahead of time (float32 on the CPU alone).
        dtype: of the weights; a caller of anything but float32 runs the function under autocast.

    Shape:
        The function: float32 (N, 3, H, W), 0..255, multiples of the ensemble's padding -> logits (N, 1, H, W),
        or (N, 3, H, W) of layers.
    """
    graph = getattr(module, core_name(number)).graph.copy()
    graph.eraseInput(0)  # self, of which freezing left nothing
    if layout == "packed":
        torch._C._jit_pass_convert_frozen_ops_to_mkldnn(graph)
    else:
        for node in (node for kind in CONVOLUTIONS for node in graph.findAllNodes(kind)):
            _convert(list(node.inputs())[1].node(), layout, dtype)  # biases may be constants that others share
    function: Callable[[Tensor], Tensor] = torch._C._create_function_from_graph(f"core_{number}", graph)
    return function


def _convert(weight: Any, layout: Layout, dtype: torch.dtype) -> None:
    """Changes the weight of a convolution in place, where it is a constant."""
    if weight.kind() == "prim::Constant":
        memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        weight.t_("value", weight.t("value").to(dtype).contiguous(memory_format=memory))


def store_half(module: Any) -> None:
    """Makes a frozen module store its float32 tensors as float16, in place: half the file. It computes in float32.

    Each constant is followed by a cast, which `load` and the executors of other programs fold.
    """
    halves: dict[int, Tensor] = {}  # by address: methods share tensors
    for method in _methods(module):
        graph = method.graph
        for node in _tensors(graph):
            value = node.t("value")
            if value.dtype != torch.float32 or value.dim() == 0:
                continue
            node.t_("value", halves.setdefault(value.data_ptr(), value.half()))
            graph.setInsertPoint(node)
            dtype, no = graph.insertConstant(FLOAT32), graph.insertConstant(False)
            cast = graph.create("aten::to", [node.output(), dtype, no, no], 1)
            cast.insertAfter(node)
            cast.output().setType(node.output().type())
            node.output().replaceAllUsesAfterNodeWith(cast, cast.output())


def _restore_float32(module: Any) -> None:
    """Undoes `store_half`, in place, up to the rounding. Methods share tensors as before."""
    restored: dict[int, Tensor] = {}
    for method in _methods(module):
        for node in _tensors(method.graph):
            value = node.t("value")
            if value.dtype == torch.float16:
                (use,) = node.output().uses()
                node.t_("value", restored.setdefault(value.data_ptr(), value.float()))
                use.user.output().replaceAllUsesWith(node.output())
                use.user.destroy()


def named_devices(module: Any) -> list[str]:
    """Returns the devices that stand by name in a frozen module's graphs: there `map_location` cannot move them."""
    nodes = (node for method in _methods(module) for node in method.graph.findAllNodes("prim::Constant"))
    return [node.s("value") for node in nodes if node.output().type().kind() == "DeviceObjType"]


def has_finite_weights(module: Any) -> bool:
    """Returns whether no constant tensor of a frozen module holds NaN or infinity."""
    return all(bool(tensor.isfinite().all()) for tensor in _weights(module))


def parameters(module: Any) -> int:
    """Returns how many numbers the weights of a frozen module have; freezing folds batch norms into convolutions."""
    return sum(tensor.numel() for tensor in _weights(module))


def _weights(module: Any) -> list[Tensor]:
    """Returns the constants of a frozen module that are tensors of real numbers; methods share them."""
    tensors = [node.t("value") for method in _methods(module) for node in _tensors(method.graph)]
    return list({tensor.data_ptr(): tensor for tensor in tensors if tensor.is_floating_point()}.values())


def _methods(module: Any) -> list[Any]:
    """Returns the methods of a frozen module."""
    return [module._c._get_method(name) for name in module._c._method_names()]


def _tensors(graph: Any) -> list[Any]:
    """Returns the constants of a graph that are tensors."""
    return [node for node in graph.findAllNodes("prim::Constant") if node.output().type().kind() == "TensorType"]


def save(module: Any, path: Path) -> None:
    """Writes a frozen module without the debug records, which hold this machine's paths."""
    buffer = io.BytesIO()  # torch.jit.save to a path writes the path's stem into the archive
    with _quiet():
        torch.jit.save(module, buffer)
    with zipfile.ZipFile(buffer) as saved, zipfile.ZipFile(path, "w") as shipped:
        for entry in saved.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                shipped.writestr(zipfile.ZipInfo(entry.filename), saved.read(entry))


def add_extra(path: Path, name: str, text: str) -> None:
    """Adds an extra text file to a saved module, where `torch.jit.load` finds it."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(zipfile.ZipInfo(f"{root}/extra/{name}"), text)


def with_extra(source: Path, target: Path, name: str, text: str) -> None:
    """Writes a copy of a saved module with another content of an extra text file."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if entry.filename.split("/", 1)[1] != f"extra/{name}":
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))
    add_extra(target, name, text)


def load(path: Path, device: str) -> Any:
    """Returns the module in a file, on `device`.

    Raises:
        RuntimeError: the file is not TorchScript, or is damaged.
    """
    with _quiet():
        module = torch.jit.load(str(path), map_location=device)
    _restore_float32(module)
    return module
