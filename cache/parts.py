"""One immutable part of a cache, and reading it by mapping its chunk files.

Every array is one chunk (see `cache.chunks`) that ends with a checksum: without it no reader would notice a flipped
bit; without the manifest an absent chunk would read as zeros. The small arrays (offsets, flags, ids, scales) are
checked at every reading, since a wrong offset would move tokens to another sample; mapped tokens by
`TokenStore.verify`, since checking them would cost a pass over the whole cache at every start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.chunks import Chunk, content_crc
from cache.location import Location
from cache.precision import from_stored
from cache.publish import file_sha256, fingerprint

TOKENS, SCALES, OFFSETS, MASKABLE = "tokens", "scales", "offsets", "maskable"
IDS, DIGESTS = "samples/ids", "samples/digests"


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


def list_files(part: Path, known: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """Return bytes and checksum of every file of a part; those in `known` are not read."""
    known = known or {}
    return {
        name: dict(known.get(name) or {"bytes": path.stat().st_size, "sha256": file_sha256(path)})
        for path in sorted(part.rglob("*"))
        if path.is_file()
        for name in [path.relative_to(part).as_posix()]
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


def part_attributes(crcs: Mapping[str, int], cache_digest: str, samples: int, dtype: str) -> dict[str, Any]:
    """Return the attributes of the part's group: for readers without the manifest, and to restore a lost entry.

    Args:
        crcs: CRC-32C of each array's bytes, by name.
        cache_digest: identity of the cache.
        samples: of the part.
        dtype: stored type.
    """
    digests = {name: f"{crc:08x}" for name, crc in crcs.items()}
    return {"cache": cache_digest, "samples": samples, "dtype": dtype, "content_digest": fingerprint(digests)}


def attributes_of(arrays: Mapping[str, np.ndarray], cache_digest: str, dtype: str) -> dict[str, Any]:
    """Return the attributes that a part of these arrays must have."""
    crcs = {name: content_crc(array) for name, array in arrays.items()}
    return part_attributes(crcs, cache_digest, len(arrays[OFFSETS]) - 1, dtype)


def _strings(array: np.ndarray) -> list[str]:
    return [row.tobytes().rstrip(b"\0").decode() for row in array]
