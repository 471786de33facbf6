"""What this machine offers to kit: versions, cores, memory, disk, GPU, network, GDAL; with advice."""

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from kit.system.cpu import cpu_count

__all__ = ["MachineCheck", "examine", "versions"]

TRIED_PYTHONS = (3, 11), (3, 14)  # oldest and newest that setup.cfg allows
LITTLE_MEMORY_GB, LITTLE_DISK_GB = 6, 10  # lite0 trains in 4 GB; a tile of 1024 px takes about 2 MB
HUB_SECONDS = 4.0
RASTER_DRIVERS, VECTOR_DRIVERS = ("GTiff", "COG", "PNG", "JPEG", "WEBP"), ("GPKG", "GeoJSON", "FlatGeobuf")
EXTRAS = {  # extra: a package of it
    "onnx": "onnxscript", "openvino": "openvino",
    "tensorboard": "tensorboard", "mlflow": "mlflow", "trackio": "trackio",
}  # fmt: skip
NVIDIA = Path("/proc/driver/nvidia/version")  # of Linux, where the driver is loaded


@dataclass(frozen=True)
class MachineCheck:
    """One property of this machine."""

    check: str  # what was looked at
    result: str  # what was found there
    advice: str = ""  # what would help; empty where all is well


def versions() -> str:
    """Returns the versions of Python, torch and GDAL, and the device that torch uses by default."""
    import rasterio
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return (
        f"Python {platform.python_version()}, torch {torch.__version__} on {device}, GDAL {rasterio.__gdal_version__}"
    )


def examine(root: Path) -> list[MachineCheck]:
    """Returns the properties of this machine; a check that fails is a finding, not an error.

    Args:
        root: the working folder, whose disk is looked at.
    """
    checks: dict[str, Callable[[], tuple[str, str]]] = {
        "python": _python, "torch": _torch, "gpu": _gpu, "cores": _cores, "bfloat16": _bfloat16, "memory": _memory,
        "disk": lambda: _disk(root), "gdal": _gdal, "hub": _hub, "extras": _extras,
    }  # fmt: skip
    return [_found(name, check) for name, check in checks.items()]


def _found(name: str, check: Callable[[], tuple[str, str]]) -> MachineCheck:
    try:
        return MachineCheck(name, *check())
    except Exception as cause:  # a broken library must not hide the other findings
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        return MachineCheck(name, f"failed: {reason}", "install kit again in a fresh virtual environment")


def _python() -> tuple[str, str]:
    oldest, newest = (".".join(map(str, version)) for version in TRIED_PYTHONS)
    tried = TRIED_PYTHONS[0] <= sys.version_info[:2] <= TRIED_PYTHONS[1]
    return f"{platform.python_version()}, {sys.prefix}", "" if tried else f"kit is tried with {oldest} to {newest}"


def _torch() -> tuple[str, str]:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"{torch.__version__}, CPU only", ""
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    unused = not torch.cuda.is_available() and not NVIDIA.exists()
    return f"{torch.__version__}, {built}", "without a GPU, a CPU-only torch saves gigabytes of disk" if unused else ""


def _gpu() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        return ", ".join(f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards), ""
    if NVIDIA.exists():
        return "an NVIDIA driver, but torch finds no GPU", "update the driver, or install a torch built for it"
    return "none", "small encoders train on a CPU: kit run quickstart"


def _cores() -> tuple[str, str]:
    import torch

    cores, threads = cpu_count(), torch.get_num_threads()
    advice = f"torch uses {threads} threads: unset OMP_NUM_THREADS" if threads < cores // 2 else ""
    return f"{cores}", advice


def _bfloat16() -> tuple[str, str]:
    import torch

    from kit.system.devices import has_fast_bf16, pick_device

    has_amx = hasattr(torch.cpu, "get_capabilities") and torch.cpu.get_capabilities().get("amx_bf16")
    if has_fast_bf16(pick_device()):
        return "in hardware" + (" (AMX)" if has_amx else ""), ""
    return "not in hardware", "kit computes in float32; kit submit --engine openvino is faster on most CPUs"


def _memory() -> tuple[str, str]:
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if len(line.split()) > 2}
    total, free = sizes.get("MemTotal"), sizes.get("MemAvailable")
    if total is None or free is None:
        return "unknown on this system", ""
    little = free / 1e9 < LITTLE_MEMORY_GB
    return (
        f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free",
        "close other programs, or use a small encoder: lite0" * little,
    )


def _disk(root: Path) -> tuple[str, str]:
    folder = next(place for place in (root.resolve(), *root.resolve().parents) if place.exists())
    free = shutil.disk_usage(folder).free / 1e9
    return f"{free:.1f} GB free in {folder}", "work on another disk: --root DIR" * (free < LITTLE_DISK_GB)


def _gdal() -> tuple[str, str]:
    import pyogrio
    import rasterio
    from rasterio.drivers import raster_driver_extensions
    from rasterio.env import GDALVersion

    with rasterio.Env() as env:
        rasters = set(env.drivers()) | set(raster_driver_extensions().values())
    vectors = {name for name, access in pyogrio.list_drivers().items() if "w" in access}
    missing = [name for name in RASTER_DRIVERS if name not in rasters]
    missing += [name for name in VECTOR_DRIVERS if name not in vectors]
    result = f"{GDALVersion.runtime()} (rasterio), {'.'.join(map(str, pyogrio.__gdal_version__))} (pyogrio)"
    if missing:
        return f"{result}, without {', '.join(missing)}", "install the wheels of rasterio and pyogrio with pip"
    return result, ""


def _hub() -> tuple[str, str]:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return "switched off by HF_HUB_OFFLINE", "unset it to download pretrained encoders"
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    offline = "lite0 has its weights with it; for others: kit run --encoder-weights FILE"
    try:
        with urlopen(Request(address, method="HEAD"), timeout=HUB_SECONDS):
            return f"{address} is reachable", ""
    except HTTPError as answer:
        if answer.code < 500 and answer.code != 407:  # 407: a proxy asks for a password
            return f"{address} is reachable", ""
        return f"{address} answers {answer.code}", offline
    except (OSError, ValueError):
        return f"{address} is not reachable", offline


def _extras() -> tuple[str, str]:
    missing = [name for name, package in EXTRAS.items() if find_spec(package) is None]
    there = ", ".join(name for name in EXTRAS if name not in missing) or "none"
    return there, f"as you need them: pip install 'footprintkit[{','.join(missing)}]'" if missing else ""
