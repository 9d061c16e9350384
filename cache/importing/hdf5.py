"""HDF5: a folder with a file per sample, or one file for all of them. Reads one sample at a time.

Links and data sets that point to other files are refused: a file that was received must not choose what is read here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache.errors import UserError
from cache.importing.ragged import is_ragged, ragged_samples
from cache.importing.raw import Layout, RawSample, as_text, files_of, padded_rows

SUFFIXES = (".h5", ".hdf5", ".csd")
ID = "{id}"


def read_hdf5(source: Path, layout: Layout) -> Iterator[RawSample]:
    """Yield the samples of a file or folder.

    Raises:
        UserError: not HDF5, no such key, or a link to another file.
    """
    for sample_id, path in files_of(source, SUFFIXES):
        try:
            with h5py.File(path, "r") as file:
                if source.is_dir():
                    yield RawSample(sample_id, np.asarray(_local(_only(file, layout.key, path), path)[()]))
                elif is_ragged(file):
                    arrays = {name: _local(file[name], path) for name in file}
                    yield from ragged_samples(arrays, path)
                else:
                    yield from _one_file(file, layout, path)
        except OSError as error:
            raise UserError(f"{path} is not readable HDF5 ({error}). Check `--format`.") from error


def _one_file(file: Any, layout: Layout, path: Path) -> Iterator[RawSample]:
    key = layout.key or ID
    if ID not in key:
        values, ids = _follow(file, key, path), _follow(file, layout.ids, path)
        lengths = [int(n) for n in _follow(file, f"{key}_lengths", path)[()]] if f"{key}_lengths" in file else None
        yield from padded_rows(values, [as_text(i) for i in ids[()]], lengths, path)
        return
    before, after = key.split(ID, 1)
    group = _follow(file, before, path) if before.strip("/") else file
    for name in group:
        yield RawSample(name, np.asarray(_follow(group, name + after, path)[()]))


def _only(file: Any, key: str | None, path: Path) -> Any:
    """Return the data set of a file that holds one sample."""
    if key is None and len(file) != 1:
        raise UserError(f"{path} holds {', '.join(sorted(file))}. Say which with `--key`.")
    return _follow(file, key or next(iter(file)), path)


def _follow(group: Any, key: str, path: Path) -> Any:
    """Return what lies at `key`, through groups of this file only."""
    found = group
    for name in key.strip("/").split("/"):
        if not isinstance(found, h5py.Group) or name not in found:
            raise UserError(f"{path} has no '{key}'. It has {_some(group)}. Say where the values are with `--key`.")
        if isinstance(found.get(name, getlink=True), h5py.ExternalLink):
            raise UserError(f"{path} links to another file. Copy the values into one file.")
        found = found[name]
    return _local(found, path)


def _local(found: Any, path: Path) -> Any:
    if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
        raise UserError(f"{path} keeps its values in another file. Copy them into one file.")
    return found


def _some(group: Any, most: int = 5) -> str:
    names = sorted(group)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
