"""The environment variables of a launcher (torchrun, `kit run --nproc`), which number the processes it started."""

import os
from dataclasses import dataclass

OURS = "kit"  # run id of processes that kit started itself
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Rank:
    """This process as one of several ranks."""

    number: int  # from 0
    count: int  # of ranks, at least 2
    number_here: int  # among the ranks on this machine, from 0
    count_here: int  # of ranks on this machine
    host: str  # where rank 0 listens
    port: int
    by_kit: bool  # whether kit started the ranks


def own_rank() -> Rank | None:
    """Returns this process's rank; None for a single process, or if the launcher's variables are incomplete."""
    number, count, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    host = os.environ.get("MASTER_ADDR", "")
    if number is None or count is None or port is None or not host or not number < count or count < 2:
        return None
    here, count_here = _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE")
    by_kit = os.environ.get("TORCHELASTIC_RUN_ID") == OURS
    return Rank(number, count, here or 0, max(1, count_here or 1), host, port, by_kit)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else None


def ignored_variables() -> str:
    """Returns a notice if a launcher's variables are set but incomplete or invalid; else an empty text."""
    size = os.environ.get("WORLD_SIZE", "")
    if size in ("", "1") or own_rank():
        return ""
    others = ", ".join(name for name in NEEDED if name != "WORLD_SIZE")
    return f"WORLD_SIZE={size!r} is ignored: {others} are missing or invalid"


def launched() -> bool:
    """Returns whether a launcher started this process as one of several ranks."""
    return own_rank() is not None


def launched_by_kit() -> bool:
    """Returns whether that was `kit.system.processes.launch`."""
    own = own_rank()
    return own is not None and own.by_kit
