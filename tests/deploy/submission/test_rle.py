"""Run lengths: Kaggle's order by hand, there and back for any mask, and tables that are not what they should be."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deploy_fakes import noise, write_tiff
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kit.data.sources.chips import Chip, find_chips
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.submission.checks import check
from kit.deploy.submission.mask_tiff import decode_mask
from kit.deploy.submission.rle import decode, encode, read_rle, write_rle
from kit.deploy.submission.submit import SubmitOptions, submit
from kit.errors import SubmissionError
from kit.pipeline.export import Exported

MASKS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1))

BY_HAND = np.array(
    [
        [0, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 1],
    ],
    np.uint8,
)  # columns, from above: 1-3, 4-6, 7-9, 10-12


def test_the_order_is_kaggle_s():
    assert encode(BY_HAND) == "2 4 7 1 12 1"
    np.testing.assert_array_equal(decode("2 4 7 1 12 1", (3, 4)), BY_HAND)
    assert encode(np.zeros((3, 4), np.uint8)) == ""
    assert encode(np.ones((3, 4), np.uint8)) == "1 12"


@settings(deadline=None)
@given(MASKS)
@example(np.zeros((1, 1), np.uint8))
@example(np.ones((5, 1), np.uint8))
@example(np.eye(7, dtype=np.uint8))
def test_there_and_back(mask: np.ndarray):
    runs = encode(mask)
    back = decode(runs, mask.shape)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, mask)
    assert encode(back) == runs


@settings(deadline=None)
@given(MASKS)
def test_runs_are_as_few_as_can_be(mask: np.ndarray):
    """Counted in a plain loop over columns."""
    expected, before = [], 0
    for place, value in enumerate(
        (mask[row, column] for column in range(mask.shape[1]) for row in range(len(mask))), 1
    ):
        if value and not before:
            expected += [place, 0]
        if value:
            expected[-1] += 1
        before = value
    assert encode(mask) == " ".join(map(str, expected))


def test_a_large_mask():
    mask = (noise(1024, 1024, 1)[..., 0] > 128).astype(np.uint8)  # more characters than a field of csv may have
    np.testing.assert_array_equal(decode(encode(mask), mask.shape), mask)


def test_runs_that_touch_are_one(tmp_path: Path):
    np.testing.assert_array_equal(decode(" 2 2  4 2\n7 1 12 1", (3, 4)), BY_HAND)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("1 2 3", "3 numbers, expected pairs"),
        ("one 2", "'one 2', which is not a list of numbers"),
        ("1 2.5", "not a list of numbers"),
        ("-1 2", "not a list of numbers"),
        ("1_0 2", "not a list of numbers"),
        (f"1 {'9' * 19}", "not a list of numbers"),
        ("0 2", "a start or length of 0"),
        ("3 0", "a start or length of 0"),
        ("12 2", "a run that ends after the last of 12 pixels"),
        ("13 1", "after the last of 12"),
        (f"{'9' * 18} {'9' * 18}", "after the last of 12"),
        ("5 2 1 2", "overlap or are out of order"),
        ("1 3 3 2", "overlap or are out of order"),
        ("1 3 1 3", "overlap or are out of order"),
        ("1 1 " * 20, "80 characters, more than 12 pixels need"),
    ],
)
def test_wrong_runs_are_refused(runs: str, message: str):
    with pytest.raises(SubmissionError, match=message):
        decode(runs, (3, 4))


def test_a_table_there_and_back(tmp_path: Path):
    masks = [("x", BY_HAND), ("y, z", np.zeros((2, 2), np.uint8)), ("big", (noise(900, 900, 1)[..., 0] & 1))]
    write_rle(masks, tmp_path / "rle.csv")
    assert (tmp_path / "rle.csv").read_text().splitlines()[:3] == ["ImageId,EncodedPixels", "x,2 4 7 1 12 1", '"y, z",']
    rows = dict(read_rle(tmp_path / "rle.csv"))
    assert list(rows) == ["x", "y, z", "big"]
    for name, mask in masks:
        np.testing.assert_array_equal(decode(rows[name], mask.shape), mask)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with ''"),
        ("id,rle\nx,1 2\n", "begins with 'id,rle'"),
        ("ImageId,EncodedPixels\nx\n", "line 2 .* has 1 columns"),
        ("ImageId,EncodedPixels\nx,1 2,3\n", "line 2 .* has 3 columns"),
        ('ImageId,EncodedPixels\nx,"1 2\n', "cannot read"),
        ("ImageId,EncodedPixels\nx\x00,1 2\n", "cannot read|line 2"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SubmissionError, match=message):
        list(read_rle(tmp_path / "t.csv"))


def test_no_table(tmp_path: Path):
    with pytest.raises(SubmissionError, match="cannot read"):
        list(read_rle(tmp_path / "none.csv"))
    (tmp_path / "t.csv").write_bytes(b"ImageId,EncodedPixels\n\xff\xfe,1 2\n")
    with pytest.raises(SubmissionError, match="cannot read"):
        list(read_rle(tmp_path / "t.csv"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Run lengths for the chips x and y, 4 x 3 px each."""
    for name in "xy":
        write_tiff(tmp_path / "images" / f"{name}.tif", noise(3, 4))
    write_rle([("x", BY_HAND), ("y", 1 - BY_HAND)], tmp_path / "rle.csv")
    return tmp_path / "rle.csv"


def images(table: Path) -> list[Chip]:
    return find_chips(table.parent / "images")


def test_a_table_is_checked(table: Path):
    checked = check(table, images(table), share=(0.5, "tier1"))
    assert [(row.name, row.mark) for row in checked.checks] == [
        ("names", "ok"), ("readable", "ok"), ("buildings", "ok"), ("empty", "ok")
    ]  # fmt: skip
    assert checked.require().building_fraction == 0.5
    with pytest.raises(SubmissionError, match=r"rle\.csv holds run lengths, which have no image sizes") as error:
        check(table)
    assert "--test" in error.value.hint


@pytest.mark.parametrize(
    ("row", "name", "fault"),
    [
        ("", "names", "y is missing"),
        ("y,1 1\ny,2 1\n", "names", "y occurs 2 times"),
        ("y,\nw,\n", "names", "w is not <chip> of the test set"),
        ("y,12 2\n", "readable", "y has a run that ends after the last of 12 pixels"),
    ],
)
def test_faults_of_a_table(table: Path, row: str, name: str, fault: str):
    table.write_text(f"ImageId,EncodedPixels\nx,2 4\n{row}")
    checked = check(table, images(table))
    assert {row.name: row.faults for row in checked.checks if row.faults} == {name: (fault,)}


def test_masks_and_their_run_lengths_agree(table: Path, tmp_path: Path):
    for name, mask in (("x", BY_HAND), ("y", 1 - BY_HAND)):
        write_tiff(tmp_path / "masks" / f"{name}.tif", mask)
    for one, other in ((table, tmp_path / "masks"), (tmp_path / "masks", table)):
        checked = check(one, images(table), other)
        assert "Jaccard 1.0000, 100.00%" in checked.checks[-1].result
        assert checked.differing == ()


def test_submit_writes_them_from_the_masks_that_stand(chips: Path, tiny_weights: Exported, tmp_path: Path):
    out = tmp_path / "one"
    submit(chips, tiny_weights.path, out, SubmitOptions(EngineOptions(tuning=False)))
    assert not (out / "rle.csv").exists()
    submit(chips, tiny_weights.path, out, SubmitOptions(EngineOptions(tuning=False), rle=True))
    rows = dict(read_rle(out / "rle.csv"))
    assert list(rows) == list("abcd")
    for name, runs in rows.items():
        mask = decode_mask((out / f"{name}.tif").read_bytes(), name)
        np.testing.assert_array_equal(decode(runs, mask.shape), mask)
    submit(chips, tiny_weights.path, out, SubmitOptions(EngineOptions(tuning=False)))
    assert (out / "rle.csv").exists()  # still of these masks
    (out / "b.tif").unlink()
    submit(chips, tiny_weights.path, out, SubmitOptions(EngineOptions(tuning=False)))
    assert not (out / "rle.csv").exists()


def test_the_commands(chips: Path, tiny_weights: Exported, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]):
    options = ("--weights", tiny_weights.path, "--no-tune", "--name", "one", "--root", tmp_path)
    code, out, err = cli("submit", chips, "--rle", *options)
    assert code == 0, err
    table = tmp_path / "submissions/one/rle.csv"
    assert out.splitlines() == [str(table), str(tmp_path / "submissions/one.tgz")]
    code, out, _ = cli("check-submission", table, "--test", chips, "--against", tmp_path / "submissions/one.tgz")
    assert code == 0
    assert "Jaccard 1.0000" in out
    code, out, err = cli("check-submission", table)
    assert (code, out) == (1, "")
    assert "hint:  give the test set: --test" in err
