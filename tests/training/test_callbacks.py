import numpy as np
import pandas as pd
import pytest

from kit.training.callbacks import BalancedSampler


def make_rows(sizes: dict[str, int]) -> pd.DataFrame:
    return pd.DataFrame(
        [(f"{s}{i}", s[0], s) for s, n in sizes.items() for i in range(n)], columns=["tile", "area", "scene"]
    )


def test_groups_are_drawn_equally_often():
    rows = make_rows({"a1": 100, "b1": 10, "b2": 2})
    keys = BalancedSampler().draw(rows, seed=0, epoch=0, n=9000)
    counts = rows.iloc[[row for _, row in keys]]["scene"].value_counts()
    # three groups, 9000 draws: 3000 each, standard deviation 45
    assert (counts - 3000).abs().max() < 4.5 * 45


def test_temperature_zero_draws_uniformly():
    rows = make_rows({"a1": 30, "b1": 10})
    np.testing.assert_allclose(BalancedSampler(temperature=0).weights(rows), 1 / 40)
    np.testing.assert_allclose(BalancedSampler(temperature=1).weights(rows)[0], 0.5 / 30)


def test_groups_may_be_areas():
    rows = make_rows({"a1": 4, "b1": 4, "b2": 4})
    weights = BalancedSampler(by=("area",)).weights(rows)
    assert weights[:4].sum() == pytest.approx(0.5)


def test_the_draw_depends_on_seed_and_epoch_alone():
    rows, sampler = make_rows({"a1": 9, "b1": 3}), BalancedSampler()
    assert sampler.draw(rows, 1, 2, 50) == sampler.draw(rows, 1, 2, 50)
    assert sampler.draw(rows, 1, 2, 50) != sampler.draw(rows, 1, 3, 50)
    assert sampler.draw(rows, 1, 2, 50) != sampler.draw(rows, 2, 2, 50)
    assert [place for place, _ in sampler.draw(rows, 1, 2, 50)] == list(range(50))
