"""The stored types of tokens: rounding to them, and back to float32.

NumPy has no bfloat16, so its bits are stored as uint16. int8 keeps one float32 scale a token (its largest magnitude
divided by 127): a quarter of float32's bytes, and an error of at most half a scale per value, because one scale for a
whole part would let a single large token erase the small ones. Costs one pass over the values.
"""

from typing import Any

import numpy as np

DTYPES = ("float16", "bfloat16", "float32", "int8")
INT8_LARGEST = 127
# The smallest magnitude that rounds to infinity; float32 and int8 take every finite float32.
OVERFLOW = {
    "float16": 65520.0,
    "bfloat16": float(np.array(0x7F7F8000, np.uint32).view(np.float32)),
    "float32": np.inf,
    "int8": np.inf,
}


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy type on disk."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def token_bytes(width: int, dtype: str) -> int:
    """Return the bytes that one token takes on disk."""
    return width * stored_dtype(dtype).itemsize + (4 if dtype == "int8" else 0)


def fits(values: np.ndarray, dtype: str) -> bool:
    """Tell whether all values, float32 or already in the stored type float16, are finite and stay so when stored."""
    if values.dtype == np.float16:  # NumPy has no fast arithmetic for it: an exponent of ones is infinite or NaN
        return not values.size or int((values.view(np.uint16) & np.uint16(0x7C00)).max()) < 0x7C00
    # NaN spreads through max and min, and no comparison with it is true.
    return not values.size or bool(max(float(values.max()), -float(values.min())) < OVERFLOW[dtype])


def to_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round finite float32 values to a floating-point type; values beyond its range become infinite."""
    if values.dtype == dtype:
        return values
    import torch  # here, since readers do not need it; it rounds three times as fast as NumPy

    exact = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))
    rounded = exact.to(torch.bfloat16 if dtype == "bfloat16" else torch.float16)
    return np.asarray(rounded.view(torch.int16).numpy()).view(stored_dtype(dtype))


def quantise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round finite float32 tokens [T, D] to int8; returns int8 [T, D] and the tokens' scales, float32 [T]."""
    largest: np.ndarray = np.maximum(values.max(axis=1, initial=0), -values.min(axis=1, initial=0))
    scales = (largest / np.float32(INT8_LARGEST)).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(1))[:, None]  # a token of zeros has scale zero
    rounded: np.ndarray = values / divisors
    np.rint(rounded, out=rounded)
    np.clip(rounded, -INT8_LARGEST, INT8_LARGEST, out=rounded)  # beyond it only where a scale is subnormal
    return rounded.astype(np.int8), scales


def from_stored(values: np.ndarray, dtype: str, scales: np.ndarray | None = None) -> np.ndarray:
    """Return float32 values; `scales` [T] belong to int8 tokens [T, D]."""
    if dtype == "int8":
        if scales is None:
            raise ValueError("int8 tokens have no meaning without their scales")
        product: np.ndarray = np.multiply(values, scales[:, None], dtype=np.float32)
        return product
    if dtype == "bfloat16":
        bits: np.ndarray = values.astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32)
    return values.astype(np.float32)
