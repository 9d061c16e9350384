"""A token cache: `<modality>.zarr`, a Zarr v3 group of immutable parts with a manifest.

A part exists when its manifest entry does: parts are written under a temporary name, flushed, renamed, and the entry
is renamed into place last. So any number of writers may append, and a kill at any instant loses at most the part
being written. The *view*, published when an extraction is complete, says which (sample, digest) a reader gets.
A cache at an fsspec URL is opened in the same way and is read-only.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.chunks import COMPRESSIONS
from cache.errors import StaleCacheError, UserError
from cache.key import CacheKey
from cache.location import Location, locate, map_all, sizes
from cache.lock import in_turn
from cache.manifest import (
    entry_paths,
    read_entries,
    read_failures,
    read_view,
    write_failures,
    write_view,
)
from cache.parts import PartArrays, SampleTokens, read_part
from cache.places import Place, find_places, require_all
from cache.precision import DTYPES
from cache.publish import fingerprint
from cache.repair import repair_cache
from cache.root import read_root, root_document, write_root
from cache.verify import VerifyReport, check_sizes, find_orphans, remove_old, verify_cache
from cache.writing import write_part

__all__ = ["DTYPES", "Place", "SampleTokens", "TokenStore", "VerifyReport"]


class TokenStore:
    """Open token cache; attributes `location`, `key`, `width` and `dtype`."""

    def __init__(self, location: Location, key: CacheKey, width: int, dtype: str) -> None:
        self.location, self.key, self.width, self.dtype = location, key, width, dtype
        self.compression = "none"
        # Every part names it, so that parts of another cache are refused even if their files were copied here.
        self.identity = fingerprint([key.digest(), width, dtype])

    @property
    def path(self) -> Path:
        """The local folder.

        Raises:
            UserError: the cache is at a URL, which is read-only.
        """
        if not isinstance(self.location, Path):
            raise UserError(f"{self.location} is read-only. Copy the cache to a local folder first.")
        return self.location

    @classmethod
    def create(
        cls, path: Path, key: CacheKey, width: int, dtype: str = "float16", compression: str = "none"
    ) -> "TokenStore":
        """Create a cache, or open the one that is there if its key, width and dtype are the same.

        Args:
            path: local folder.
            key: what its tokens depend on.
            width: of a token.
            dtype: stored type, one of `DTYPES`.
            compression: of the parts that this handle appends, `none` or `zstd`; the tokens are the same, so a cache
                may hold parts of both kinds.

        Raises:
            StaleCacheError: the cache at `path` has another key, width or dtype; names the differing fields.
            UserError: unknown `dtype` or `compression`, a width below one, or the disk is full.
        """
        if compression not in COMPRESSIONS:
            raise UserError(
                f"compression '{compression}' is not one of {', '.join(COMPRESSIONS)}. Set extract.compression."
            )
        if dtype not in DTYPES:
            raise UserError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}. Set extract.dtype.")
        if width < 1:
            raise UserError(f"Tokens need a width of at least one, not {width}.")
        if not (path / "zarr.json").exists():
            with _writing(path):
                write_root(path, key, width, dtype)
        store = cls.open(path)  # what is on disk counts: another writer may have been first
        store.key.require_same(key, path)
        if (store.width, store.dtype) != (width, dtype):
            raise StaleCacheError(
                f"{path} holds other tokens (width: cached {store.width}, wanted {width}; dtype: cached {store.dtype}, "
                f"wanted {dtype}). Run `selfmask extract` again, or choose another folder."
            )
        store.compression = compression
        return store

    @classmethod
    def open(cls, path: Path | str, *, check: bool = True) -> "TokenStore":
        """Open the cache in a folder or at a URL, and check the manifest against the files' sizes.

        Args:
            path: folder, or fsspec URL (`s3://bucket/data/ehr.zarr`).
            check: false for `verify` alone, which reports every difference instead of the first.

        Raises:
            UserError: there is no cache at `path`, or the URL cannot be read.
            StaleCacheError: the cache has another format version.
            CorruptCacheError: a listed file is absent or has another size, or a document is damaged.
        """
        location = locate(path)
        if not (location / "zarr.json").is_file():
            raise UserError(f"There is no token cache at {location}. Run `selfmask extract`.")
        store = cls(location, *read_root(location))
        if check:
            entries = store.entries()
            found = sizes(location / "parts")  # after the entries: a part is there before its entry
            for entry in entries:
                check_sizes(location, entry, found)
        return store

    def append(self, samples: Sequence[SampleTokens]) -> str | None:
        """Publish the samples as one immutable part; returns its id, None for no samples.

        Raises:
            UserError: tokens have another width or are not finite in this cache's dtype, or the disk is full.
        """
        if not samples:
            return None
        with _writing(self.path):
            return write_part(self.path, self.identity, samples, self.width, self.dtype, self.compression)

    def entries(self) -> list[dict[str, Any]]:
        """Return the manifest entries, ordered by part id."""
        return read_entries(self.location, self.identity)

    def places(self) -> dict[tuple[str, str], Place]:
        """Return where each (sample id, digest) lies; of duplicates the first by part id."""
        return find_places(self.location, self.entries())

    def locate(self, sample_ids: Sequence[str]) -> list[Place | None]:
        """Return where the view's tokens of each sample lie; None if the view lacks it or it failed.

        Raises:
            UserError: no extraction has completed.
            CorruptCacheError: tokens that the view promises are gone; they must not count as a missing modality.
        """
        view, places, failed = self.view(), self.places(), read_failures(self.location)
        require_all(self.location, ((i, view[i]) for i in sample_ids if i in view), places.keys() | failed.keys())
        return [places.get((i, view[i])) if i in view else None for i in sample_ids]

    def missing_from(self, wanted: Mapping[str, str], *, retry_failed: bool = False) -> list[str]:
        """Return the ids of `wanted` (id to digest) that have no tokens, nor, unless it is retried, a failure."""
        done = self.places().keys() | (set() if retry_failed else read_failures(self.location).keys())
        return [i for i, digest in wanted.items() if (i, digest) not in done]

    def record_failures(self, failures: Mapping[str, tuple[str, str]]) -> None:
        """Remember samples that cannot be encoded: id to (digest, reason)."""
        if failures:
            with _writing(self.path):
                write_failures(self.path, failures)

    def failures(self) -> dict[str, str]:
        """Return id to reason of the samples without tokens: of the view, or all before there is one."""
        view, places = read_view(self.location), self.places()
        return {
            i: reason
            for (i, digest), reason in read_failures(self.location).items()
            if (i, digest) not in places and (view is None or view.get(i) == digest)
        }

    def publish_view(self, wanted: Mapping[str, str]) -> None:
        """Declare the extraction of `wanted` (id to digest) complete; readers see exactly these samples.

        Raises:
            UserError: a sample has neither tokens nor a recorded failure.
        """
        with in_turn(self.path):  # or compact could drop a sample between the check and the view
            absent = self.missing_from(wanted)
            if absent:
                raise UserError(f"{self.path}: {len(absent)} samples are not extracted yet. Run `selfmask extract`.")
            with _writing(self.path):
                write_view(self.path, wanted)

    def view(self) -> dict[str, str]:
        """Return id to digest of the complete extraction.

        Raises:
            UserError: no extraction has completed.
        """
        view = read_view(self.location)
        if view is None:
            raise UserError(
                f"The extraction into {self.location} is not complete. Run `selfmask extract` again to finish it."
            )
        return view

    def read(self, sample_ids: Sequence[str]) -> list[SampleTokens]:
        """Read samples of the view, in the order asked for; float32 tokens [T, width].

        Raises:
            UserError: a sample has no tokens here.
        """
        places, view = self.locate(sample_ids), self.view()
        absent = sum(place is None for place in places)
        if absent:
            raise UserError(f"{absent} of the samples have no tokens in {self.location}. Run `selfmask extract`.")
        parts = self.read_parts({place.part for place in places if place})
        found = []
        for i, place in zip(sample_ids, places, strict=True):
            assert place is not None
            found.append(SampleTokens(i, view[i], *parts[place.part].sample(place.row, self.dtype)))
        return found

    def read_parts(self, part_ids: Iterable[str]) -> dict[str, PartArrays]:
        """Return the arrays of several parts, as stored; several at a time where they must be fetched or decoded."""
        wanted = set(part_ids)
        entries = [entry for entry in self.entries() if entry["part"] in wanted]
        decoded = any("compression" in entry["arrays"]["tokens"] for entry in entries)
        arrays = map_all(self.read_part, entries, self._remote or decoded)
        return {entry["part"]: part for entry, part in zip(entries, arrays, strict=True)}

    def read_part(self, entry: dict[str, Any]) -> PartArrays:
        """Return the arrays of one part, as stored."""
        return read_part(self.location, entry)

    def content_digest(self) -> str:
        """Return a digest of key, parts and view: what training on this cache depends on."""
        view = self.location / "view.json"
        parts = [_digest(path) for path in entry_paths(self.location)]
        return fingerprint([self.identity, parts, _digest(view) if view.exists() else None])

    def info(self) -> dict[str, Any]:
        """Return key, counts and bytes."""
        entries, view = self.entries(), read_view(self.location)
        return {
            "path": str(self.location),
            "key": self.key.model_dump(mode="json"),
            "key_digest": self.key.digest(),
            "width": self.width,
            "dtype": self.dtype,
            "parts": len(entries),
            "samples": sum(e["samples"] for e in entries),
            "tokens": sum(e["tokens"] for e in entries),
            "bytes": sum(e["bytes"] for e in entries),
            "complete": view is not None,
            "in_view": len(view or {}),
            "failures": len(self.failures()),
        }

    def verify(self, clean: bool = False, repair: bool = False) -> VerifyReport:
        """Read everything and check every checksum, that the view is covered, and for orphans (unpublished parts).

        Args:
            clean: remove orphans older than a day.
            repair: first restore what can be, and move what is damaged aside (see `cache.repair`).

        Raises:
            UserError: `clean` or `repair` of a cache at a URL.
        """
        root, repaired = root_document(self.key, self.width, self.dtype), []
        if repair:
            with _writing(self.path):
                repaired = repair_cache(self.path, root, self.identity)
        report = verify_cache(self.location, root, self.identity)
        removed = remove_old(self.path, find_orphans(self.path)) if clean else []
        return replace(report, removed=removed, repaired=repaired)

    @property
    def _remote(self) -> bool:
        return not isinstance(self.location, Path)


def _digest(path: Location) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full disk, and whatever else the system refuses, into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error}). Free disk space and run the same command again.") from error
