"""Reading ahead and writing behind: decoding, computing and encoding at the same time, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

DEPTH = 2  # items that wait on each side: one in the making, one to spare


def read_ahead(read: Callable[[T], R], items: Iterable[T], depth: int = DEPTH) -> Iterator[tuple[T, R]]:
    """Yields each item with what `read` gave for it, in order; a thread reads up to `depth` items ahead.

    An item that cannot be read raises in its turn: those before it are yielded.
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


class WriteBehind:
    """Runs calls one after the other in a thread, at most `depth` of them waiting; a context.

    What a call raises is raised by the next one, or where the context ends. Calls that were taken are always run.
    """

    def __init__(self, depth: int = DEPTH) -> None:
        self.depth = depth
        self.thread = ThreadPoolExecutor(1, "writer")
        self.waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "WriteBehind":
        return self

    def __call__(self, call: Callable[[], None]) -> None:
        """Takes a call; returns when there is room for the next."""
        self.waiting.append(self.thread.submit(call))
        while len(self.waiting) > self.depth:
            self.waiting.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for all calls."""
        self.thread.shutdown()
        if kind is None:
            for future in self.waiting:
                future.result()
