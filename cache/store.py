"""A token cache: `<modality>.zarr`, a Zarr v3 group of immutable parts with a manifest.

A part exists when its manifest entry does: parts are written under a temporary name, flushed, renamed, and the entry
is renamed into place last. So any number of writers may append, and a kill at any instant loses at most the part
being written. The *view*, published when an extraction is complete, says which (sample, digest) a reader gets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import CorruptCacheError, StaleCacheError, UserError
from cache.key import CacheKey
from cache.lock import publishing
from cache.manifest import (
    PART_REMEDY,
    entry_paths,
    read_entries,
    read_entry,
    read_failures,
    read_view,
    write_failures,
    write_view,
)
from cache.parts import PartArrays, SampleTokens, from_stored, read_identities, read_part, write_part
from cache.publish import file_sha256, fingerprint
from cache.root import read_root, root_document, write_root
from cache.verify import VerifyReport, check_sizes, document_problems, find_orphans, part_problems, remove_old

DTYPES = ("float16", "bfloat16", "float32")

__all__ = ["DTYPES", "Place", "SampleTokens", "TokenStore", "VerifyReport"]


@dataclass(frozen=True)
class Place:
    """Where a sample lies: part id, row in the part."""

    part: str
    row: int


class TokenStore:
    """Open token cache; attributes `path`, `key`, `width` and `dtype`."""

    def __init__(self, path: Path, key: CacheKey, width: int, dtype: str) -> None:
        self.path, self.key, self.width, self.dtype = path, key, width, dtype
        # Every part names it, so that parts of another cache are refused even if their files were copied here.
        self.identity = fingerprint([key.digest(), width, dtype])

    @classmethod
    def create(cls, path: Path, key: CacheKey, width: int, dtype: str = "float16") -> "TokenStore":
        """Create a cache, or open the one that is there if its key, width and dtype are the same.

        Raises:
            StaleCacheError: the cache at `path` has another key, width or dtype; names the differing fields.
            UserError: unknown `dtype`, or a width below one.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}. Set extract.dtype.")
        if width < 1:
            raise UserError(f"Tokens need a width of at least one, not {width}.")
        if not (path / "zarr.json").exists():
            write_root(path, key, width, dtype)
        store = cls.open(path)  # what is on disk counts: another writer may have been first
        store.key.require_same(key, path)
        if (store.width, store.dtype) != (width, dtype):
            raise StaleCacheError(
                f"{path} holds other tokens (width: cached {store.width}, wanted {width}; dtype: cached {store.dtype}, "
                f"wanted {dtype}). Run `selfmask extract` again, or choose another folder."
            )
        return store

    @classmethod
    def open(cls, path: Path) -> "TokenStore":
        """Open a cache and check the manifest against the files' sizes.

        Raises:
            UserError: there is no cache at `path`.
            StaleCacheError: the cache has another format version.
            CorruptCacheError: a listed file is absent or has another size, or a document is damaged.
        """
        if not (path / "zarr.json").is_file():
            raise UserError(f"There is no token cache at {path}. Run `selfmask extract`.")
        store = cls(path, *read_root(path))
        for entry in store.entries():
            check_sizes(path, entry)
        return store

    def append(self, samples: Sequence[SampleTokens]) -> str | None:
        """Publish the samples as one immutable part; returns its id, None for no samples.

        Raises:
            UserError: tokens have another width or are not finite in this cache's dtype, or the disk is full.
        """
        return write_part(self.path, self.identity, samples, self.width, self.dtype) if samples else None

    def entries(self) -> list[dict[str, Any]]:
        """Return the manifest entries, ordered by part id."""
        return read_entries(self.path, self.identity)

    def places(self) -> dict[tuple[str, str], Place]:
        """Return where each (sample id, digest) lies; of duplicates the first by part id."""
        found: dict[tuple[str, str], Place] = {}
        for entry in self.entries():
            for row, identity in enumerate(read_identities(self.path, entry)):
                found.setdefault(identity, Place(entry["part"], row))
        return found

    def locate(self, sample_ids: Sequence[str]) -> list[Place | None]:
        """Return where the view's tokens of each sample lie; None if the view lacks it or it failed.

        Raises:
            UserError: no extraction has completed.
            CorruptCacheError: tokens that the view promises are gone; they must not count as a missing modality.
        """
        view, places, failed = self.view(), self.places(), read_failures(self.path)
        self._require_all(((i, view[i]) for i in sample_ids if i in view), places.keys() | failed.keys())
        return [places.get((i, view[i])) if i in view else None for i in sample_ids]

    def missing_from(self, wanted: Mapping[str, str]) -> list[str]:
        """Return the ids of `wanted` (id to digest) that have neither tokens nor a recorded failure."""
        done = self.places().keys() | read_failures(self.path).keys()
        return [i for i, digest in wanted.items() if (i, digest) not in done]

    def record_failures(self, failures: Mapping[str, tuple[str, str]]) -> None:
        """Remember samples that cannot be encoded: id to (digest, reason)."""
        if failures:
            write_failures(self.path, failures)

    def failures(self) -> dict[str, str]:
        """Return id to reason of the samples without tokens: of the view, or all before there is one."""
        view, places = read_view(self.path), self.places()
        return {
            i: reason
            for (i, digest), reason in read_failures(self.path).items()
            if (i, digest) not in places and (view is None or view.get(i) == digest)
        }

    def publish_view(self, wanted: Mapping[str, str]) -> None:
        """Declare the extraction of `wanted` (id to digest) complete; readers see exactly these samples.

        Raises:
            UserError: a sample has neither tokens nor a recorded failure.
        """
        with publishing(self.path):  # or compact could drop a sample between the check and the view
            absent = self.missing_from(wanted)
            if absent:
                raise UserError(f"{self.path}: {len(absent)} samples are not extracted yet. Run `selfmask extract`.")
            write_view(self.path, wanted)

    def view(self) -> dict[str, str]:
        """Return id to digest of the complete extraction.

        Raises:
            UserError: no extraction has completed.
        """
        view = read_view(self.path)
        if view is None:
            raise UserError(
                f"The extraction into {self.path} is not complete. Run `selfmask extract` again to finish it."
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
            raise UserError(f"{absent} of the samples have no tokens in {self.path}. Run `selfmask extract`.")
        wanted, parts = {place.part for place in places if place}, {}
        for entry in self.entries():
            if entry["part"] in wanted:
                parts[entry["part"]] = self.read_part(entry)
        found = []
        for i, place in zip(sample_ids, places, strict=True):
            assert place is not None
            part = parts[place.part]
            own = slice(int(part.offsets[place.row]), int(part.offsets[place.row + 1]))
            tokens = from_stored(np.asarray(part.tokens[own]), self.dtype)
            found.append(SampleTokens(i, view[i], tokens, part.maskable[own]))
        return found

    def read_part(self, entry: dict[str, Any]) -> PartArrays:
        """Return the arrays of one part, as stored."""
        return read_part(self.path, entry)

    def content_digest(self) -> str:
        """Return a digest of key, parts and view: what training on this cache depends on."""
        view = self.path / "view.json"
        parts = [file_sha256(path) for path in entry_paths(self.path)]
        return fingerprint([self.identity, parts, file_sha256(view) if view.exists() else None])

    def info(self) -> dict[str, Any]:
        """Return key, counts and bytes."""
        entries, view = self.entries(), read_view(self.path)
        return {
            "path": str(self.path),
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

    def verify(self, clean: bool = False) -> VerifyReport:
        """Read everything and check every checksum, that the view is covered, and for orphans (unpublished parts).

        Args:
            clean: remove orphans older than a day.
        """
        problems, entries = document_problems(self.path, root_document(self.key, self.width, self.dtype)), []
        for path in entry_paths(self.path):
            try:
                entry = read_entry(path, self.identity)
            except FileNotFoundError:  # compacted since it was listed
                continue
            except CorruptCacheError as error:
                problems += [] if str(error) in problems else [str(error)]
                continue
            entries.append(entry)
            problems += part_problems(self.path, entry)
        if not problems:
            problems += self._view_problems()
        orphans = find_orphans(self.path)
        removed = remove_old(self.path, orphans) if clean else []
        return VerifyReport(problems, len(entries), sum(e["samples"] for e in entries), len(orphans), removed)

    def _view_problems(self) -> list[str]:
        view = read_view(self.path) or {}
        try:
            self._require_all(view.items(), self.places().keys() | read_failures(self.path).keys())
        except CorruptCacheError as error:
            return [str(error)]
        return []

    def _require_all(self, wanted: Iterable[tuple[str, str]], present: set[tuple[str, str]]) -> None:
        lost = sum(identity not in present for identity in wanted)
        if lost:
            raise CorruptCacheError(
                f"{self.path / 'manifest'}: {lost} samples of view.json are in no part listed here. {PART_REMEDY}"
            )
