"""Computational sequences: the HDF5 files of the CMU-MultimodalSDK, read video by video.

`/<root>/data/<video>/features` [T, D] and `/intervals` [T, 2], seconds from the video's start. The root's name differs
from file to file and is not relied on. Links and external storage are refused: a file is read for its own content.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from cache.errors import UserError
from extract.values import DAMAGED

ADVICE = "Download it again, or take it out of the folder."
# the files' names differ between releases in all but these words
NAMES = {
    "labels": ("labels",),
    "words": ("timestampedwords",),
    "covarep": ("covarep",),
    "facet": ("facet",),
    "openface": ("openface",),
}


def find_sequences(raw: Path) -> dict[str, Path]:
    """Return the files below `raw` by what they hold: labels, words, covarep, facet, openface.

    Raises:
        UserError: two files hold the same.
    """
    found: dict[str, Path] = {}
    for path in sorted(raw.rglob("*.csd")):
        plain = path.stem.lower().replace("_", "")
        for name, words in NAMES.items():
            if not any(plain.endswith(w) or (name not in ("labels", "words") and w in plain) for w in words):
                continue
            if name in found:
                raise UserError(f"{found[name]} and {path} both hold {name}. Leave one of them in {raw}.")
            found[name] = path
    return found


class ComputationalSequence:
    """One open file; a context manager."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            UserError: it is no readable computational sequence.
        """
        self.path = path
        with self._explained("the file"):
            self._file = h5py.File(path, "r")
            self._root = self._file[next(iter(self._file))]
            self._data = self._root["data"]

    def __enter__(self) -> "ComputationalSequence":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def videos(self) -> list[str]:
        """Return the videos' ids, sorted."""
        with self._explained("the list of videos"):
            return sorted(map(str, self._data))

    def read(self, video: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a video's features [T, D] and intervals [T, 2] in seconds; None where the file lacks the video.

        Raises:
            UserError: the two disagree or cannot be read; names file and video.
        """
        with self._explained(f"video {video}"):
            if video not in self._data:
                return None
            group = self._data[video]
            features, intervals = self._array(group["features"]), self._array(group["intervals"])
        if features.ndim != 2 or intervals.shape != (len(features), 2):
            raise UserError(
                f"{self.path}: video {video} has features {list(features.shape)} but intervals "
                f"{list(intervals.shape)}; they must be [T, D] and [T, 2]. {ADVICE}"
            )
        return features, intervals.astype(np.float64)

    def _array(self, dataset: Any) -> np.ndarray:
        if dataset.file.filename != self._file.filename or dataset.external or dataset.is_virtual:
            raise UserError(f"{self.path} refers to data in another file, which is not read. {ADVICE}")
        return np.asarray(dataset)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (*DAMAGED, StopIteration, AttributeError) as error:
            reason = type(error).__name__
            raise UserError(f"{self.path}: {what} cannot be read as a .csd file ({reason}). {ADVICE}") from error


def dimension_names(path: Path) -> list[str]:
    """Return the names of a file's columns as its metadata have them; empty where they do not."""
    try:
        with h5py.File(path, "r") as file:
            value = file[next(iter(file))]["metadata/dimension names"][0]
        names = json.loads(value.decode() if isinstance(value, bytes) else str(value))
    except (*DAMAGED, StopIteration):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
