"""Pickles of features, read through the restricted unpickler.

Two layouts: {id: array} or {id: {key: array}}, and that of MMSA and its kin: {"train": {"id": [N], key: [N, T, D],
"<key>_lengths": [N]}, "valid": ..., "test": ...}.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import UserError
from cache.importing.raw import Layout, RawSample, as_text, files_of, padded_rows
from cache.importing.unpickling import read_pickle

SPLITS = ("train", "valid", "dev", "test")
ID = "id"


def read_pickles(source: Path, layout: Layout) -> Iterator[RawSample]:
    """Yield the samples of a file, or of every file of a folder.

    Raises:
        UserError: it holds more than arrays and plain values, or another layout.
    """
    for _, path in files_of(source, (".pkl", ".pickle")):
        content = read_pickle(path)
        if not isinstance(content, dict) or not content:
            raise UserError(f"{path} holds no dictionary of samples.")
        splits = [name for name in SPLITS if isinstance(content.get(name), dict) and ID in content[name]]
        if splits:
            for name in splits:
                yield from _split(content[name], layout.key, path)
        else:
            yield from (_sample(as_text(i), value, layout.key) for i, value in content.items())


def _split(split: dict[Any, Any], key: str | None, path: Path) -> Iterator[RawSample]:
    if key is None or key not in split:
        arrays = [str(name) for name, value in split.items() if getattr(value, "ndim", 0) > 1]
        raise UserError(f"{path} holds {', '.join(arrays)}. Say which with `--key`.")
    ids, lengths = split[ID], split.get(f"{key}_lengths")
    if not all(isinstance(value, list | np.ndarray) for value in (ids, split[key], [] if lengths is None else lengths)):
        raise UserError(f"{path}: id, {key} and {key}_lengths must be arrays or lists.")
    cut = None if lengths is None else [int(n) for n in np.asarray(lengths, np.int64)]
    yield from padded_rows(split[key], [as_text(i) for i in ids], cut, path)


def _sample(sample_id: str, value: Any, key: str | None) -> RawSample:
    if isinstance(value, dict):
        value = value.get(key)
    if isinstance(value, list):
        try:
            value = np.asarray(value, np.float32)
        except (ValueError, TypeError):
            value = None
    if isinstance(value, np.ndarray):
        return RawSample(sample_id, value)
    return RawSample(sample_id, None, f"has no array '{key}'" if key else "is no array of numbers")
