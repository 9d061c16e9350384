"""Waveforms at the rate of an encoder: polyphase resampling, cut to a length, silence refused.

Only what is kept is resampled, and a second more, which the filter reaches into: an hour costs what a clip does.
"""

import math

import numpy as np
from scipy.signal import resample_poly

from extract.values import UnreadableValue, Waveform


def resampled(value: Waveform, rate_hz: int, max_seconds: float) -> np.ndarray:
    """Return float32 samples at `rate_hz`, the first `max_seconds`.

    Raises:
        UnreadableValue: the clip is silent, or constant, which nobody hears either.
    """
    common = math.gcd(rate_hz, value.rate_hz)
    samples = value.samples[: math.ceil((max_seconds + 1) * value.rate_hz)]
    if value.rate_hz != rate_hz:
        samples = resample_poly(samples, rate_hz // common, value.rate_hz // common).astype(np.float32)
    samples = samples[: int(max_seconds * rate_hz)]
    if not len(samples) or not np.ptp(samples) > 0:
        raise UnreadableValue("audio is silent")
    return samples
