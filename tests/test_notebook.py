"""examples/quickstart.ipynb: it is stored with its outputs, and runs in an empty folder."""

import json
import os
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
SHOWN = {"image/jpeg", "text/html", "text/plain"}


def outputs(book: dict) -> list[set[str]]:
    """The kinds of what each cell shows."""
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    return [{kind for output in cell["outputs"] for kind in output.get("data", {"text/plain": ""})} for cell in cells]


def test_the_stored_outputs_are_whole_and_small():
    text = NOTEBOOK.read_text()
    book = json.loads(text)
    assert len(text) < 400_000
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert set().union(*outputs(book)) == SHOWN
    assert sum("image/jpeg" in kinds for kinds in outputs(book)) == 4


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # where kit is
    monkeypatch.setenv("KIT_ROOT", str(tmp_path))
    book = nbformat.read(NOTEBOOK, 4)
    stored = outputs(book)
    client = nbclient.NotebookClient(book, timeout=1800, resources={"metadata": {"path": tmp_path}})
    client.execute()
    assert outputs(book) == stored
    assert (tmp_path / "maps" / "nbo_b" / "nbo_b.gpkg").is_file()
