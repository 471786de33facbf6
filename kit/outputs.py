"""Names and places of outputs: kit replaces and removes only files that it wrote itself."""

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from kit.errors import OutputError

LONGEST_NAME_BYTES = 200  # file systems allow 255; suffixes and temporary names take the rest
EXPECTED_NAME = "expected letters, digits, `.`, `_` and `-`, first a letter, a digit or `_`; not a path"


def check_name(name: str, option: str = "--name") -> str:
    """Returns `name`, which names one file or folder below the root.

    Args:
        name: letters and digits of any script, `.`, `_` and `-`; at most 200 bytes in UTF-8.
        option: where the name was given, for the error.

    Raises:
        OutputError: the name is empty, a path, hidden, too long, or holds other characters.
    """
    if not name or name[0] in ".-" or not all(map(_is_plain, name)):
        raise OutputError(f"{option} {name!r} cannot name a file", EXPECTED_NAME)
    if (size := len(name.encode())) > LONGEST_NAME_BYTES:
        raise OutputError(f"{option} {name[:20]!r}... has {size} bytes", f"at most {LONGEST_NAME_BYTES} are allowed")
    return name


def as_name(text: str, otherwise: str = "") -> str:
    """Returns `text` as a name that `check_name` accepts: other characters become `-`; `otherwise` if none is left."""
    plain = "".join(character if _is_plain(character) else "-" for character in text).strip("-.")
    while len(plain.encode()) > LONGEST_NAME_BYTES:
        plain = plain[:-1]
    return plain or otherwise


def spreadsheet_safe(cell: object) -> object:
    """Returns a cell of a CSV meant for people: text that a spreadsheet would run as a formula begins with `'`."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _is_plain(character: str) -> bool:
    """Returns whether a character is a letter, a mark that belongs to one, a digit, `.`, `_` or `-`."""
    return character in "._-" or unicodedata.category(character)[0] in "LMN"


def check_apart(target: Path, sources: Iterable[Path], option: str) -> None:
    """Checks that writing `target` touches no input.

    Args:
        target: the folder or file to be written; it need not exist.
        sources: the files and folders that are read.
        option: how to choose another target, for the hint.

    Raises:
        OutputError: a source is the target or lies inside it, or the target lies inside a source.
    """
    written = target.resolve()
    for source in sources:
        read = source.resolve()
        if written == read or written in read.parents:
            raise OutputError(f"the output {target} would replace the input {source}", f"choose another {option}")
        if read in written.parents:
            raise OutputError(f"the output {target} lies inside the input {source}", f"choose another {option}")


def visible_files(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder, those aside that are hidden or in a hidden folder."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from visible_files(path)
        else:
            yield path


def check_unclaimed(folder: Path, maker: str, option: str) -> None:
    """Checks that a folder is missing or empty: called where nothing in it says that kit wrote it.

    Args:
        folder: to be written into.
        maker: the command that writes such folders, for the error.
        option: how to choose another folder, for the hint.

    Raises:
        OutputError: it is a file, a dangling link, or holds files.
    """
    if folder.is_symlink() and not folder.exists():
        raise OutputError(f"{folder} is a dangling link", f"remove the link, or choose another {option}")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, expected a folder", f"move it away, or choose another {option}")
    if first := next(visible_files(folder), None):
        raise OutputError(
            f"{folder} was not written by {maker}: it holds {first.relative_to(folder)}",
            f"choose another {option}, or move that folder away",
        )
