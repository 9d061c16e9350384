"""A token cache: `<modality>.zarr`, a Zarr v3 group of immutable parts with a manifest.

A part exists when its manifest entry does: parts are written under a temporary name, flushed, renamed, and the entry
is renamed into place last. So any number of writers may append, and a kill at any instant loses at most the part
being written. The *view*, published when an extraction is complete, says which (sample, digest) a reader gets.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import CorruptCacheError, UserError
from cache.key import CacheKey
from cache.parts import REMEDY, SampleTokens, from_stored, read_array, strings, write_part
from cache.publish import file_sha256, fingerprint, write_json

FORMAT_VERSION = 1
ORPHAN_AGE_S = 24 * 3600
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Place:
    """Where a sample lies: part id, row in the part."""

    part: str
    row: int


@dataclass(frozen=True)
class VerifyReport:
    """What `TokenStore.verify` found."""

    problems: list[str]
    parts: int
    samples: int
    orphans: int
    removed: list[str] = field(default_factory=list)


class TokenStore:
    """Open token cache; attributes `path`, `key`, `width` and `dtype`."""

    def __init__(self, path: Path, key: CacheKey, width: int, dtype: str) -> None:
        self.path, self.key, self.width, self.dtype = path, key, width, dtype

    @classmethod
    def create(cls, path: Path, key: CacheKey, width: int, dtype: str = "float16") -> "TokenStore":
        """Create a cache, or open the one that is there if its key is the same.

        Raises:
            StaleCacheError: the cache at `path` has another key.
            UserError: unknown `dtype`.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}.")
        if (path / "zarr.json").exists():
            store = cls.open(path)
            store.key.require_same(key, path)
            return store
        for folder in ("parts", "manifest"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        attributes = {"format": FORMAT_VERSION, "key": key.model_dump(mode="json"), "width": width, "dtype": dtype}
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"selfmask": attributes}}
        write_json(path / "zarr.json", document)
        return cls(path, key, width, dtype)

    @classmethod
    def open(cls, path: Path) -> "TokenStore":
        """Open a cache and check the manifest against the files' sizes.

        Raises:
            UserError: there is no cache at `path`.
            CorruptCacheError: a listed file is absent or has another size.
        """
        try:
            attributes = json.loads((path / "zarr.json").read_text())["attributes"]["selfmask"]
            key = CacheKey.model_validate(attributes["key"])
        except FileNotFoundError as error:
            raise UserError(f"There is no token cache at {path}. Run `selfmask extract`.") from error
        except (KeyError, ValueError) as error:
            raise CorruptCacheError(
                f"{path}/zarr.json is not a token cache's ({type(error).__name__}). {REMEDY}"
            ) from error
        if attributes["format"] != FORMAT_VERSION:
            raise UserError(f"{path} has format {attributes['format']}; this version reads {FORMAT_VERSION}.")
        store = cls(path, key, attributes["width"], attributes["dtype"])
        store._check_sizes()
        return store

    def append(self, samples: Sequence[SampleTokens]) -> str | None:
        """Publish the samples as one immutable part; returns its id, None for no samples."""
        return write_part(self.path, samples, self.width, self.dtype) if samples else None

    def entries(self) -> list[dict[str, Any]]:
        """Return the manifest entries, ordered by part id."""
        return [self._entry(path) for path in sorted((self.path / "manifest").glob("*.json"))]

    def places(self) -> dict[tuple[str, str], Place]:
        """Return where each (sample id, digest) lies; of duplicates the first by part id."""
        found: dict[tuple[str, str], Place] = {}
        for entry in self.entries():
            ids = strings(read_array(self.path, entry, "sample_ids"))
            digests = strings(read_array(self.path, entry, "digests"))
            for row, identity in enumerate(zip(ids, digests, strict=True)):
                found.setdefault(identity, Place(entry["part"], row))
        return found

    def missing_from(self, wanted: Mapping[str, str]) -> list[str]:
        """Return the ids of `wanted` (id to digest) that have neither tokens nor a recorded failure."""
        have, failed = self.places(), self._failed()
        return [
            i for i, digest in wanted.items() if (i, digest) not in have and failed.get(i, {}).get("digest") != digest
        ]

    def record_failures(self, failures: Mapping[str, tuple[str, str]]) -> None:
        """Remember samples that cannot be encoded: id to (digest, reason)."""
        if failures:
            new = {i: {"digest": digest, "reason": reason} for i, (digest, reason) in failures.items()}
            write_json(self.path / "failures.json", {**self._failed(), **new})

    def failures(self) -> dict[str, str]:
        """Return id to reason of the samples that could not be encoded."""
        return {i: str(record["reason"]) for i, record in self._failed().items()}

    def publish_view(self, wanted: Mapping[str, str]) -> None:
        """Declare the extraction of `wanted` (id to digest) complete; readers see exactly these samples."""
        absent = self.missing_from(wanted)
        if absent:
            raise UserError(f"{self.path}: {len(absent)} samples are not extracted yet. Run `selfmask extract`.")
        write_json(self.path / "view.json", dict(wanted))

    def view(self) -> dict[str, str]:
        """Return id to digest of the complete extraction.

        Raises:
            UserError: no extraction has completed.
        """
        path = self.path / "view.json"
        if not path.exists():
            raise UserError(
                f"The extraction into {self.path} is not complete. Run `selfmask extract` again to finish it."
            )
        return dict(json.loads(path.read_text()))

    def read(self, sample_ids: Sequence[str]) -> list[SampleTokens]:
        """Read samples of the view; float32 tokens [T, width].

        Raises:
            UserError: a sample has no tokens here.
        """
        view, places = self.view(), self.places()
        absent = [i for i in sample_ids if (i, view.get(i, "")) not in places]
        if absent:
            raise UserError(f"{len(absent)} of the samples have no tokens in {self.path}. Run `selfmask extract`.")
        entries = {entry["part"]: entry for entry in self.entries()}
        return [self._sample(i, view[i], entries, places[(i, view[i])]) for i in sample_ids]

    def content_digest(self) -> str:
        """Return a digest of key, parts and view: what training on this cache depends on."""
        view = self.path / "view.json"
        parts = [file_sha256(path) for path in sorted((self.path / "manifest").glob("*.json"))]
        return fingerprint([self.key.digest(), parts, file_sha256(view) if view.exists() else None])

    def info(self) -> dict[str, Any]:
        """Return key, counts and bytes."""
        entries = self.entries()
        complete = (self.path / "view.json").exists()
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
            "complete": complete,
            "in_view": len(self.view()) if complete else 0,
            "failures": len(self._failed()),
        }

    def verify(self, clean: bool = False) -> VerifyReport:
        """Check every checksum, decode every array through zarr, and look for orphans (unpublished parts).

        Args:
            clean: remove orphans older than a day.
        """
        problems, samples, entries = [], 0, []
        for path in sorted((self.path / "manifest").glob("*.json")):
            try:
                entry = self._entry(path)
            except CorruptCacheError as error:
                problems.append(str(error))
                continue
            entries.append(entry)
            samples += entry["samples"]
            problems += self._part_problems(entry)
        published = {entry["part"] for entry in entries}
        orphans = [
            p for p in (self.path / "parts").iterdir() if p.name not in published and not p.name.startswith("zarr")
        ]
        removed = [self._remove(p) for p in orphans if clean and time.time() - p.stat().st_mtime > ORPHAN_AGE_S]
        return VerifyReport(problems, len(entries), samples, len(orphans), removed)

    def _part_problems(self, entry: dict[str, Any]) -> list[str]:
        folder, problems = self.path / "parts" / entry["part"], []
        for name, expected in entry["files"].items():
            path = folder / name
            if not path.is_file():
                problems.append(f"{path} is absent. {REMEDY}")
            elif file_sha256(path) != expected["sha256"]:
                problems.append(f"{path} fails its checksum. {REMEDY}")
        return problems

    def _check_sizes(self) -> None:
        for entry in self.entries():
            folder = self.path / "parts" / entry["part"]
            for name, expected in entry["files"].items():
                path = folder / name
                if not path.is_file() or path.stat().st_size != expected["bytes"]:
                    raise CorruptCacheError(f"{path} is absent or has another size than the manifest says. {REMEDY}")

    def _entry(self, path: Path) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = json.loads(path.read_text())
            digest = entry.pop("digest")
        except (ValueError, KeyError) as error:
            raise CorruptCacheError(f"{path} is damaged. {REMEDY}") from error
        if digest != fingerprint(entry) or entry["part"] != path.stem:
            raise CorruptCacheError(f"{path} fails its checksum. {REMEDY}")
        return entry

    def _failed(self) -> dict[str, dict[str, str]]:
        path = self.path / "failures.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _sample(self, sample_id: str, digest: str, entries: dict[str, dict[str, Any]], place: Place) -> SampleTokens:
        entry = entries[place.part]
        offsets = read_array(self.path, entry, "offsets")
        start, end = int(offsets[place.row]), int(offsets[place.row + 1])
        tokens = from_stored(np.asarray(read_array(self.path, entry, "tokens")[start:end]), self.dtype)
        return SampleTokens(sample_id, digest, tokens, self.maskable_bits(entry)[start:end])

    def maskable_bits(self, entry: dict[str, Any]) -> np.ndarray:
        """Return the maskable flags of a part; bool [tokens]."""
        packed = np.asarray(read_array(self.path, entry, "maskable"))
        return np.unpackbits(packed, count=entry["tokens"], bitorder="little").astype(bool)

    def _remove(self, folder: Path) -> str:
        shutil.rmtree(folder)
        return folder.name
