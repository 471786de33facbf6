"""Masks tidied: by hand, for any mask, and from the card to the chips of a submission."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from archives import doctored
from deploy_fakes import noise, write_tiff
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kit.data.rasters import read_image
from kit.deploy.engine.predict import predict_image
from kit.deploy.mosaics import wide
from kit.deploy.submission import submit as room
from kit.deploy.submission.mask_tiff import decode_mask
from kit.deploy.weights.card import Card, Postprocess
from kit.deploy.weights.cleaning import AS_SHIPPED, Cleaning, chosen_cleaning, clean, clean_image
from kit.deploy.weights.load import load_weights
from kit.errors import WeightsError
from kit.pipeline.export import Exported

Cli = Callable[..., tuple[int, str, str]]
MASKS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 1))
SIZES = st.floats(0, 30)


def drawn(*rows: str) -> np.ndarray:
    """A mask from lines of text: # is building."""
    return np.array([[character == "#" for character in row] for row in rows], np.uint8)


BEFORE = drawn(
    "##..........",
    "#.....##....",
    "......##....",
    "........##..",
    "........##..",
    ".#####......",
    ".#.##...#...",
    ".#####.....#",
    "..........##",
)


def test_small_objects_go_but_not_at_the_border():
    """The pair of squares hangs together at a corner: 8 pixels; the speck has 1, and those in corners go on outside."""
    found = clean(BEFORE * 0.9, smallest_px=8)
    expected = BEFORE.copy()
    expected[6, 8] = 0
    np.testing.assert_array_equal(found, expected)
    expected[1:5, 6:10] = 0
    np.testing.assert_array_equal(clean(BEFORE * 0.9, smallest_px=9), expected)


def test_small_holes_are_filled_but_not_open_ones():
    """The left hole is closed; the right notch is open by a straight way, so it is none."""
    found = clean(BEFORE * 0.9, holes_px=2)
    expected = BEFORE.copy()
    expected[6, 2] = 1
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(clean(BEFORE * 0.9, holes_px=1), BEFORE)


def test_a_hole_does_not_leak_out_at_a_corner():
    ring = drawn(".....", ".###.", ".#.#.", ".##..", ".....")  # closed for 4 neighbours alone
    assert clean(ring * 1.0, holes_px=2)[2, 2] == 1
    cut = drawn("####", "#..#", "#..#", "#.##")  # the gap at the border may go on in the neighbour
    np.testing.assert_array_equal(clean(cut * 1.0, holes_px=100), cut)


def test_the_threshold_is_exclusive():
    probability = np.array([[0.4, 0.5, 0.6]], np.float32)
    assert clean(probability).tolist() == [[0, 0, 1]]
    assert clean(probability, 0.39).tolist() == [[1, 1, 1]]
    assert clean(probability).dtype == np.uint8


def parts(mask: np.ndarray, neighbours: int) -> list[set[tuple[int, int]]]:
    """Connected pixels, found by walking; not those that reach the border."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0) and (neighbours == 8 or 0 in (y, x))]
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found = []
    while left:
        part, todo = set(), [left.pop()]
        while todo:
            y, x = todo.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= near
            todo += near
        if not any(y in (0, mask.shape[0] - 1) or x in (0, mask.shape[1] - 1) for y, x in part):
            found.append(part)
    return found


@settings(deadline=None)
@given(MASKS, SIZES, SIZES)
def test_any_mask(mask: np.ndarray, smallest_px: float, holes_px: float):
    expected = mask.copy()
    for part in parts(expected, 8):
        if len(part) < smallest_px:
            expected[tuple(zip(*part, strict=True))] = 0
    for part in parts(1 - expected, 4):
        if len(part) < holes_px:
            expected[tuple(zip(*part, strict=True))] = 1
    probability = mask * 0.8
    found = clean(probability, 0.5, smallest_px, holes_px)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(probability, mask * 0.8)
    np.testing.assert_array_equal(clean(found * 1.0, 0.5, smallest_px, holes_px), found)  # clean once, clean for good
    if smallest_px <= 1 and holes_px <= 1:
        np.testing.assert_array_equal(found, mask)


def test_sizes_are_of_the_ground():
    """Four pixels: 4 m2 at 1 m, a quarter of that at 0.5 m."""
    probability = np.zeros((9, 9), np.float32)
    probability[3:5, 3:5] = 1
    image = noise(9, 9)
    for gsd_m, area_m2 in ((1.0, 4.0), (0.5, 1.0), (0.25, 0.25)):
        assert clean_image(probability, image, Cleaning(smallest_m2=area_m2), gsd_m).sum() == 4
        assert clean_image(probability, image, Cleaning(smallest_m2=area_m2 * 1.01), gsd_m).sum() == 0
        assert clean_image(1 - probability, image, Cleaning(holes_m2=area_m2), gsd_m).sum() == 77
        assert clean_image(1 - probability, image, Cleaning(holes_m2=area_m2 * 1.01), gsd_m).sum() == 81


def test_nothing_is_built_where_alpha_is_0():
    probability = np.ones((9, 9), np.float32)
    probability[3:5, 3:5] = 0
    image = noise(9, 9, 4)
    image[..., 3] = 255
    image[3, 3, 3] = 0
    mask = clean_image(probability, image, Cleaning(holes_m2=100), 1.0)
    assert mask.sum() == 80
    assert mask[3, 3] == 0


CHOSEN = Postprocess(threshold=0.45, smallest_m2=3.0, hole_m2=2.0, score_before=0.78, score_after=0.79)


def test_the_card_s_choice_and_the_hand_s(tiny_weights: Exported):
    card = replace(tiny_weights.card, postprocess=CHOSEN)
    assert chosen_cleaning(card, "x.pt", False) == AS_SHIPPED
    assert chosen_cleaning(card, "x.pt", True) == Cleaning(0.45, 3.0, 2.0)
    assert chosen_cleaning(card, "x.pt", True, smallest_m2=0.0) == Cleaning(0.45, 0.0, 2.0)
    assert chosen_cleaning(tiny_weights.card, "x.pt", False, 0.0, None, 4.0) == Cleaning(0.0, 0.0, 4.0)
    assert str(Cleaning(0.45, 3.0, 2.0)) == "threshold 0.45, smallest 3 m2, holes 2 m2"
    for size in (float("inf"), float("nan"), -1.0):
        with pytest.raises(WeightsError, match="--holes is"):
            chosen_cleaning(card, "x.pt", False, holes_m2=size)
    with pytest.raises(WeightsError, match=r"x\.pt has no postprocess in its card") as error:
        chosen_cleaning(tiny_weights.card, "x.pt", True)
    assert "--threshold" in error.value.hint


def test_the_card_keeps_it(tiny_weights: Exported):
    import json

    card = replace(tiny_weights.card, postprocess=CHOSEN)
    assert json.loads(card.to_json())["postprocess"] == asdict(CHOSEN)
    assert Card.from_json(card.to_json()) == card
    assert json.loads(tiny_weights.card.to_json())["postprocess"] is None
    older = json.loads(tiny_weights.card.to_json())
    older.pop("postprocess")
    assert Card.from_json(json.dumps(older)) == tiny_weights.card
    for wrong, message in (([], ": Input should be an object"), ({"threshold": 0.5}, ".smallest_m2: Field required")):
        with pytest.raises(WeightsError, match=f"field postprocess{message}"):
            Card.from_json(json.dumps(older | {"postprocess": wrong}))
    with pytest.raises(WeightsError, match=r"field postprocess.hole_m2: .*, not '2'"):
        Card.from_json(json.dumps(older | {"postprocess": asdict(CHOSEN) | {"hole_m2": "2"}}))


@pytest.fixture
def weights(tiny_weights: Exported, tmp_path: Path) -> Path:
    """A copy of the tiny weights whose card has a choice."""
    card = replace(tiny_weights.card, postprocess=CHOSEN).to_json()
    return doctored(tiny_weights.path, tmp_path / "tidy.pt", "extra/card.json", lambda _: card.encode())


def test_cleaned_submissions_are_told_apart(
    chips: Path, tiny_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    predicted: list[str] = []
    monkeypatch.setattr(wide, "read_image", lambda path: (predicted.append(path.stem), read_image(path))[1])
    weights, out = load_weights(tiny_weights.path), tmp_path / "one"
    pixel_m2 = 0.15**2
    ways = [
        AS_SHIPPED,
        Cleaning(0.45),
        Cleaning(0.5, 6 * pixel_m2),
        Cleaning(0.5, 6 * pixel_m2, 4 * pixel_m2),
        AS_SHIPPED,
    ]
    seen = set()
    for cleaning in ways:
        for expected in ("abcd", ""):
            predicted.clear()
            room.submit(
                chips, tiny_weights.path, out, room.SubmitOptions(room.EngineOptions(tuning=False), cleaning=cleaning)
            )
            assert "".join(predicted) == expected
        for name in "abcd":
            image = read_image(chips / f"{name}.tif")
            found = decode_mask((out / f"{name}.tif").read_bytes(), name)
            np.testing.assert_array_equal(
                found, clean_image(predict_image(weights, image), image, cleaning, weights.card.gsd_m)
            )
        seen.add(out.with_name("one.tgz").read_bytes())
    assert len(seen) == 4


def test_the_command(chips: Path, weights: Path, tmp_path: Path, cli: Cli):
    def masks(name: str, *options: object) -> tuple[str, dict[str, bytes]]:
        given = ("--weights", weights, "--no-tune", "--name", name, "--root", tmp_path)
        code, _, err = cli("submit", chips, *given, *options)
        assert code == 0, err
        return err, {path.name: path.read_bytes() for path in (tmp_path / "submissions" / name).glob("*.tif")}

    notices, plain = masks("plain")
    assert "masks:" not in notices
    assert masks("other", "--no-clean")[1] == plain
    notices, tidy = masks("tidy", "--clean")
    assert "masks: threshold 0.45, smallest 3 m2, holes 2 m2" in notices
    assert tidy != plain
    notices, by_hand = masks("hand", "--threshold", "0.45", "--smallest", "3", "--holes", "2")
    assert by_hand == tidy
    assert masks("less", "--clean", "--holes", "0")[1] != tidy
    for option in ("--threshold", "--smallest", "--holes"):
        assert cli("submit", chips, option, "-0.1")[0] == 2


def test_no_choice_in_the_card(chips: Path, tiny_weights: Exported, tmp_path: Path, cli: Cli):
    code, out, err = cli("submit", chips, "--weights", tiny_weights.path, "--clean", "--root", tmp_path)
    assert (code, out) == (1, "")
    assert "tiny.pt has no postprocess in its card" in err
    assert not (tmp_path / "submissions").exists()


def test_a_written_tiff_is_what_was_cleaned(tmp_path: Path):
    """Masks come out contiguous and of uint8, whatever was done."""
    for cleaning in (AS_SHIPPED, Cleaning(0.5, 2, 2)):
        mask = clean_image(BEFORE * 0.9, noise(*BEFORE.shape), cleaning, 1.0)
        assert mask.dtype == np.uint8
        write_tiff(tmp_path / "x.tif", mask)
        np.testing.assert_array_equal(decode_mask((tmp_path / "x.tif").read_bytes(), "x"), mask)
