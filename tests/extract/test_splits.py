"""Splits: exact shares per stratum, whole groups, no dependence on the order of rows."""

import numpy as np
import pytest

from extract.sources.splits import hash_fraction, stratified_share


def test_each_label_gives_its_share() -> None:
    labels = np.repeat([0.0, 1.0, np.nan], [70, 20, 10])
    chosen = stratified_share([str(n) for n in range(100)], labels, 0.2, "draw:0")
    assert [int(part.sum()) for part in np.split(chosen, [70, 90])] == [14, 4, 2]


def test_groups_stay_whole_and_count_as_positive_with_one_positive_row() -> None:
    groups = [str(n // 3) for n in range(120)]  # 40 groups of three rows
    labels = np.zeros(120)
    labels[1:30:3] = 1  # one positive row in ten groups
    chosen = stratified_share(groups, labels, 0.3, "draw:0").reshape(40, 3)
    assert (chosen.all(axis=1) == chosen.any(axis=1)).all()
    assert chosen[:10, 0].sum() == 3
    assert chosen[10:, 0].sum() == 9


def test_the_order_of_rows_does_not_matter_and_the_salt_does() -> None:
    draw = np.random.default_rng(0)
    groups, labels = np.array([f"g{n}" for n in range(200)]), draw.integers(0, 3, 200)
    chosen = stratified_share(groups.tolist(), labels, 0.25, "draw:0")
    order = draw.permutation(200)
    np.testing.assert_array_equal(
        stratified_share(groups[order].tolist(), labels[order], 0.25, "draw:0"), chosen[order]
    )
    assert (stratified_share(groups.tolist(), labels, 0.25, "draw:1") != chosen).any()


def test_hash_fractions_are_uniform_and_fixed() -> None:
    fractions = np.array([hash_fraction(str(n), "salt") for n in range(4000)])
    assert np.histogram(fractions, 4, (0, 1))[0] == pytest.approx([1000] * 4, rel=0.1)
    assert hash_fraction("1", "salt") == pytest.approx(fractions[1])
    assert hash_fraction("1", "other") != fractions[1]
