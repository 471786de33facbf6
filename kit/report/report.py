"""The report of runs as one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from kit.errors import OutputError
from kit.paths import Paths
from kit.report import sections
from kit.report.evidence import collect
from kit.report.page import MARK, page
from kit.system.files import replacing


def write_report(names: Sequence[str], paths: Paths, out: Path, view_tiles: int) -> None:
    """Writes the report of finished runs.

    Args:
        names: `<recipe>/fold<k>`, or a recipe for its finished folds.
        paths: of the working root.
        out: the HTML file.
        view_tiles: tiles of each recipe that are predicted again, to measure what views change; 0: none.

    Raises:
        RunError: see `kit.report.evidence.collect`.
        OutputError: kit did not write the file that stands there.
    """
    check_page(out)
    evidence = collect(names, paths)
    parts = [
        sections.scores_section(evidence),
        sections.calibration_section(evidence),
        sections.where_section(evidence),
        sections.thresholds_section(evidence),
        sections.members_section(evidence),
        sections.views_section(evidence, paths, view_tiles),
        sections.worst_section(evidence),
        sections.runs_section(evidence, paths),
    ]
    title = f"Report of {', '.join(each.name for each in evidence)}"
    with replacing(out) as file:
        file.write_text(page(title, parts), encoding="utf-8")


def check_page(file: Path) -> None:
    """Checks that a report may be written.

    Raises:
        OutputError: another file stands there.
    """
    if file.is_dir():
        raise OutputError(f"{file} is a folder, expected a file", "choose another --out")
    if file.exists() and MARK.encode() not in file.read_bytes()[:200]:
        raise OutputError(f"{file} was not written by kit report", "choose another --out, or move that file away")
