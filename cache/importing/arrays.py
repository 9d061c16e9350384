"""NumPy files: a folder of npy or npz files, one per sample, or one npz file with an array per sample."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache.errors import UserError
from cache.importing.raw import Layout, RawSample, files_of


def read_npy(source: Path, layout: Layout) -> Iterator[RawSample]:
    """Yield a sample per npy file; one that cannot be read, or holds objects, has a problem instead of values."""
    for sample_id, path in files_of(source, (".npy",)):
        try:
            yield RawSample(sample_id, np.load(path, allow_pickle=False))
        except (ValueError, OSError, EOFError):
            yield RawSample(sample_id, None, "cannot be read as npy, or holds objects")


def read_npz(source: Path, layout: Layout) -> Iterator[RawSample]:
    """Yield a sample per file of a folder, or per array of a file.

    Raises:
        UserError: a file alone is not npz; a folder's file holds several arrays and no key was given.
    """
    if source.is_file():
        try:
            with np.load(source, allow_pickle=False) as arrays:
                yield from (_array(arrays, name, name) for name in arrays.files)
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{source} is not readable npz. Check `--format`.") from error
        return
    for sample_id, path in files_of(source, (".npz",)):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                yield _array(arrays, _chosen(arrays.files, layout.key, path), sample_id)
        except (ValueError, OSError, zipfile.BadZipFile):
            yield RawSample(sample_id, None, "cannot be read as npz")


def _chosen(names: list[str], key: str | None, path: Path) -> str:
    if key is None and len(names) != 1:
        raise UserError(f"{path} holds {', '.join(names)}. Say which with `--key`.")
    return key or names[0]


def _array(arrays: "np.lib.npyio.NpzFile", name: str, sample_id: str) -> RawSample:
    if name not in arrays.files:
        return RawSample(sample_id, None, f"has no array '{name}'")
    try:
        return RawSample(sample_id, arrays[name])
    except (ValueError, OSError, zipfile.BadZipFile):
        return RawSample(sample_id, None, "cannot be read as npz, or holds objects")
