"""Devices: choice, precision, memory."""

import ctypes
import gc
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

import torch

from kit.errors import KitError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KERNELS = 16_384  # at most


def pick_device(name: str = "") -> torch.device:
    """Returns a device; without a name, the GPU if there is one, else the CPU.

    Raises:
        KitError: this machine has no such device.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as cause:
        raise KitError(f"no device {name!r} here: {str(cause).splitlines()[0]}", "try --device cpu") from cause
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Returns whether the device computes bfloat16 in hardware; without, it is hundreds of times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.10 and later
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Returns the fastest dtype for networks on a device: bfloat16 if the hardware has it, float16 on other GPUs."""
    if has_fast_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def processor_name(device: torch.device) -> str:
    """Returns processor model and instruction set: the key of measured settings."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return " ".join(part for part in (model, torch.backends.cpu.get_cpu_capability(), limit) if part)


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return []


def keep_kernels() -> None:
    """Enlarges oneDNN's cache of compiled kernels. Call it before the first network runs.

    The default of 1,024 is too few for three networks and windows of a dozen sizes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))


def keep_freed_memory() -> bool:
    """Makes malloc keep large freed blocks, so that activations need no new pages; returns whether it could.

    Works with glibc on Linux.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    limit = 2**30
    return bool(mallopt(M_MMAP_THRESHOLD, limit)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> None:
    """Gives freed memory back to the system, which malloc otherwise keeps; call it between two networks' work.

    Does nothing where malloc is not glibc's.
    """
    gc.collect()  # fastai's learners and their callbacks refer to each other
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
