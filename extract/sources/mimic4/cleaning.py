"""Units and ranges of measured values.

Units are repaired by item id, never by guessing from the value, and every range rule is applied; what either removed is
counted. `paper` repeats what MedFuse computes: height in inches stays, Fahrenheit is recognised by its size, every
inspired oxygen is divided by 100, no range is applied.
"""

from collections import Counter

import numpy as np

from extract.sources.mimic4 import variables as v

FAHRENHEIT_FROM = 79  # MedFuse's guess


def clean(item: np.ndarray, channel: np.ndarray, values: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """Repair units by item id, then apply the range rules.

    Args:
        item: item ids, [n].
        channel: place in `VARIABLES`, [n].
        values: numbers as recorded, [n]; NaN where there is none.
        counts: missing, implausible and clamped values are added here, by channel.

    Returns:
        Float64 [n] in the channel's unit, NaN where unusable.
    """
    values = _shared_units(item, values)
    values[item == v.FAHRENHEIT] = (values[item == v.FAHRENHEIT] - 32) / 1.8
    values[item == v.INCHES] *= 2.54
    values[(item == v.FIO2) & (values > 1)] /= 100
    low, high = (np.array([variable.drop[side] for variable in v.VARIABLES])[channel] for side in (0, 1))
    floor, ceiling = (np.array([variable.valid[side] for variable in v.VARIABLES])[channel] for side in (0, 1))
    outside = (values < low) | (values > high)
    _count(counts, "without a number", channel, np.isnan(values))
    _count(counts, "implausible, dropped", channel, outside)
    values[outside] = np.nan
    _count(counts, "clamped", channel, (values < floor) | (values > ceiling))
    clamped: np.ndarray = np.clip(values, floor, ceiling)
    return clamped


def clean_as_published(item: np.ndarray, channel: np.ndarray, values: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """Compute what MedFuse does; arguments and result as of `clean`, coma channels hold ranks of categories."""
    values = _shared_units(item, values)
    hot = (channel == v.PLACE["temperature"]) & (values >= FAHRENHEIT_FROM)
    values[hot] = (values[hot] - 32) / 1.8
    values[item == v.FIO2] /= 100
    _count(counts, "without a number", channel, np.isnan(values))
    return values


def _shared_units(item: np.ndarray, values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64).copy()
    values[item == v.POUNDS] *= 0.453592
    values[np.isin(item, v.SATURATION) & (values <= 1)] *= 100
    return values


def _count(counts: Counter[str], what: str, channel: np.ndarray, hit: np.ndarray) -> None:
    for place, number in enumerate(np.bincount(channel[hit], minlength=len(v.VARIABLES))):
        if number:
            counts[f"{v.CHANNELS[place]} {what}"] += int(number)
