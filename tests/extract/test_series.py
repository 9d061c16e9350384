"""Binning agrees with the obvious loop, whatever the order of the measurements."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.sources.series import bin_series

MEASUREMENTS = st.lists(
    st.tuples(st.integers(-4, 20).map(lambda n: n / 4), st.integers(0, 2), st.integers(-9, 9).map(float)), max_size=40
)


def bin_by_loop(cells: list[tuple[float, int, float]], bins: int) -> np.ndarray:
    grid = np.full((bins, 3), np.nan, np.float32)
    for hour, channel, value in sorted(cells, key=lambda cell: (cell[0], cell[2])):
        if 0 <= hour <= bins:
            grid[min(int(hour), bins - 1), channel] = value
    return grid


def binned(cells: list[tuple[float, int, float]], bins: int = 4) -> np.ndarray:
    hours, channel, value = (np.array([cell[k] for cell in cells], float) for k in range(3))
    return bin_series(hours, channel.astype(int), value, 3, bins, 1.0)


@settings(max_examples=60, deadline=None)
@given(cells=MEASUREMENTS, seed=st.integers(0, 99))
def test_agrees_with_a_loop_in_any_order(cells: list[tuple[float, int, float]], seed: int) -> None:
    shuffled = [cells[i] for i in np.random.default_rng(seed).permutation(len(cells))]
    np.testing.assert_array_equal(binned(shuffled), bin_by_loop(cells, 4))


def test_unobserved_is_nan_and_never_carried_forward() -> None:
    grid = binned([(0.5, 0, 7.0), (3.0, 1, 8.0)])
    assert grid.shape == (4, 3)
    assert grid.dtype == np.float32
    assert np.isfinite(grid).sum() == 2
    assert grid[0, 0] == 7
    assert grid[3, 1] == 8


def test_last_value_of_a_bin_wins_even_if_unsorted() -> None:
    assert binned([(1.9, 0, 5.0), (1.1, 0, 6.0)])[1, 0] == 5


def test_values_that_are_not_finite_do_not_hide_the_one_before() -> None:
    assert binned([(1.1, 0, 6.0), (1.9, 0, np.nan), (1.8, 0, np.inf)])[1, 0] == 6


def test_the_end_belongs_to_the_last_bin_and_later_is_left_out() -> None:
    assert binned([(4.0, 2, 1.0)])[3, 2] == 1
    assert np.isnan(binned([(4.01, 2, 1.0), (-0.01, 2, 1.0)])).all()


def test_half_hour_bins() -> None:
    grid = bin_series(np.array([0.4, 0.5]), np.array([0, 0]), np.array([1.0, 2.0]), 1, 4, 0.5)
    np.testing.assert_array_equal(grid[:, 0], [1, 2, np.nan, np.nan])
