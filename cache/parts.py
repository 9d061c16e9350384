"""One immutable part of a cache: written once, published by rename, read by mapping its chunk files.

Every array is one chunk (see `cache.chunks`) that ends with a checksum: without it no reader would notice a flipped
bit; without the manifest an absent chunk would read as zeros. The small arrays (offsets, flags, ids, scales) are
checked at every reading, since a wrong offset would move tokens to another sample; mapped tokens by
`TokenStore.verify`, since checking them would cost a pass over the whole cache at every start.
"""

import shutil
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from cache.chunks import Chunk, chunk_name, write_chunk
from cache.errors import UserError
from cache.location import Location
from cache.manifest import write_sealed
from cache.metadata import part_documents
from cache.precision import fits, from_stored, quantise, stored_dtype, to_stored
from cache.publish import file_sha256, fingerprint, flush, publish_folder

TOKENS, SCALES, OFFSETS, MASKABLE = "tokens", "scales", "offsets", "maskable"
IDS, DIGESTS = "samples/ids", "samples/digests"

__all__ = ["PartArrays", "SampleTokens", "from_stored", "read_part", "stored_dtype", "to_stored", "write_part"]


@dataclass(frozen=True)
class SampleTokens:
    """Tokens of one sample: float [T, width], maskable bool [T]; `digest` identifies the raw input."""

    sample_id: str
    digest: str
    tokens: np.ndarray
    maskable: np.ndarray


@dataclass(frozen=True)
class PartArrays:
    """A published part as it is stored: N samples, T tokens in all."""

    tokens: np.ndarray
    """[T, width], in the stored type; mapped if the part is local and not compressed."""
    offsets: np.ndarray
    """Where each sample's tokens start; int64 [N + 1]."""
    maskable: np.ndarray
    """bool [T]."""
    scales: np.ndarray | None = None
    """What int8 tokens are multiplied by; float32 [T], None for other types."""

    def sample(self, row: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """Return what a reader gets of one sample: float32 tokens [T, width] and maskable bool [T].

        `dtype` is the cache's stored type.
        """
        own = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        scales = None if self.scales is None else self.scales[own]
        return from_stored(np.asarray(self.tokens[own]), dtype, scales), self.maskable[own]


def write_part(
    store: Path, cache_digest: str, samples: Sequence[SampleTokens], width: int, dtype: str, compression: str = "none"
) -> str:
    """Write and publish one part; the manifest entry comes last. Returns the part id.

    Raises:
        UserError: tokens have another width or are not finite, or an id is empty or holds NUL.
        OSError: the disk is full; nothing of the part is left.
    """
    arrays = _arrays(samples, width, dtype)
    part_id = uuid.uuid4().hex
    temporary, final = store / "parts" / f".{part_id}.partial", store / "parts" / part_id
    entry = store / "manifest" / f"{part_id}.json"
    try:
        specs = _write_files(temporary, cache_digest, arrays, dtype, compression)
        files = _flush_and_list(temporary, chunk_name(TOKENS, 2))
        publish_folder(temporary, final)
        write_sealed(entry, entry_of(part_id, cache_digest, specs, int(arrays[OFFSETS][-1]), files))
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not entry.exists():
            shutil.rmtree(final, ignore_errors=True)  # or it would go on filling the disk
        raise
    return part_id


def map_tokens(store: Location, entry: dict[str, Any]) -> np.ndarray:
    """Return the tokens of a published part in the stored type, [tokens, width], read-only; mapped where possible.

    Raises:
        CorruptCacheError: the file is absent or has another size; never read as zeros.
    """
    return Chunk.of(store, entry, TOKENS).read_or_map()


def read_part(store: Location, entry: dict[str, Any]) -> PartArrays:
    """Read a part: its tokens mapped where possible, everything else checked."""
    scales = Chunk.of(store, entry, SCALES).read() if SCALES in entry["arrays"] else None
    return PartArrays(map_tokens(store, entry), read_offsets(store, entry), read_maskable(store, entry), scales)


def read_offsets(store: Location, entry: dict[str, Any]) -> np.ndarray:
    """Read where each sample's tokens start; int64 [samples + 1]."""
    return Chunk.of(store, entry, OFFSETS).read()


def read_maskable(store: Location, entry: dict[str, Any]) -> np.ndarray:
    """Read the maskable flag of each token; bool [tokens]."""
    packed = Chunk.of(store, entry, MASKABLE).read()
    return np.unpackbits(packed, count=entry["tokens"], bitorder="little").astype(bool)


def read_identities(store: Location, entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Read (sample id, digest of the raw input) of each sample."""
    ids, digests = (_strings(Chunk.of(store, entry, name).read()) for name in (IDS, DIGESTS))
    return list(zip(ids, digests, strict=True))


def list_files(part: Path) -> dict[str, dict[str, Any]]:
    """Return bytes and checksum of every file of a part."""
    return {
        path.relative_to(part).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(part.rglob("*"))
        if path.is_file()
    }


def entry_of(
    part_id: str,
    cache_digest: str,
    specs: Mapping[str, Mapping[str, Any]],
    tokens: int,
    files: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the manifest entry of a part whose files, as `list_files` gives them, are complete."""
    return {
        "part": part_id,
        "cache": cache_digest,
        "samples": specs[OFFSETS]["shape"][0] - 1,
        "tokens": tokens,
        "bytes": sum(file["bytes"] for file in files.values()),
        "arrays": dict(specs),
        "files": dict(files),
    }


def part_attributes(arrays: Mapping[str, np.ndarray], cache_digest: str, dtype: str) -> dict[str, Any]:
    """Return the attributes of the part's group: for readers without the manifest, and to restore a lost entry."""
    digests = {name: f"{google_crc32c.extend(0, np.ascontiguousarray(a)):08x}" for name, a in arrays.items()}
    samples = len(arrays[OFFSETS]) - 1
    return {"cache": cache_digest, "samples": samples, "dtype": dtype, "content_digest": fingerprint(digests)}


def _flush_and_list(part: Path, largest: str) -> dict[str, dict[str, Any]]:
    """Compute the checksums while the disk takes the largest file: one waits for the processor, one for the disk."""
    with ThreadPoolExecutor(1) as pool:
        flushed = pool.submit(flush, part / largest) if (part / largest).exists() else None
        files = list_files(part)
        if flushed is not None:
            flushed.result()
    return files


def _write_files(
    folder: Path, cache_digest: str, arrays: dict[str, np.ndarray], dtype: str, compression: str
) -> dict[str, dict[str, Any]]:
    """Write documents and chunks; returns the arrays' specifications."""
    specs: dict[str, dict[str, Any]] = {n: {"shape": list(a.shape), "dtype": str(a.dtype)} for n, a in arrays.items()}
    if compression != "none":
        specs[TOKENS]["compression"] = compression  # the other arrays are too small to matter
    for name, document in part_documents(specs, part_attributes(arrays, cache_digest, dtype)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(document)
    for name, array in arrays.items():
        if array.size:
            write_chunk(folder / chunk_name(name, array.ndim), array, specs[name].get("compression", "none"))
    return specs


def _arrays(samples: Sequence[SampleTokens], width: int, dtype: str) -> dict[str, np.ndarray]:
    for sample in samples:
        if sample.tokens.ndim != 2 or sample.tokens.shape[1] != width:
            raise UserError(f"Tokens have shape {sample.tokens.shape}; this cache holds [T, {width}].")
        if sample.maskable.shape != sample.tokens.shape[:1]:
            raise UserError(f"maskable has shape {sample.maskable.shape}, tokens {sample.tokens.shape}.")
    offsets = np.cumsum([0, *(len(s.tokens) for s in samples)], dtype=np.int64)
    return {
        **_token_arrays(samples, offsets, width, dtype),
        OFFSETS: offsets,
        MASKABLE: np.packbits(np.concatenate([s.maskable.astype(bool) for s in samples]), bitorder="little"),
        IDS: _bytes([s.sample_id for s in samples], "A sample id"),
        DIGESTS: _bytes([s.digest for s in samples], "A digest"),
    }


def _token_arrays(
    samples: Sequence[SampleTokens], offsets: np.ndarray, width: int, dtype: str
) -> dict[str, np.ndarray]:
    """Round sample by sample, so that the part is in memory only once more than its samples."""
    stored = np.empty((int(offsets[-1]), width), stored_dtype(dtype))
    scales = np.empty(len(stored), np.float32)
    for sample, start, end in zip(samples, offsets[:-1], offsets[1:], strict=True):
        tokens = np.asarray(sample.tokens, np.float32)
        if not fits(tokens, dtype):
            raise UserError(
                f"A token is NaN, infinite or beyond the range of {dtype}. "
                "Check the encoder, or set extract.dtype=float32."
            )
        if dtype == "int8":
            stored[start:end], scales[start:end] = quantise(tokens)
        else:
            stored[start:end] = to_stored(tokens, dtype)
    return {TOKENS: stored, SCALES: scales} if dtype == "int8" else {TOKENS: stored}


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


def _strings(array: np.ndarray) -> list[str]:
    return [row.tobytes().rstrip(b"\0").decode() for row in array]
