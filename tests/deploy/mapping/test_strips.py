from pathlib import Path

import numpy as np
import pytest

from kit.deploy.mapping.strips import Strips

LEVELS, VALIDS = (0, 40, 70, 100), (0, 80, 140, 200)


def content(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(index)
    rows = LEVELS[index + 1] - LEVELS[index]
    level, valid = random.integers(0, 256, (rows, 30), dtype=np.uint8), random.random((2 * rows, 61)) > 0.5
    return level, valid, random.integers(0, 2**32, (7, 30), dtype=np.uint32)


@pytest.fixture
def strips(tmp_path: Path) -> Strips:
    found = Strips(tmp_path / "s", {"a": 1}, LEVELS, VALIDS)
    for index in range(3):
        found.put(*content(index))
    return found


def again(strips: Strips, **key: object) -> Strips:
    return Strips(strips.folder, {"a": 1} | key, LEVELS, VALIDS)


@pytest.mark.parametrize(("start", "stop"), [(0, 100), (0, 40), (39, 41), (40, 70), (10, 90), (99, 100)])
def test_rows_are_read_across_strips(strips: Strips, start: int, stop: int):
    level, valid, _ = (np.concatenate(parts) for parts in zip(*map(content, range(3)), strict=True))
    np.testing.assert_array_equal(strips.level(start, stop), level[start:stop])
    np.testing.assert_array_equal(strips.valid(2 * start, 2 * stop), valid[2 * start : 2 * stop])


def test_finished_strips_are_kept(tmp_path: Path):
    first = Strips(tmp_path / "s", {"a": 1}, LEVELS, VALIDS)
    assert first.carried() is None
    first.put(*content(0))
    first.put(*content(1))
    (first.folder / ".strip00002.9.part.npz").write_bytes(b"half")
    found = again(first)
    assert found.done == 2
    np.testing.assert_array_equal(found.carried(), content(1)[2])
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "carry00001.npz", "key.json", "strip00000.npz", "strip00001.npz",
    ]  # fmt: skip


def test_strips_of_another_map_are_removed(strips: Strips):
    assert again(strips).done == 3
    assert again(strips, a=2).done == 0
    assert [path.name for path in strips.folder.iterdir()] == ["key.json"]


def test_a_lost_strip_and_those_below_are_made_again(strips: Strips):
    (strips.folder / "strip00002.npz").write_bytes(b"")  # as a loss of power leaves it
    assert again(strips).done == 0  # the carry of the second is gone: no other strip can be gone on with
    other = Strips(strips.folder.with_name("t"), {}, LEVELS, VALIDS)
    other.put(*content(0))
    other.put(*content(1))
    assert Strips(other.folder, {}, LEVELS, VALIDS).done == 2


def test_strips_without_rows(tmp_path: Path):
    """Where the scene is coarser than what is predicted, a strip may hold no row of it."""
    found = Strips(tmp_path / "s", {}, (0, 2, 4, 6), (0, 1, 1, 2))
    for index in range(3):
        rows = np.diff((0, 1, 1, 2))[index]
        found.put(np.full((2, 5), index, np.uint8), np.ones((rows, 3), bool), np.zeros((1, 5), np.uint32))
    assert found.valid(0, 2).shape == (2, 3)
    assert found.level(1, 5)[:, 0].tolist() == [0, 1, 1, 2]
