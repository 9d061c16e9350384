"""What a reader of foreign files yields, and what all of them share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import UserError


@dataclass(frozen=True)
class RawSample:
    """One sample as it was found: values [T, D], or [D] for a single token; `problem` says why there are none."""

    sample_id: str
    values: np.ndarray | None
    problem: str = ""
    maskable: np.ndarray | None = None
    """bool [T]; None: every token."""
    digest: str = ""
    """Of the raw input, if the file knows it; else that of the values is taken."""


@dataclass(frozen=True)
class Layout:
    """Where the values are: see docs/cache.md for what `key` means in each format."""

    key: str | None = None
    ids: str = "sample_id"
    """Name of the column or array of ids, where ids are not names."""


def files_of(source: Path, suffixes: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Return (sample id, path) of a file, or of every file below a folder: the id is the path without suffix.

    Raises:
        UserError: there is no such file, or a link leads out of the folder.
    """
    if source.is_file():
        return [(source.stem, source)]
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not paths:
        raise UserError(f"{source} is, or holds, no {' or '.join(suffixes)} file. Check the path and `--format`.")
    root = source.resolve()
    outside = sum(root not in path.resolve().parents for path in paths)
    if outside:
        raise UserError(f"{source}: {outside} files are links that lead out of the folder. Copy them into it.")
    return [(path.relative_to(source).with_suffix("").as_posix(), path) for path in paths]


def padded_rows(values: Any, ids: list[str], lengths: list[int] | None, where: Path) -> Iterator[RawSample]:
    """Yield the rows of an array [N, T, D], or [N, D], cut to their lengths; `values` may read lazily.

    Raises:
        UserError: ids or lengths do not fit the array.
    """
    if len(ids) != len(values) or (lengths is not None and len(lengths) != len(values)):
        raise UserError(f"{where}: {len(values)} rows of values, {len(ids)} ids. They must be as many.")
    for row, sample_id in enumerate(ids):
        own = np.asarray(values[row])
        yield RawSample(sample_id, own if lengths is None or own.ndim < 2 else own[: lengths[row]])


def as_text(value: object) -> str:
    """Return an id as text: bytes are UTF-8."""
    return value.decode() if isinstance(value, bytes) else str(value)
