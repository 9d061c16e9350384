"""Chunk files: one array is one file, its bytes (or their zstd frame) followed by a CRC-32C.

That is what the Zarr v3 codecs `bytes` (+ `zstd`) + `crc32c` make of an array with a single chunk, so any Zarr reader
opens it. Uncompressed local files are mapped at the speed of memory; the others are read, checked and decoded. The
shape and type come from the manifest, which vouches for itself, and not from the array's own document.
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
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


@dataclass(frozen=True)
class Written:
    """A chunk file that was written: its size, its SHA-256, and the CRC-32C of the array's own bytes."""

    bytes: int
    sha256: str
    content_crc: int


class _Sums:
    """Running checksums of a chunk file; also usable in another thread, since neither holds the interpreter's lock."""

    def __init__(self) -> None:
        self.sha256, self.crc, self.bytes = hashlib.sha256(), 0, 0

    def add(self, data: Any) -> None:
        self.sha256.update(data)
        self.crc = google_crc32c.extend(self.crc, data)
        self.bytes += len(data)

    def seal(self) -> bytes:
        """Return the last bytes of the file, and count them."""
        end = self.crc.to_bytes(CHECKSUM_BYTES, "little")
        self.sha256.update(end)
        self.bytes += len(end)
        return end


def write_chunk(path: Path, blocks: Iterable[np.ndarray], compression: str) -> Written:
    """Write the chunk file of an array that comes in consecutive blocks.

    A block's checksums are computed while it is written and the next one is made, so that the processor does not wait
    for the disk, and memory is that of two blocks; a compressed array is needed whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = (np.ascontiguousarray(block).reshape(-1).view(np.uint8) for block in blocks)
    if compression == "zstd":
        return _write_compressed(path, np.concatenate([np.zeros(0, np.uint8), *raw]))
    sums = _Sums()
    with path.open("wb", buffering=0) as stream, ThreadPoolExecutor(1) as pool:
        pending: deque[Future[None]] = deque()
        for block in raw:
            pending.append(pool.submit(sums.add, block))
            _write_all(stream, block)
            if len(pending) > 1:
                pending.popleft().result()
        while pending:
            pending.popleft().result()
        _write_all(stream, sums.seal())
    return Written(sums.bytes, sums.sha256.hexdigest(), sums.crc)


def content_crc(array: np.ndarray) -> int:
    """Return the CRC-32C of an array's bytes."""
    return int(google_crc32c.extend(0, np.ascontiguousarray(array).reshape(-1).view(np.uint8)))


def _write_compressed(path: Path, raw: np.ndarray) -> Written:
    sums = _Sums()
    data = zstd.compress(raw, ZSTD_LEVEL)
    sums.add(data)
    path.write_bytes(data + sums.seal())
    return Written(sums.bytes, sums.sha256.hexdigest(), content_crc(raw))


def _write_all(stream: FileIO, data: Any) -> None:
    left = memoryview(data)
    while left:  # a write may take less than it is given
        left = left[stream.write(left) :]


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
