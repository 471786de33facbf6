"""Communication between ranks, the processes of one command. A single process is rank 0 of 1."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank() if _grouped() else 0


def ranks() -> int:
    """Returns the number of ranks."""
    return dist.get_world_size() if _grouped() else 1


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def over_ranks(part: Tensor) -> Tensor:
    """Returns the sum of the ranks' tensors while gradients are recorded, else this rank's tensor.

    The gradient is `ranks()` times that of this rank's part. DistributedDataParallel averages gradients over ranks, and
    the average is then the gradient of the sum. In validation, ranks have different numbers of batches, so they must
    not wait for each other.

    Args:
        part: float, any shape, the same on all ranks.
    """
    if ranks() == 1 or not torch.is_grad_enabled():
        return part
    total = part.detach().clone()
    dist.all_reduce(total)
    return total + ranks() * (part - part.detach())


def gathered(part: T) -> list[T]:
    """Returns the values of all ranks, by rank: numbers, strings, tensors, and lists and dicts of them.

    All ranks must call it. Values are pickled.
    """
    parts: list[T] = [part] * ranks()
    if len(parts) > 1:
        dist.all_gather_object(parts, part)
    return parts


def agreed(value: T) -> T:
    """Returns rank 0's value, of any type that `gathered` takes. All ranks must call it."""
    values = [value]
    if ranks() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def as_first(tensors: list[Tensor]) -> None:
    """Overwrites tensors with those of rank 0. All ranks must call it."""
    if ranks() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def wait_for_all() -> None:
    """Waits until all ranks have called it."""
    if ranks() > 1:
        dist.barrier()
