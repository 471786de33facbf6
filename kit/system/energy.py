"""The energy that the processors have used, where the machine tells."""

from pathlib import Path

RAPL = Path("/sys/class/powercap")  # of Linux, on Intel and AMD; readable by root alone on most machines


def cpu_energy_j() -> float | None:
    """Returns the counters of all CPU packages together, joules; None where none can be read.

    The counters restart after some minutes to hours: measure short times, and take differences.
    """
    total = None
    for package in sorted(RAPL.glob("intel-rapl:?")):
        try:
            total = (total or 0.0) + int((package / "energy_uj").read_text()) / 1e6
        except (OSError, ValueError):
            return None
    return total
