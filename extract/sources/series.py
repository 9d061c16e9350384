"""Irregular measurements to regular bins: the last value or the mean of a bin; NaN is unobserved."""

import numpy as np

from cache.errors import UserError


def whole_bins(hours: float, bin_hours: float) -> int:
    """Return how many bins a window has.

    Raises:
        UserError: not a whole number, or less than one.
    """
    bins = hours / bin_hours
    if abs(bins - round(bins)) > 1e-6 or bins < 1:
        raise UserError(f"hours {hours:g} is not a whole number of bin_hours {bin_hours:g}.")
    return round(bins)


def bin_series(
    hours: np.ndarray, channel: np.ndarray, values: np.ndarray, channels: int, bins: int, bin_hours: float
) -> np.ndarray:
    """Return float32 [bins, channels] with the last value in each bin.

    Args:
        hours: time of each measurement since the start, [n]; those outside [0, bins x bin_hours] are left out, and
            one exactly at the end belongs to the last bin.
        channel: its channel, int [n].
        values: its value, [n]; non-finite ones are left out.
        channels: number of channels.
        bins: number of bins.
        bin_hours: width of a bin.
    """
    grid = np.full((bins, channels), np.nan, np.float32)
    rows, place = _places(hours, values, bins, bin_hours)
    grid[place, channel[rows]] = values[rows]
    return grid


def bin_means(
    hours: np.ndarray, channel: np.ndarray, values: np.ndarray, channels: int, bins: int, bin_hours: float
) -> np.ndarray:
    """Return float32 [bins, channels] with the mean of each bin, summed in float64; arguments as of `bin_series`."""
    sums, counts = np.zeros((bins, channels)), np.zeros((bins, channels))
    rows, place = _places(hours, values, bins, bin_hours)
    np.add.at(sums, (place, channel[rows]), values[rows])
    np.add.at(counts, (place, channel[rows]), 1)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0).astype(np.float32)


def _places(hours: np.ndarray, values: np.ndarray, bins: int, bin_hours: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that count, by time, and their bins; at equal times the larger value is the later one."""
    use = np.flatnonzero((hours >= 0) & (hours <= bins * bin_hours) & np.isfinite(values))
    rows = use[np.lexsort((values[use], hours[use]))]
    return rows, np.minimum((hours[rows] / bin_hours).astype(int), bins - 1)
