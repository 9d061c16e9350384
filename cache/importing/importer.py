"""Writes the samples of a reader into a cache, part by part: memory is that of one part.

The key says that the tokens were imported: the encoder's name as given, and the digest of the source in the place of
the weights', since the source is what the tokens depend on. What the cache has already is skipped, so a killed import
goes on and a second one adds nothing. The view is published last.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cache.errors import UserError
from cache.importing.arrays import read_npy, read_npz
from cache.importing.hdf5 import read_hdf5
from cache.importing.parquet import read_parquet
from cache.importing.pickles import read_pickles
from cache.importing.raw import Layout, RawSample
from cache.importing.safetensors import read_safetensors
from cache.key import CacheKey
from cache.manifest import read_failures, read_view
from cache.parts import SampleTokens
from cache.places import Identity
from cache.precision import token_bytes
from cache.publish import file_sha256, fingerprint
from cache.store import TokenStore

READERS: dict[str, Callable[[Path, Layout], Iterator[RawSample]]] = {
    "hdf5": read_hdf5,
    "npy": read_npy,
    "npz": read_npz,
    "parquet": read_parquet,
    "pickle": read_pickles,
    "safetensors": read_safetensors,
}
LARGEST = {"float16": float(np.finfo(np.float16).max), "float32": float(np.finfo(np.float32).max)}


@dataclass(frozen=True)
class ImportReport:
    """Samples added now and held in all; failed: by reason."""

    added: int
    samples: int
    failed: dict[str, int]


@dataclass
class _Pending:
    """What is not yet published."""

    samples: list[SampleTokens] = field(default_factory=list)
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    bytes: int = 0


def import_tokens(
    source: Path, form: str, layout: Layout, into: Path, encoder: str, dtype: str, part_bytes: float
) -> ImportReport:
    """Import a file or folder.

    Args:
        source: file or folder.
        form: name of a reader.
        layout: where in the files the values are.
        into: cache to make, or one that an earlier import of the same source has begun.
        encoder: what made the tokens, for the key.
        dtype: stored type.
        part_bytes: bytes of a full part's tokens, as stored.

    Raises:
        UserError: unknown format, unreadable source, an id twice with other values, or not one usable sample.
        StaleCacheError: `into` holds other tokens.
    """
    if form not in READERS:
        raise UserError(f"--format '{form}' is not one of {', '.join(READERS)}.")
    if not source.exists():
        raise UserError(f"There is no {source} to import.")
    key = imported_key(source, form, layout, encoder)
    digests: dict[str, str] = {}
    store = _Import(key, into, dtype, part_bytes)
    for raw in READERS[form](source, layout):
        digest = raw.digest or _digest(raw)
        if digests.setdefault(raw.sample_id, digest) != digest:
            raise UserError(f"{source} holds an id twice, with different values. Give every sample an id of its own.")
        store.take(raw, digest)
    return store.finish(digests, source)


def imported_key(source: Path, form: str, layout: Layout, encoder: str) -> CacheKey:
    """Return the key of tokens that this source holds; reads it once."""
    return CacheKey.imported(encoder, source_digest(source), format=form, key=layout.key, ids=layout.ids)


def source_digest(source: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a folder's files."""
    if source.is_file():
        return file_sha256(source)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return fingerprint([[path.relative_to(source).as_posix(), file_sha256(path)] for path in files])


class _Import:
    """An import under way; the first usable sample decides the width of a new cache."""

    def __init__(self, key: CacheKey, into: Path, dtype: str, part_bytes: float) -> None:
        self.key, self.into, self.dtype, self.part_bytes = key, into, dtype, part_bytes
        self.store: TokenStore | None = None
        self.known: set[Identity] = set()
        self.pending = _Pending()
        self.added = 0
        if (into / "zarr.json").exists():
            self._open(TokenStore.open(into).width)

    def _open(self, width: int) -> None:
        self.store = TokenStore.create(self.into, self.key, width, self.dtype)
        self.known = set(self.store.places().keys() | read_failures(self.into).keys())

    def take(self, raw: RawSample, digest: str) -> None:
        """Put a sample among the pending ones, or its failure; publishes a full part."""
        if (raw.sample_id, digest) in self.known:
            return
        values, problem = _tokens(raw, self.dtype, self.store.width if self.store else None)
        if problem:
            self.pending.failures[raw.sample_id] = (digest, problem)
            return
        if self.store is None:
            self._open(values.shape[1])
        assert self.store is not None
        size = len(values) * token_bytes(self.store.width, self.store.dtype)
        if self.pending.samples and self.pending.bytes + size > self.part_bytes:
            self._publish(self.store)
        maskable = np.ones(len(values), bool) if raw.maskable is None else raw.maskable
        self.pending.samples.append(SampleTokens(raw.sample_id, digest, values, maskable))
        self.pending.bytes += size
        self.known.add((raw.sample_id, digest))

    def _publish(self, store: TokenStore) -> None:
        store.append(self.pending.samples)
        store.record_failures(self.pending.failures)
        self.added += len(self.pending.samples)
        self.pending = _Pending()

    def finish(self, digests: dict[str, str], source: Path) -> ImportReport:
        """Publish what is pending and the view."""
        if self.store is None:
            reasons = Counter(reason for _, reason in self.pending.failures.values())
            told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3)) or "it holds none"
            raise UserError(f"Not one sample of {source} can be imported: {told}. Check `--format` and `--key`.")
        self._publish(self.store)
        if read_view(self.into) != digests:
            self.store.publish_view(digests)
        failed = Counter(self.store.failures().values())
        return ImportReport(self.added, len(digests) - failed.total(), dict(failed.most_common()))


def _tokens(raw: RawSample, dtype: str, width: int | None) -> tuple[np.ndarray, str]:
    """Return float32 tokens [T, D], or the reason why the sample cannot be stored."""
    nothing = np.zeros((0, 0), np.float32)
    if raw.values is None:
        return nothing, raw.problem
    if raw.values.dtype.kind not in "fiu" or raw.values.ndim not in (1, 2):
        return nothing, f"holds {raw.values.ndim} dimensions of {raw.values.dtype}, not numbers [T, D] or [D]"
    values = np.atleast_2d(raw.values)
    if not values.size:
        return nothing, "holds no tokens"
    if width is not None and values.shape[1] != width:
        return nothing, f"has width {values.shape[1]}, the cache {width}"
    if raw.maskable is not None and raw.maskable.shape != values.shape[:1]:
        return nothing, "has another number of maskable flags than of tokens"
    if not np.isfinite(values).all():
        return nothing, "holds NaN or infinite values"
    if np.abs(values).max() > LARGEST.get(dtype, LARGEST["float32"]):
        return nothing, f"holds values beyond the range of {dtype}"
    return values.astype(np.float32), ""


def _digest(raw: RawSample) -> str:
    """Return a digest of the values as they were found."""
    if raw.values is None:
        return fingerprint(raw.problem)
    header = f"{raw.values.dtype.str}{raw.values.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(raw.values).tobytes()).hexdigest()
