"""Threads that read images and write masks while the networks compute, with limited queues."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

DEPTH = 2  # items that wait on each side: one in work, one to spare


def read_ahead(read: Callable[[T], R], items: Iterable[T], depth: int = DEPTH) -> Iterator[tuple[T, R]]:
    """Yields each item with the result of `read`, in order; a thread reads up to `depth` items ahead.

    What `read` raises is raised in the item's turn, after the items before it were yielded.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(1, "reader") as thread:
        try:
            for item in items:
                waiting.append((item, thread.submit(read, item)))
                if len(waiting) > depth:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


class BackgroundWriter:
    """Runs calls one after the other in a thread; a context manager that waits for all of them.

    An error in a call is raised by a later call, or at the end of the context. Every call that was accepted is run.

    Args:
        depth: how many calls may wait.
    """

    def __init__(self, depth: int = DEPTH) -> None:
        self.depth = depth
        self.thread = ThreadPoolExecutor(1, "writer")
        self.waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __call__(self, call: Callable[[], None]) -> None:
        """Accepts a call; returns when there is room for the next."""
        self.waiting.append(self.thread.submit(call))
        while len(self.waiting) > self.depth:
            self.waiting.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for all calls."""
        self.thread.shutdown()
        if kind is None:
            for future in self.waiting:
                future.result()
