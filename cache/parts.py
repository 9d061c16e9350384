"""One immutable part of a cache: written once through zarr, published by rename, read by mapping its chunk files.

Every array is one uncompressed chunk with codecs `bytes` + `crc32c`, so a chunk file is the array's bytes followed by
a four-byte checksum: any Zarr v3 reader opens it, and ours maps it at the speed of memory. Without the checksum no
reader would notice a flipped bit; without the manifest an absent chunk would read as zeros.
"""

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from cache.errors import CorruptCacheError, UserError
from cache.publish import file_sha256, fingerprint, publish_folder, write_json

CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class SampleTokens:
    """Tokens of one sample: float [T, width], maskable bool [T]; `digest` identifies the raw input."""

    sample_id: str
    digest: str
    tokens: np.ndarray
    maskable: np.ndarray


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy type on disk; bfloat16 has none and is stored as its bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def to_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 values to the stored type."""
    if dtype != "bfloat16":
        return values.astype(stored_dtype(dtype))
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # round to nearest even
    return (rounded >> np.uint32(16)).astype(np.uint16)


def from_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 values."""
    if dtype != "bfloat16":
        return values.astype(np.float32)
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)


def write_part(store: Path, samples: Sequence[SampleTokens], width: int, dtype: str) -> str:
    """Write and publish one part; the manifest entry comes last. Returns the part id."""
    arrays = _arrays(samples, width, dtype)
    part_id = uuid.uuid4().hex
    temporary = store / "parts" / f".{part_id}.partial"
    try:
        group = zarr.create_group(temporary, zarr_format=3, attributes={"samples": len(samples)})
        for name, array in arrays.items():
            _write_array(group, name, array)
        publish_folder(temporary, store / "parts" / part_id)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{store}: cannot write a part ({error}). Free disk space and run the same command.") from error
    write_json(store / "manifest" / f"{part_id}.json", _entry(store / "parts" / part_id, part_id, arrays, len(samples)))
    return part_id


def read_array(store: Path, entry: dict[str, Any], name: str) -> np.ndarray:
    """Map one array of a published part, read-only."""
    spec = entry["arrays"][name]
    shape, dtype = tuple(spec["shape"]), np.dtype(spec["dtype"])
    if 0 in shape:
        return np.zeros(shape, dtype)
    path = store / "parts" / entry["part"] / name / "c" / "/".join("0" for _ in shape)
    expected = int(np.prod(shape)) * dtype.itemsize + CHECKSUM_BYTES
    if not path.is_file() or path.stat().st_size != expected:
        raise CorruptCacheError(f"{path} is absent or truncated. {REMEDY}")
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


REMEDY = "Pull it again (`dvc pull`), or remove the part's manifest entry and run `selfmask extract`."


def _arrays(samples: Sequence[SampleTokens], width: int, dtype: str) -> dict[str, np.ndarray]:
    for sample in samples:
        if sample.tokens.ndim != 2 or sample.tokens.shape[1] != width:
            raise UserError(f"Tokens have shape {sample.tokens.shape}; this cache holds [T, {width}].")
        if sample.maskable.shape != sample.tokens.shape[:1]:
            raise UserError(f"maskable has shape {sample.maskable.shape}, tokens {sample.tokens.shape}.")
    tokens = np.concatenate([s.tokens for s in samples], dtype=np.float32)
    stored = to_stored(tokens, dtype)
    if not bool(np.isfinite(from_stored(stored, dtype)).all()):
        raise UserError(
            f"A token is NaN, infinite or beyond the range of {dtype}. Check the encoder, or set extract.dtype=float32."
        )
    return {
        "tokens": stored,
        "offsets": np.cumsum([0, *(len(s.tokens) for s in samples)], dtype=np.int64),
        "maskable": np.packbits(np.concatenate([s.maskable.astype(bool) for s in samples]), bitorder="little"),
        "sample_ids": _strings([s.sample_id for s in samples]),
        "digests": _strings([s.digest for s in samples]),
    }


def _strings(values: Sequence[str]) -> np.ndarray:
    encoded = [value.encode() for value in values]
    width = max(1, *(len(value) for value in encoded))
    flat = b"".join(value.ljust(width, b"\0") for value in encoded)
    return np.frombuffer(flat, np.uint8).reshape(len(encoded), width)


def strings(array: np.ndarray) -> list[str]:
    """Decode ids stored as zero-padded UTF-8 rows of bytes."""
    return [row.tobytes().rstrip(b"\0").decode() for row in np.asarray(array)]


def _write_array(group: zarr.Group, name: str, array: np.ndarray) -> None:
    chunks = tuple(max(1, size) for size in array.shape)
    target = group.create_array(
        name,
        shape=array.shape,
        chunks=chunks,
        dtype=array.dtype,
        serializer=BytesCodec(endian="little" if array.dtype.itemsize > 1 else None),
        compressors=[Crc32cCodec()],
        filters=None,
        config={"write_empty_chunks": True},  # an all-zero chunk must exist, or an absent one would look the same
    )
    if array.size:
        target[...] = array


def _entry(part: Path, part_id: str, arrays: dict[str, np.ndarray], samples: int) -> dict[str, Any]:
    files = {
        str(path.relative_to(part)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(part.rglob("*"))
        if path.is_file()
    }
    shapes = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in arrays.items()}
    entry = {
        "part": part_id,
        "samples": samples,
        "tokens": int(arrays["offsets"][-1]),
        "bytes": sum(file["bytes"] for file in files.values()),
        "arrays": shapes,
        "files": files,
    }
    return {**entry, "digest": fingerprint(entry)}
