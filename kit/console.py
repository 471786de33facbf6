"""Terminal output: results on stdout, progress and notices on stderr; plain text if it is not a terminal.

Of several ranks only rank 0 prints, except for errors. The only module that imports rich.
"""

import io
import logging
import sys
import threading
import time
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # rich takes 0.1 s to import
    from rich.console import Console
    from rich.progress import Progress, Task

T = TypeVar("T")

PLAIN_EVERY_S = 10.0  # between progress lines in a log file
SILENT_S = 30.0  # after which a line comes although nothing was finished
BAR = 12  # columns of a live bar


KNOWN_WARNINGS = (  # of libraries, which a user cannot act on
    "Dataset has no geotransform|The given matrix is equal to Affine.identity",  # chips have no georeference
    ".*torch.jit",  # deprecated; fastai and timm use it on import
)

_only_errors = False
_no_progress = False


def only_errors(value: bool) -> None:
    """Sets whether this process prints only errors, as ranks other than 0 do."""
    global _only_errors
    _only_errors = value


def no_progress(value: bool) -> None:
    """Sets whether this process prints only results and errors, as with `--quiet`."""
    global _no_progress
    _no_progress = value


def ignore_known_warnings() -> None:
    """Hides the warnings in `KNOWN_WARNINGS` in this process."""
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def printable(text: str, kept: str = "\n\t") -> str:
    """Returns a text with control characters, invisible direction marks and lone surrogates escaped.

    File names may contain escape sequences for the terminal.
    """
    return "".join(
        character if character in kept or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )  # fmt: skip


def _stderr(quiet: bool = False) -> "Console":
    from rich.console import Console

    return Console(file=sys.stderr, soft_wrap=True, highlight=False, emoji=False, quiet=quiet, force_jupyter=False)


def say(text: str, every_rank: bool = False) -> None:
    """Prints a notice on stderr, on rank 0 only unless `every_rank`."""
    _stderr(_no_progress or (_only_errors and not every_rank)).print(printable(text), markup=False)


def result(text: str) -> None:
    """Prints a plain result line on stdout."""
    if not _only_errors:
        print(printable(text))


def failure(message: str, hint: str = "") -> None:
    """Prints an error and its hint on stderr."""
    console = _stderr()
    console.print("error:", style="bold red", end=" ")
    console.print(printable(message), markup=False)
    if hint:
        console.print("hint: ", style="bold cyan", end=" ")
        console.print(printable(hint), markup=False)


@contextmanager
def muted() -> Iterator[None]:
    """Hides what a library prints and logs, and its warnings; exceptions pass."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", spare: Collection[str] = ()
) -> None:
    """Prints a table on stdout: framed on a terminal, else aligned columns, none truncated.

    Args:
        columns: their titles.
        rows: a cell per column.
        title: above a framed table.
        spare: columns that are omitted on a terminal if all their cells are 0 or empty.
    """
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else printable(str(cell), "") for cell in row] for row in rows]
    if sys.stdout.isatty() and not _only_errors:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        shown = [
            i for i, name in enumerate(columns) if name not in spare or any(row[i] not in ("0", "") for row in cells)
        ]
        framed = Table(title=title or None, title_justify="left")
        for i in shown:  # the first column names the row; others may break
            framed.add_column(columns[i], no_wrap=i == 0, overflow="fold")
        for row in cells:
            framed.add_row(*(Text(row[i]) for i in shown))
        Console().print(framed)
        return
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    for row in [list(columns), *cells]:
        result("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _live_bar() -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Note(TextColumn):
        """What gives way on a narrow terminal: the counts and times stay whole."""

        def render(self, task: "Task") -> Text:
            return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")

    def whole() -> Column:
        return Column(no_wrap=True)

    return Progress(
        TextColumn("{task.description}"), BarColumn(BAR), MofNCompleteColumn(table_column=whole()),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(table_column=whole()), TextColumn("left"),
        TimeRemainingColumn(table_column=whole()), Note("", table_column=Column()),
        console=_stderr(_only_errors or _no_progress),
    )  # fmt: skip


class Meter:
    """Shows progress: a live bar on a terminal, else a line every `PLAIN_EVERY_S`, after `SILENT_S` at the latest.

    Args:
        what: what is counted, for example `cut tiles`.
        total: expected count; it may be changed later.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.note = what, total, 0, ""
        self.skipped = 0
        self.start = self.last_line = time.monotonic()
        self.bar = _live_bar() if sys.stderr.isatty() and not _no_progress else None
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(what, total=total, rate="", note="")
        self.closed = threading.Event()
        if not self.bar and not _no_progress:
            threading.Thread(target=self._repeat, daemon=True).start()

    def rate(self) -> float:
        """Returns items per second since the start."""
        return (self.done - self.skipped) / max(time.monotonic() - self.start, 1e-9)

    def skip(self, n: int) -> None:
        """Counts `n` that were done before; the rate ignores them."""
        self.skipped += n
        self.done += n
        if self.bar:
            self.bar.update(self.task, advance=n)

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.bar:
            self.bar.console.print(printable(text), markup=False)
        else:
            say(text)

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """Counts `n` more; `note` is shown after the bar, for example the loss."""
        self.done += n
        self.note = self.note if note is None else printable(note)
        if self.bar:
            self.bar.update(self.task, advance=n, total=self.total, rate=_speed(self.rate()), note=self.note)
        elif time.monotonic() - self.last_line > PLAIN_EVERY_S and self.done < self.total:
            self._line()

    def _line(self) -> None:
        self.last_line = time.monotonic()
        rate = self.rate()
        left = f", {_duration((self.total - self.done) / rate)} left" if self.done < self.total and rate else ""
        say(f"{self.what} {self.done}/{self.total}, {_speed(rate)}{left}{', ' + self.note if self.note else ''}")

    def _repeat(self) -> None:
        """Prints a line whenever there was none for long, until the meter is closed."""
        while not self.closed.wait(SILENT_S / 2):
            if time.monotonic() - self.last_line >= SILENT_S / 2 and (self.total or self.done):
                self._line()

    def close(self) -> None:
        """Closes the bar, or prints the last line."""
        self.closed.set()
        if self.bar:
            self.bar.update(self.task, visible=bool(self.total or self.done))
            self.bar.stop()
        elif self.total or self.done:
            self._line()


def _speed(rate: float) -> str:
    """Returns items per second; of slow work, per minute."""
    return f"{rate:.1f}/s" if rate >= 0.1 else f"{60 * rate:.1f}/min"


def _duration(seconds: float) -> str:
    """Returns a remaining time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def meter(what: str, total: int) -> Iterator[Meter]:
    """Yields a `Meter`, and closes it when the block ends."""
    running = Meter(what, total)
    try:
        yield running
    finally:
        running.close()


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """Yields the items of a sequence, and shows progress."""
    with meter(what, len(items)) as running:
        for item in items:
            yield item
            running.advance()
