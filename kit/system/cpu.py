"""CPU cores: how many this process may use."""

import os
from typing import TYPE_CHECKING

from kit.system.launcher import own_rank

if TYPE_CHECKING:
    import torch


def cpu_count(shared: bool = True) -> int:
    """Returns the number of CPU cores that this process may use, at least 1.

    Args:
        shared: divide by the number of ranks on this machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = own_rank() if shared else None
    return max(1, cores // own.count_here) if own else cores


def default_workers(device: "torch.device") -> int:
    """Returns the number of loader processes for a network on `device`.

    On a CPU of up to four cores, the network needs all of them.
    """
    if device.type == "cpu":
        return 0 if cpu_count() <= 4 else 2
    return min(8, cpu_count())
