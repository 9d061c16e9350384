"""The layout that `selfmask cache export` writes to HDF5 and safetensors: flat tokens with offsets.

tokens [T, D], offsets int64 [N + 1], maskable uint8 [T], identities uint8: JSON of N pairs (sample id, digest).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import UserError
from cache.importing.raw import RawSample

NAMES = ("tokens", "offsets", "maskable", "identities")


def is_ragged(names: Any) -> bool:
    """Tell whether a file has the arrays of an export."""
    return all(name in names for name in NAMES)


def ragged_samples(arrays: Mapping[str, Any], path: Path) -> Iterator[RawSample]:
    """Yield the samples of an export; `tokens` and `maskable` may read lazily.

    Raises:
        UserError: the arrays do not fit each other.
    """
    offsets = np.asarray(arrays["offsets"][:])
    try:
        identities = [(str(i), str(d)) for i, d in json.loads(np.asarray(arrays["identities"][:]).tobytes())]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} has damaged identities. Export it again.") from error
    tokens = len(arrays["tokens"])
    if (
        len(offsets) != len(identities) + 1
        or (np.diff(offsets, prepend=0) < 0).any()
        or (offsets[0], offsets[-1]) != (0, tokens)
        or len(arrays["maskable"]) != tokens
    ):
        raise UserError(f"{path} has offsets that do not fit its tokens. Export it again.")
    for (sample_id, digest), start, end in zip(identities, offsets, offsets[1:], strict=False):
        maskable = np.asarray(arrays["maskable"][start:end]).astype(bool)
        yield RawSample(sample_id, np.asarray(arrays["tokens"][start:end]), maskable=maskable, digest=digest)
