"""safetensors: what `selfmask cache export` wrote, or a file with a tensor per sample. Reads one sample at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cache.errors import UserError
from cache.importing.ragged import is_ragged, ragged_samples
from cache.importing.raw import Layout, RawSample, files_of


def read_safetensors(source: Path, layout: Layout) -> Iterator[RawSample]:
    """Yield the samples of a file or folder of files.

    Raises:
        UserError: not safetensors.
    """
    for _, path in files_of(source, (".safetensors",)):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                if is_ragged(names):
                    yield from ragged_samples({name: _Slice(file.get_slice(name)) for name in names}, path)
                else:
                    yield from (RawSample(name, _array(file.get_tensor(name))) for name in names)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not readable safetensors. Check `--format`.") from error


class _Slice:
    """A tensor that is read by ranges of rows."""

    def __init__(self, lazy: Any) -> None:
        self._lazy = lazy

    def __len__(self) -> int:
        return int(self._lazy.get_shape()[0])

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, end, _ = rows.indices(len(self))
        return _array(self._lazy[int(start) : int(end)])


def _array(tensor: Any) -> np.ndarray:
    # NumPy has no bfloat16
    return np.asarray(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())
