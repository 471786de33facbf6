import numpy as np
import pytest

from kit.deploy.adaptive.risk import SURE, Change, change_of

SIDE = 40


def votes(p: float = 0.9) -> np.ndarray:
    """Building with a probability in the upper half, elsewhere with 0.2."""
    full = np.full((SIDE, SIDE), 0.2, np.float32)
    full[: SIDE // 2] = p
    return full


def changed(full: np.ndarray, *turned: tuple[slice, slice], counts: np.ndarray | None = None) -> Change:
    ended = full.copy()
    for where in turned:
        ended[where] = 1 - ended[where].round()
    return change_of([full], [ended], [np.ones(full.shape, bool) if counts is None else counts])


def index(mask: np.ndarray, p: np.ndarray) -> float:
    return p[mask].sum() / (mask.sum() + p[~mask].sum())


@pytest.mark.parametrize("turned", [np.s_[1, 1], np.s_[-1, 1]], ids=["lost", "gained"])
def test_the_mean_is_what_the_expected_index_changes(turned: tuple[int, int]):
    full = votes()
    mask = full > 0.5
    other = mask.copy()
    other[turned] = ~other[turned]
    assert changed(full, turned).mean == pytest.approx(index(other, full) - index(mask, full), rel=0.02)


def test_the_deviation_is_that_of_drawn_truths():
    """What turns together is building or not together: two squares, one lost and one gained."""
    full, rng = votes(0.6), np.random.default_rng(0)
    squares = np.s_[2:5, 2:5], np.s_[-5:-2, 2:6]
    mask = full > 0.5
    other = mask.copy()
    for square in squares:
        other[square] = ~other[square]
    found = []
    for _ in range(4000):
        truth = rng.random(full.shape) < full
        for square in squares:
            truth[square] = rng.random() < full[square][0, 0]
        found.append(np.subtract(*((m & truth).sum() / (m | truth).sum() for m in (other, mask))))
    change = changed(full, *squares)
    assert change.deviation == pytest.approx(np.std(found), rel=0.05)
    assert change.mean == pytest.approx(np.mean(found), abs=0.1 * change.deviation)


def test_one_roof_weighs_more_than_as_many_pixels_apart():
    apart = [np.s_[2 + 2 * n, 2] for n in range(9)]
    together = changed(votes(), np.s_[2:5, 2:5])
    scattered = changed(votes(), *apart)
    assert together.mean == pytest.approx(scattered.mean)
    assert together.deviation == pytest.approx(3 * scattered.deviation)


def test_what_does_not_count_does_not_change():
    counts = np.ones((SIDE, SIDE), bool)
    counts[0] = False
    assert changed(votes(), np.s_[0, :5], counts=counts) == Change(0.0, 0.0)
    assert changed(votes()) == Change(0.0, 0.0)
    assert changed(np.zeros((SIDE, SIDE), np.float32), np.s_[0, 0], counts=~np.ones((SIDE, SIDE), bool)).most() == 0


def test_chance_evens_out_over_many_images_and_the_mean_does_not():
    change = Change(-0.001, 0.002)
    assert change.most() == pytest.approx(0.001 + 0.002 * SURE)
    assert change.most(0.25) == pytest.approx(0.001 + 0.001 * SURE)
    one = changed(votes(), np.s_[2:5, 2:5])
    full, ended = votes(), votes()
    ended[2:5, 2:5] = 0
    counts = np.ones(full.shape, bool)
    four = change_of([full] * 4, [ended] * 4, [counts] * 4)
    assert (four.mean, four.deviation) == (pytest.approx(one.mean), pytest.approx(one.deviation / 2))
