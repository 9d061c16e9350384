"""Irregular measurements to regular bins: the last value in a bin wins, NaN is unobserved."""

import numpy as np


def bin_series(
    hours: np.ndarray, channel: np.ndarray, values: np.ndarray, channels: int, bins: int, bin_hours: float
) -> np.ndarray:
    """Return float32 [bins, channels].

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
    use = (hours >= 0) & (hours <= bins * bin_hours) & np.isfinite(values)
    order = np.lexsort((values[use], hours[use]))  # equal times: the larger value wins, whatever the input order
    place = np.minimum((hours[use][order] / bin_hours).astype(int), bins - 1)
    grid[place, channel[use][order]] = values[use][order]
    return grid
