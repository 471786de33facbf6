"""Polygons in a temporary file."""

import errno
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from kit.data import polygon_store
from kit.data.polygon_store import PolygonStore
from kit.errors import OutputError

BOXES = np.array([shapely.box(n, 0, n + 1, 1) if n % 4 else None for n in range(10)], dtype=object)


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(1, 9), max_size=3))
def test_a_store_is_a_sequence(places: list[int], cuts: list[int]):
    store = PolygonStore()
    for part in np.split(BOXES, sorted(cuts)):
        store.add(part)
    assert len(store) == 10
    assert list(store[np.array(places, np.int64)]) == list(BOXES[places])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygon_store, "BLOCK", 4)
        assert [len(block) for block in store.blocks()] == [4, 4, 2]
        assert list(np.concatenate([*store.blocks()])) == list(BOXES)


def test_a_full_disk_names_the_folder_of_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Full:
        def write(self, content: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    store = PolygonStore()
    store.file = Full()  # type: ignore[assignment]
    with pytest.raises(OutputError, match="cannot write temporary files: No space left") as caught:
        store.add(BOXES)
    assert "TMPDIR" in caught.value.hint
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError, match="cannot write temporary files"):
        PolygonStore()
