"""Where a cache lies: a local folder or an fsspec URL (`s3://`, `memory://`, ...).

Local caches keep `pathlib.Path`, so their tokens are mapped. `RemotePath` has the few methods of Path that reading
needs; large files come in ranges, several at a time, because one connection to an object store is far slower than the
network. `file://` is a local folder. Nothing is ever written through a URL here (see `cache.upload`).
"""

import fnmatch
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import google_crc32c
import numpy as np

from cache.errors import UserError

RANGE_BYTES = 16 << 20
CONNECTIONS = 8
BLOCK_BYTES = 4 << 20
# The CRC-32C of anything followed by its own CRC-32C.
CRC_RESIDUE = 0x48674BC7
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RemotePath:
    """A path on an fsspec filesystem, read-only."""

    filesystem: Any
    path: str

    def __str__(self) -> str:
        return str(self.filesystem.unstrip_protocol(self.path))

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.filesystem, f"{self.path.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last component."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The last component without its suffix."""
        return self.name.rsplit(".", 1)[0]

    def is_file(self) -> bool:
        """Tell whether there is a file."""
        with reaching(self):
            return bool(self.filesystem.isfile(self.path))

    def exists(self) -> bool:
        """Tell whether there is anything."""
        with reaching(self):
            return bool(self.filesystem.exists(self.path))

    def read_bytes(self) -> bytes:
        """Return the content; FileNotFoundError when there is none."""
        with reaching(self):
            return bytes(self.filesystem.cat_file(self.path))

    def read_range(self, start: int, end: int) -> bytes:
        """Return bytes [start, end)."""
        with reaching(self):
            return bytes(self.filesystem.cat_file(self.path, start=start, end=end))

    def glob(self, pattern: str) -> list["RemotePath"]:
        """Return the files directly below whose name matches."""
        try:
            with reaching(self):
                found = self.filesystem.ls(self.path, detail=False)
        except FileNotFoundError:  # an object store has no empty folders
            return []
        paths = [RemotePath(self.filesystem, str(name).rstrip("/")) for name in found]
        return [path for path in paths if fnmatch.fnmatchcase(path.name, pattern)]


Location = Path | RemotePath
Somewhere = TypeVar("Somewhere", bound=Location)


def locate(place: str | Path | RemotePath) -> Location:
    """Return the location of a path or URL.

    Raises:
        UserError: no filesystem is known for the URL's protocol, or its package is not installed.
    """
    if not isinstance(place, str) or "://" not in place:
        return Path(place) if isinstance(place, str) else place
    try:
        filesystem, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise UserError(f"{place} cannot be read ({error}). For s3:// run `pip install 'selfmask[s3]'`.") from error
    if "file" in filesystem.protocol:
        return Path(path)
    filesystem.invalidate_cache()  # a listing from before another machine's upload would hide its parts
    return RemotePath(filesystem, path.rstrip("/"))


def sizes(folder: Location) -> dict[str, int]:
    """Return the bytes of every file below a folder, by its path relative to it; empty if there is none."""
    if isinstance(folder, Path):
        return dict(_local_sizes(folder))
    with reaching(folder):
        found = folder.filesystem.find(folder.path, detail=True)
    start = len(folder.path) + 1
    return {str(name)[start:]: int(facts["size"]) for name, facts in found.items()}


def read_exactly(path: Location, count: int) -> np.ndarray | None:
    """Return a file's bytes, uint8 [count]; None when it is absent or has another size."""
    try:
        if isinstance(path, Path):
            content = np.fromfile(path, np.uint8)
            return content if len(content) == count else None
        return _fetch(path, count)
    except FileNotFoundError:
        return None


def scan(path: Location) -> tuple[int, str, bool]:
    """Read a file once; returns its bytes, SHA-256, and whether it ends with the CRC-32C of what precedes."""
    size, digest, crc = 0, hashlib.sha256(), 0
    with _opened(path) as stream:
        while block := stream.read(BLOCK_BYTES):
            size, crc = size + len(block), google_crc32c.extend(crc, block)
            digest.update(block)
    return size, digest.hexdigest(), crc == CRC_RESIDUE


def map_all(function: Callable[[Item], Result], items: Iterable[Item], parallel: bool) -> list[Result]:
    """Apply a function to every item, in order; in threads if `parallel`, which pays when each one waits."""
    if not parallel:
        return [function(item) for item in items]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(function, items))


def _fetch(path: RemotePath, count: int) -> np.ndarray | None:
    content = np.empty(count, np.uint8)

    def fetch(start: int) -> bool:
        end = min(start + RANGE_BYTES, count)
        data = path.read_range(start, end)
        if len(data) == end - start:
            content[start:end] = np.frombuffer(data, np.uint8)
        return len(data) == end - start

    starts = range(0, count, RANGE_BYTES)
    return content if all(map_all(fetch, starts, parallel=len(starts) > 1)) else None


def _local_sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            with suppress(FileNotFoundError):  # a writer has just renamed its temporary folder
                yield path.relative_to(folder).as_posix(), path.stat().st_size


def _opened(path: Location) -> Any:
    if isinstance(path, Path):
        return path.open("rb")
    with reaching(path):
        return path.filesystem.open(path.path, "rb", block_size=RANGE_BYTES)


@contextmanager
def reaching(path: RemotePath) -> Iterator[None]:
    """Say in one line why a URL cannot be reached: filesystems raise errors of their own packages."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} cannot be reached ({reason}). Check the address and your credentials.") from error
