"""The peak memory of a command with all that it starts."""

import os
import subprocess
import time
from pathlib import Path

LOOK_S = 0.5  # between two looks at the memory


def watched(command: list[object]) -> tuple[str, float]:
    """Returns the last line that a command prints, and its peak memory with all that it starts, MB."""
    environment = {**os.environ, "GDAL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, env=environment) as process:
        peak_mb = 0.0
        while process.poll() is None:
            peak_mb = max(peak_mb, resident_mb(process.pid))
            time.sleep(LOOK_S)
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return output.splitlines()[-1], peak_mb


def resident_mb(pid: int) -> float:
    """Returns the resident memory of a process and of all that it has started; Linux."""
    home = Path("/proc") / str(pid)
    try:
        pages = int((home / "statm").read_text().split()[1])
        children = " ".join(file.read_text() for file in home.glob("task/*/children"))
    except OSError:  # it has ended
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(resident_mb(int(child)) for child in children.split())
