"""Forms that keep all tokens as one array: plain files, Zarr by three libraries, HDF5.

Each uses the settings that its own documentation recommends for speed on a local disk.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cache.ragged import WIDTH, Array, Ragged, Reader

SHARD_TOKENS = 2**16
ZARR_PYTHON, ZARRS = "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"


def write_one_file(data: Ragged, folder: Path) -> None:
    """Write the tokens below `folder`."""
    with (folder / "tokens.bin").open("wb") as stream:
        stream.write(data.tokens.data)


def load_one_file(data: Ragged, folder: Path) -> Array:
    """Read everything into memory."""
    whole = np.empty_like(data.tokens)
    with (folder / "tokens.bin").open("rb", buffering=0) as stream:
        view, done = memoryview(whole.reshape(-1).view(np.uint8)), 0
        while done < len(view):
            done += stream.readinto(view[done : done + 2**30])
    return whole


def map_one_file(data: Ragged, folder: Path) -> Reader:
    """Return a reader of samples by row."""
    tokens = np.memmap(folder / "tokens.bin", np.float16, "r", shape=data.tokens.shape)
    return lambda rows: [np.array(tokens[a:b]) for a, b in data.spans(rows)]


def pread_one_file(data: Ragged, folder: Path) -> Reader:
    """Return a reader of samples by row."""
    descriptor, row_bytes = os.open(folder / "tokens.bin", os.O_RDONLY), WIDTH * 2

    def read(rows: Array) -> Sequence[Array]:
        found = [np.empty((b - a, WIDTH), np.float16) for a, b in data.spans(rows)]
        for (a, _), sample in zip(data.spans(rows), found, strict=True):
            os.preadv(descriptor, [sample.reshape(-1).view(np.uint8)], a * row_bytes)
        return found

    return read


def write_zarr(data: Ragged, folder: Path) -> None:
    """Write the tokens below `folder`."""
    import zarr

    shard = min(SHARD_TOKENS, -(-len(data.tokens) // 256) * 256)
    array = zarr.create_array(
        folder / "a.zarr",
        shape=data.tokens.shape,
        chunks=(256, WIDTH),
        shards=(shard, WIDTH),
        dtype="float16",
        compressors=None,
    )
    array[:] = data.tokens


def open_zarr(pipeline: str, folder: Path) -> Any:
    """Open the array with a codec pipeline."""
    import zarr

    zarr.config.set({"codec_pipeline.path": pipeline})
    return zarr.open_array(folder / "a.zarr", mode="r")


def zarr_reader(pipeline: str) -> Callable[[Ragged, Path], Reader]:
    """Return a form's `open` for a codec pipeline."""

    def start(data: Ragged, folder: Path) -> Reader:
        array = open_zarr(pipeline, folder)
        return lambda rows: [array[a:b] for a, b in data.spans(rows)]

    return start


def open_tensorstore(folder: Path) -> Any:
    """Open the array without a cache of its own."""
    import tensorstore

    context = {"cache_pool": {"total_bytes_limit": 0}}
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "a.zarr")}, "context": context}
    return tensorstore.open(spec, read=True).result()


def read_tensorstore(data: Ragged, folder: Path) -> Reader:
    """Return a reader of samples by row."""
    array = open_tensorstore(folder)

    def read(rows: Array) -> Sequence[Array]:
        futures = [array[a:b].read() for a, b in data.spans(rows)]
        return [future.result() for future in futures]

    return read


def write_hdf5(data: Ragged, folder: Path) -> None:
    """Write the tokens below `folder`."""
    import h5py

    with h5py.File(folder / "a.h5", "w", libver="latest") as file:
        file.create_dataset("tokens", data=data.tokens)


def load_hdf5(data: Ragged, folder: Path) -> Array:
    """Read everything into memory."""
    import h5py

    whole = np.empty_like(data.tokens)
    with h5py.File(folder / "a.h5") as file:
        file["tokens"].read_direct(whole)
    return whole


def read_hdf5(data: Ragged, folder: Path) -> Reader:
    """Return a reader of samples by row."""
    import h5py

    tokens = h5py.File(folder / "a.h5")["tokens"]
    return lambda rows: [tokens[a:b] for a, b in data.spans(rows)]
