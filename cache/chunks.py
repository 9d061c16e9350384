"""Chunk files: one array is one file, its bytes (or their zstd frame) followed by a CRC-32C.

That is what the Zarr v3 codecs `bytes` (+ `zstd`) + `crc32c` make of an array with a single chunk, so any Zarr reader
opens it. Uncompressed local files are mapped at the speed of memory; the others are read, checked and decoded. The
shape and type come from the manifest, which vouches for itself, and not from the array's own document.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import zstd

from cache.errors import CorruptCacheError
from cache.location import Location, read_exactly
from cache.manifest import PART_REMEDY

CHECKSUM_BYTES = 4
COMPRESSIONS = ("none", "zstd")
ZSTD_LEVEL = 1  # higher levels gain little on the low bits of floats and cost several times as much


def chunk_name(array: str, dimensions: int) -> str:
    """Return the name of an array's only chunk file, relative to its part."""
    return f"{array}/c/" + "/".join("0" * dimensions)


def write_chunk(path: Path, array: np.ndarray, compression: str) -> None:
    """Write an array's chunk file."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    data: Any = zstd.compress(raw, ZSTD_LEVEL) if compression == "zstd" else raw
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(data)
        stream.write(google_crc32c.extend(0, data).to_bytes(CHECKSUM_BYTES, "little"))


@dataclass(frozen=True)
class Chunk:
    """The chunk file of one array of a published part."""

    path: Location
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    compression: str
    bytes: int
    """Size of the file as the manifest says; zero for an array without elements, which has no file."""

    @classmethod
    def of(cls, store: Location, entry: dict[str, Any], name: str) -> "Chunk":
        """Return the chunk of an array that the manifest entry lists."""
        spec = entry["arrays"][name]
        shape, dtype = tuple(spec["shape"]), np.dtype(spec["dtype"])
        file = chunk_name(name, len(shape))
        stored = entry["files"][file]["bytes"] if prod(shape) else 0
        path = store / "parts" / entry["part"] / file
        return cls(path, shape, dtype, spec.get("compression", "none"), stored)

    def read_or_map(self) -> np.ndarray:
        """Map the array, unchecked, where that is possible; else read it."""
        if self.compression != "none" or not isinstance(self.path, Path) or not self.bytes:
            return self.read()
        if not self.path.is_file() or self.path.stat().st_size != self._raw_bytes + CHECKSUM_BYTES:
            raise self._resized()
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=self.shape)

    def read(self) -> np.ndarray:
        """Read the array and check it.

        Raises:
            CorruptCacheError: the file is absent (never read as zeros), has another size or fails its checksum.
        """
        if not self.bytes:
            return np.zeros(self.shape, self.dtype)
        content = read_exactly(self.path, self.bytes)
        if content is None:
            raise self._resized()
        data = content[:-CHECKSUM_BYTES]
        if google_crc32c.extend(0, data) != int.from_bytes(content[-CHECKSUM_BYTES:].tobytes(), "little"):
            raise CorruptCacheError(f"{self.path} fails its checksum. {PART_REMEDY}")
        if self.compression == "zstd":
            data = self._decompressed(data)
        if len(data) != self._raw_bytes:
            raise self._resized()
        return data.view(self.dtype).reshape(self.shape)

    @property
    def _raw_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def _decompressed(self, data: np.ndarray) -> np.ndarray:
        # A frame that says more could ask for any memory; one that says less would leave the rest as it was.
        if _frame_content_bytes(data) != self._raw_bytes:
            raise self._resized()
        raw = np.empty(self._raw_bytes, np.uint8)
        try:
            zstd.decompress(data, raw)
        except (RuntimeError, ValueError) as error:
            raise CorruptCacheError(f"{self.path} cannot be decompressed. {PART_REMEDY}") from error
        return raw

    def _resized(self) -> CorruptCacheError:
        return CorruptCacheError(f"{self.path} is absent or has another size than the manifest says. {PART_REMEDY}")


def _frame_content_bytes(frame: np.ndarray) -> int | None:
    """Return the decompressed size in a zstd frame's header (RFC 8878, 3.1.1.1); None if it does not say."""
    header = frame[:18].tobytes()
    descriptor = header[4] if len(header) > 4 else 0
    single_segment = descriptor >> 5 & 1
    start = 6 - single_segment + (0, 1, 2, 4)[descriptor & 3]
    length = (single_segment, 2, 4, 8)[descriptor >> 6]
    if not length or len(header) < start + length:
        return None
    return int.from_bytes(header[start : start + length], "little") + (256 if length == 2 else 0)
