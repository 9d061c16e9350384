"""Writing one part of a cache: rounded block by block, flushed, published by rename.

The tokens go from the samples to the file in blocks that fit the processor's cache, and are checksummed on the way, so
that a part is never in memory a second time and no file is read again.
"""

import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache.chunks import Written, chunk_name, write_chunk
from cache.errors import UserError
from cache.manifest import write_sealed
from cache.metadata import part_documents
from cache.parts import (
    DIGESTS,
    IDS,
    MASKABLE,
    OFFSETS,
    SCALES,
    TOKENS,
    SampleTokens,
    entry_of,
    list_files,
    part_attributes,
)
from cache.precision import fits, quantise, stored_dtype, to_stored
from cache.publish import publish_folder

BLOCK_BYTES = 2**23
"""Of a block of float32 tokens."""
Array = np.ndarray


def write_part(
    store: Path, cache_digest: str, samples: Sequence[SampleTokens], width: int, dtype: str, compression: str = "none"
) -> str:
    """Write and publish one part; the manifest entry comes last. Returns the part id.

    Raises:
        UserError: tokens have another width or are not finite, or an id is empty or holds NUL.
        OSError: the disk is full; nothing of the part is left.
    """
    _check(samples, width)
    part_id = uuid.uuid4().hex
    temporary, final = store / "parts" / f".{part_id}.partial", store / "parts" / part_id
    entry = store / "manifest" / f"{part_id}.json"
    try:
        part = _Writing(temporary, compression)
        tokens = _write_arrays(part, samples, width, dtype)
        files = part.finish(cache_digest, len(samples), dtype)
        publish_folder(temporary, final)
        write_sealed(entry, entry_of(part_id, cache_digest, part.specs, tokens, files))
    except (OSError, UserError):
        shutil.rmtree(temporary, ignore_errors=True)
        if not entry.exists():
            shutil.rmtree(final, ignore_errors=True)  # or it would go on filling the disk
        raise
    return part_id


@dataclass
class _Writing:
    """The files of a part under way."""

    folder: Path
    compression: str
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)
    chunks: dict[str, Written] = field(default_factory=dict)

    def array(self, name: str, values: Array) -> None:
        """Write a small array; none of them is worth compressing."""
        self.blocks(name, iter([values]), values.shape, values.dtype, "none")

    def blocks(
        self, name: str, blocks: Iterator[Array], shape: tuple[int, ...], dtype: np.dtype[Any], compression: str
    ) -> None:
        """Write an array of consecutive blocks; one without elements has no file."""
        self.specs[name] = {"shape": list(shape), "dtype": str(dtype)}
        if compression != "none":
            self.specs[name]["compression"] = compression
        if all(shape):
            self.chunks[name] = write_chunk(self.folder / chunk_name(name, len(shape)), blocks, compression)

    def finish(self, cache_digest: str, samples: int, dtype: str) -> dict[str, dict[str, Any]]:
        """Write the documents; returns bytes and checksum of every file."""
        crcs = {name: self.chunks[name].content_crc if name in self.chunks else 0 for name in self.specs}
        attributes = part_attributes(crcs, cache_digest, samples, dtype)
        for name, document in part_documents(self.specs, attributes).items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(document)
        written = {chunk_name(name, len(self.specs[name]["shape"])): chunk for name, chunk in self.chunks.items()}
        return list_files(self.folder, {name: _listed(chunk) for name, chunk in written.items()})


def _listed(chunk: Written) -> dict[str, Any]:
    return {"bytes": chunk.bytes, "sha256": chunk.sha256}


def _check(samples: Sequence[SampleTokens], width: int) -> None:
    for sample in samples:
        if sample.tokens.ndim != 2 or sample.tokens.shape[1] != width:
            raise UserError(f"Tokens have shape {sample.tokens.shape}; this cache holds [T, {width}].")
        if sample.maskable.shape != sample.tokens.shape[:1]:
            raise UserError(f"maskable has shape {sample.maskable.shape}, tokens {sample.tokens.shape}.")


def _write_arrays(part: _Writing, samples: Sequence[SampleTokens], width: int, dtype: str) -> int:
    """Write every array; returns the number of tokens."""
    offsets = np.cumsum([0, *(len(s.tokens) for s in samples)], dtype=np.int64)
    scales: list[Array] = []
    blocks = _rounded(samples, offsets, width, dtype, scales)
    part.blocks(TOKENS, blocks, (int(offsets[-1]), width), stored_dtype(dtype), part.compression)
    if dtype == "int8":
        part.array(SCALES, np.concatenate([np.zeros(0, np.float32), *scales]))
    part.array(OFFSETS, offsets)
    part.array(MASKABLE, np.packbits(np.concatenate([s.maskable.astype(bool) for s in samples]), bitorder="little"))
    part.array(IDS, _bytes([s.sample_id for s in samples], "A sample id"))
    part.array(DIGESTS, _bytes([s.digest for s in samples], "A digest"))
    return int(offsets[-1])


def _rounded(
    samples: Sequence[SampleTokens], offsets: Array, width: int, dtype: str, scales: list[Array]
) -> Iterator[Array]:
    """Yield blocks of tokens in the stored type; int8's scales are added to `scales`."""
    for block in _blocks(samples, offsets, width):
        tokens = np.concatenate([sample.tokens for sample in block])
        if tokens.dtype != np.float16 or dtype != "float16":
            tokens = tokens.astype(np.float32, copy=False)
        if not fits(tokens, dtype):
            raise UserError(
                f"A token is NaN, infinite or beyond the range of {dtype}. "
                "Check the encoder, or set extract.dtype=float32."
            )
        if dtype == "int8":
            tokens, own = quantise(tokens)
            scales.append(own)
            yield tokens
        else:
            yield to_stored(tokens, dtype)


def _blocks(samples: Sequence[SampleTokens], offsets: Array, width: int) -> Iterator[Sequence[SampleTokens]]:
    limit, first = max(1, BLOCK_BYTES // (width * 4)), 0
    while first < len(samples):
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + limit, side="right")) - 1)
        yield samples[first:end]
        first = end


def _bytes(values: Sequence[str], what: str) -> np.ndarray:
    """Encode strings as zero-padded rows of UTF-8 bytes; uint8 [N, longest]."""
    if any(not value or "\0" in value for value in values):
        raise UserError(f"{what} is empty or holds a NUL character. Give every sample another id.")
    try:
        encoded = [value.encode() for value in values]
    except UnicodeEncodeError as error:
        raise UserError(f"{what} is not valid Unicode. Give every sample another id.") from error
    width = max(len(value) for value in encoded)
    flat = b"".join(value.ljust(width, b"\0") for value in encoded)
    return np.frombuffer(flat, np.uint8).reshape(len(encoded), width)
