"""A cache as one file for other programs: HDF5, parquet or safetensors, all of which `cache import` reads back.

Streamed, so memory is that of one batch; published by rename. Only what a reader of the complete cache gets goes out.
HDF5 and safetensors hold flat tokens with offsets (see cache/importing/ragged.py), parquet a row per sample.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.contents import batches, current, rows_by_part, stored_samples
from cache.errors import UserError
from cache.parts import SampleTokens, read_identities, read_offsets
from cache.places import Identity
from cache.precision import to_stored, token_bytes
from cache.publish import replacing
from cache.store import TokenStore

BATCH_BYTES = 32 * 2**20
SAFETENSORS_TYPES = {"float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class _Contents:
    """What goes out, in the order of parts and rows: N samples, T tokens."""

    store: TokenStore
    rows: dict[str, list[int]]
    identities: list[Identity]
    offsets: np.ndarray
    """int64 [N + 1]."""

    def batches(self) -> Iterator[list[SampleTokens]]:
        """Yield the samples."""
        return batches(
            stored_samples(self.store, self.rows, checked=True),
            token_bytes(self.store.width, self.store.dtype),
            BATCH_BYTES,
        )

    def about(self) -> dict[str, str]:
        """Return what the tokens are, as text."""
        key = json.dumps(self.store.key.model_dump(mode="json"), sort_keys=True)
        return {"selfmask_key": key, "selfmask_dtype": self.store.dtype}

    def encoded_identities(self) -> np.ndarray:
        """Return the ids and digests as JSON; uint8."""
        return np.frombuffer(json.dumps(self.identities).encode(), np.uint8)


def export_tokens(store: TokenStore, form: str, out: Path) -> int:
    """Write the samples of a complete cache to a file; returns their number.

    Raises:
        UserError: unknown format, the extraction is not complete or holds no tokens, or the disk is full.
        CorruptCacheError: a part is damaged.
    """
    if form not in WRITERS:
        raise UserError(f"--format '{form}' is not one of {', '.join(WRITERS)}.")
    store.view()
    contents = _contents(store)
    if not contents.identities:
        raise UserError(f"{store.path} holds no tokens to export.")
    try:
        with replacing(out) as temporary:
            WRITERS[form](contents, temporary)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}). Nothing was left there.") from error
    return len(contents.identities)


def _contents(store: TokenStore) -> _Contents:
    rows = rows_by_part(current(store).values())
    identities: list[Identity] = []
    lengths = [np.zeros(1, np.int64)]
    for entry in store.entries():
        own = rows.get(entry["part"], [])
        stored = read_identities(store.path, entry) if own else []
        identities += [stored[row] for row in own]
        lengths.append(np.diff(read_offsets(store.path, entry))[own])
    return _Contents(store, rows, identities, np.cumsum(np.concatenate(lengths), dtype=np.int64))


def _write_hdf5(contents: _Contents, path: Path) -> None:
    tokens, width = int(contents.offsets[-1]), contents.store.width
    dtype = "float16" if contents.store.dtype == "float16" else "float32"
    with h5py.File(path, "w") as file:
        file.attrs.update(contents.about())
        file["offsets"], file["identities"] = contents.offsets, contents.encoded_identities()
        values = file.create_dataset("tokens", (tokens, width), dtype)
        flags = file.create_dataset("maskable", (tokens,), "uint8")
        start = 0
        for batch in contents.batches():
            end = start + sum(len(sample.tokens) for sample in batch)
            values[start:end] = np.concatenate([sample.tokens for sample in batch])
            flags[start:end] = np.concatenate([sample.maskable for sample in batch])
            start = end


def _write_safetensors(contents: _Contents, path: Path) -> None:
    """Write the format by hand: its library would need all tokens in memory."""
    dtype = contents.store.dtype if contents.store.dtype in SAFETENSORS_TYPES else "float32"
    flags: list[np.ndarray] = []
    with path.open("wb") as stream:
        stream.write(_safetensors_header(contents, dtype))
        for batch in contents.batches():
            stream.write(to_stored(np.concatenate([sample.tokens for sample in batch]), dtype).tobytes())
            flags += [sample.maskable.astype(np.uint8) for sample in batch]
        for array in (contents.offsets, np.concatenate(flags), contents.encoded_identities()):
            stream.write(array.tobytes())


def _safetensors_header(contents: _Contents, dtype: str) -> bytes:
    tokens, width = int(contents.offsets[-1]), contents.store.width
    shapes: dict[str, tuple[str, list[int], int]] = {
        "tokens": (SAFETENSORS_TYPES.get(dtype, "F32"), [tokens, width], 4 if dtype == "float32" else 2),
        "offsets": ("I64", [len(contents.offsets)], 8),
        "maskable": ("U8", [tokens], 1),
        "identities": ("U8", [len(contents.encoded_identities())], 1),
    }
    header: dict[str, Any] = {"__metadata__": contents.about()}
    start = 0
    for name, (kind, shape, size) in shapes.items():
        end = start + int(np.prod(shape)) * size
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_parquet(contents: _Contents, path: Path) -> None:
    schema = pa.schema(
        [
            ("sample_id", pa.string()),
            ("digest", pa.string()),
            ("tokens", pa.list_(pa.float32())),
            ("tokens_shape", pa.list_(pa.int32())),
            ("maskable", pa.list_(pa.bool_())),
        ],
        metadata=contents.about(),
    )
    with pq.ParquetWriter(path, schema) as writer:
        for batch in contents.batches():
            columns = [
                [sample.sample_id for sample in batch],
                [sample.digest for sample in batch],
                [sample.tokens.ravel() for sample in batch],
                [list(sample.tokens.shape) for sample in batch],
                [sample.maskable for sample in batch],
            ]
            writer.write_table(pa.table(columns, schema=schema))


WRITERS: dict[str, Callable[[_Contents, Path], None]] = {
    "hdf5": _write_hdf5,
    "parquet": _write_parquet,
    "safetensors": _write_safetensors,
}
