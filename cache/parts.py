"""One immutable part of a cache: written once through zarr, published by rename, read by mapping its chunk files.

Every array is one uncompressed chunk with codecs `bytes` + `crc32c`, so a chunk file is the array's bytes followed by
a four-byte checksum: any Zarr v3 reader opens it, and ours maps it at the speed of memory. Without the checksum no
reader would notice a flipped bit; without the manifest an absent chunk would read as zeros. The small arrays (offsets,
flags, ids) are checked at every reading, since a wrong offset would move tokens to another sample; the tokens by
`TokenStore.verify`, since checking them would cost a pass over the whole cache at every start.
"""

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from cache.errors import CorruptCacheError, UserError
from cache.manifest import PART_REMEDY, write_sealed
from cache.publish import file_sha256, fingerprint, publish_folder

CHECKSUM_BYTES = 4
TOKENS, OFFSETS, MASKABLE, IDS, DIGESTS = "tokens", "offsets", "maskable", "samples/ids", "samples/digests"


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
    """[T, width], mapped, in the stored type."""
    offsets: np.ndarray
    """Where each sample's tokens start; int64 [N + 1]."""
    maskable: np.ndarray
    """bool [T]."""


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy type on disk; bfloat16 has none and is stored as its bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def to_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round finite float32 values to the stored type; values beyond its range become infinite."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return values.astype(stored_dtype(dtype))
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # round to nearest even
    return (rounded >> np.uint32(16)).astype(np.uint16)


def from_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 values."""
    if dtype != "bfloat16":
        return values.astype(np.float32)
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)


def write_part(store: Path, cache_digest: str, samples: Sequence[SampleTokens], width: int, dtype: str) -> str:
    """Write and publish one part; the manifest entry comes last. Returns the part id.

    Raises:
        UserError: tokens have another width or are not finite, an id is empty or holds NUL, or the disk is full.
    """
    arrays = _arrays(samples, width, dtype)
    part_id = uuid.uuid4().hex
    temporary, final = store / "parts" / f".{part_id}.partial", store / "parts" / part_id
    try:
        group = zarr.create_group(temporary, zarr_format=3, attributes=_attributes(arrays, len(samples), dtype))
        for name, array in arrays.items():
            _write_array(group, name, array)
        publish_folder(temporary, final)
        write_sealed(store / "manifest" / f"{part_id}.json", _entry(final, cache_digest, arrays, len(samples)))
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{store}: cannot write a part ({error}). Free disk space and run the same command.") from error
    return part_id


def map_tokens(store: Path, entry: dict[str, Any]) -> np.ndarray:
    """Map the tokens of a published part, read-only, in the stored type; [tokens, width].

    Raises:
        CorruptCacheError: the file is absent or has another size; never read as zeros.
    """
    shape, dtype, path = _array_spec(store, entry, TOKENS)
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


def read_part(store: Path, entry: dict[str, Any]) -> PartArrays:
    """Read a part: its tokens mapped, its small arrays checked."""
    return PartArrays(map_tokens(store, entry), read_offsets(store, entry), read_maskable(store, entry))


def read_offsets(store: Path, entry: dict[str, Any]) -> np.ndarray:
    """Read where each sample's tokens start; int64 [samples + 1]."""
    return _read_array(store, entry, OFFSETS)


def read_maskable(store: Path, entry: dict[str, Any]) -> np.ndarray:
    """Read the maskable flag of each token; bool [tokens]."""
    packed = _read_array(store, entry, MASKABLE)
    return np.unpackbits(packed, count=entry["tokens"], bitorder="little").astype(bool)


def read_identities(store: Path, entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Read (sample id, digest of the raw input) of each sample."""
    return list(
        zip(_strings(_read_array(store, entry, IDS)), _strings(_read_array(store, entry, DIGESTS)), strict=True)
    )


def crc_matches(path: Path) -> bool:
    """Tell whether a chunk file ends with the CRC-32C of what precedes it."""
    content = np.memmap(path, np.uint8, mode="r")
    expected = int.from_bytes(content[-CHECKSUM_BYTES:].tobytes(), "little")
    return bool(google_crc32c.extend(0, content[:-CHECKSUM_BYTES]) == expected)


def _read_array(store: Path, entry: dict[str, Any], name: str) -> np.ndarray:
    """Read one small array and check it."""
    shape, dtype, path = _array_spec(store, entry, name)
    if 0 in shape:
        return np.zeros(shape, dtype)
    content = np.fromfile(path, np.uint8)
    data, stored_crc = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:].tobytes()
    if google_crc32c.extend(0, data) != int.from_bytes(stored_crc, "little"):
        raise CorruptCacheError(f"{path} fails its checksum. {PART_REMEDY}")
    return data.view(dtype).reshape(shape)


def _array_spec(store: Path, entry: dict[str, Any], name: str) -> tuple[tuple[int, ...], np.dtype[Any], Path]:
    spec = entry["arrays"][name]
    shape, dtype = tuple(spec["shape"]), np.dtype(spec["dtype"])
    path = store / "parts" / entry["part"] / name / "c" / "/".join("0" for _ in shape)
    expected = int(np.prod(shape)) * dtype.itemsize + CHECKSUM_BYTES
    if 0 not in shape and (not path.is_file() or path.stat().st_size != expected):
        raise CorruptCacheError(f"{path} is absent or has another size than the manifest says. {PART_REMEDY}")
    return shape, dtype, path


def _arrays(samples: Sequence[SampleTokens], width: int, dtype: str) -> dict[str, np.ndarray]:
    for sample in samples:
        if sample.tokens.ndim != 2 or sample.tokens.shape[1] != width:
            raise UserError(f"Tokens have shape {sample.tokens.shape}; this cache holds [T, {width}].")
        if sample.maskable.shape != sample.tokens.shape[:1]:
            raise UserError(f"maskable has shape {sample.maskable.shape}, tokens {sample.tokens.shape}.")
    tokens = np.concatenate([s.tokens for s in samples], dtype=np.float32)
    stored = to_stored(tokens, dtype)
    # The input first: rounding to bfloat16 works on bits and may turn a NaN into a number.
    if not (np.isfinite(tokens).all() and np.isfinite(from_stored(stored, dtype)).all()):
        raise UserError(
            f"A token is NaN, infinite or beyond the range of {dtype}. Check the encoder, or set extract.dtype=float32."
        )
    return {
        TOKENS: stored,
        OFFSETS: np.cumsum([0, *(len(s.tokens) for s in samples)], dtype=np.int64),
        MASKABLE: np.packbits(np.concatenate([s.maskable.astype(bool) for s in samples]), bitorder="little"),
        IDS: _bytes([s.sample_id for s in samples], "A sample id"),
        DIGESTS: _bytes([s.digest for s in samples], "A digest"),
    }


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


def _attributes(arrays: dict[str, np.ndarray], samples: int, dtype: str) -> dict[str, Any]:
    """Attributes of the part's group, for readers without the manifest."""
    digests = {name: f"{google_crc32c.extend(0, np.ascontiguousarray(a)):08x}" for name, a in arrays.items()}
    return {"samples": samples, "dtype": dtype, "content_digest": fingerprint(digests)}


def _write_array(group: zarr.Group, name: str, array: np.ndarray) -> None:
    target = group.create_array(
        name,
        shape=array.shape,
        chunks=tuple(max(1, size) for size in array.shape),
        dtype=array.dtype,
        serializer=BytesCodec(endian="little" if array.dtype.itemsize > 1 else None),
        compressors=[Crc32cCodec()],
        filters=None,
        config={"write_empty_chunks": True},  # an all-zero chunk must exist, or an absent one would look the same
    )
    if array.size:
        target[...] = array


def _entry(part: Path, cache_digest: str, arrays: dict[str, np.ndarray], samples: int) -> dict[str, Any]:
    files = {
        path.relative_to(part).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(part.rglob("*"))
        if path.is_file()
    }
    return {
        "part": part.name,
        "cache": cache_digest,
        "samples": samples,
        "tokens": int(arrays[OFFSETS][-1]),
        "bytes": sum(file["bytes"] for file in files.values()),
        "arrays": {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in arrays.items()},
        "files": files,
    }
