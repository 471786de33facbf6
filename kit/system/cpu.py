"""CPU cores: how many this process may use."""

import os
from typing import TYPE_CHECKING

from kit.system.launcher import own_rank

if TYPE_CHECKING:
    import torch


def cpu_count(shared: bool = True) -> int:
    """Returns how many CPU cores this process may use, at least 1.

    Args:
        shared: divide them by the number of processes that a launcher started on this machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = own_rank() if shared else None
    return max(1, cores // own.count_here) if own else cores


def default_workers(device: "torch.device") -> int:
    """Returns how many processes augment crops for a network on `device`.

    A network on the CPU needs its two or four cores itself: no workers there.
    """
    if device.type == "cpu":
        return 0 if cpu_count() <= 4 else 2
    return min(8, cpu_count())
