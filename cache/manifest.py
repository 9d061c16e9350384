"""JSON documents of a cache that carry their own checksum: root attributes, manifest entries, view, failures.

The manifest vouches for every file of a part by size and checksum, so it and the other small documents must be able to
vouch for themselves: without that, one flipped bit in an id would turn a sample into a missing one, silently. Costs one
SHA-256 of the document when it is written and when it is read.
"""

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cache.errors import CorruptCacheError
from cache.location import Location, Somewhere, map_all
from cache.publish import fingerprint, write_json

REMEDY = "Pull it again (`dvc pull`), or remove this cache folder and run `selfmask extract`."
PART_REMEDY = "Pull it again (`dvc pull`), or run `selfmask cache verify --repair`, then `selfmask extract`."
LOST_REMEDY = "Pull them again (`dvc pull`), or run `selfmask extract`, which encodes exactly the lost samples."


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with its checksum, as `digest`."""
    return {**content, "digest": fingerprint(dict(content))}


def unseal(document: Any, path: Location, remedy: str = REMEDY) -> dict[str, Any]:
    """Return the content of a sealed document; `path` is for the message.

    Raises:
        CorruptCacheError: the checksum is absent or wrong.
    """
    content = dict(document) if isinstance(document, dict) else {}
    if content.pop("digest", None) != fingerprint(content):
        raise CorruptCacheError(f"{path} fails its checksum. {remedy}")
    return content


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Publish a sealed document by rename."""
    write_json(path, seal(content))


def read_json(path: Location, remedy: str = REMEDY) -> Any:
    """Return the JSON in `path`; CorruptCacheError when it is none."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptCacheError(f"{path} is damaged: it is not JSON. {remedy}") from error


def read_sealed(path: Location, remedy: str = REMEDY) -> dict[str, Any]:
    """Return the content of a sealed document.

    Raises:
        CorruptCacheError: it is damaged.
    """
    return unseal(read_json(path, remedy), path, remedy)


def read_entries(store: Location, cache_digest: str) -> list[dict[str, Any]]:
    """Return the manifest entries, ordered by part id: those of one instant.

    Raises:
        CorruptCacheError: an entry is damaged, misnamed or belongs to a cache of another key, width or type.
    """
    return _read_all(store, entry_paths, lambda path: read_entry(path, cache_digest))


def _read_all(
    store: Location, listing: Callable[[Any], list[Any]], read: Callable[[Location], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Read every document that a listing names.

    A folder's listing may miss both a file that `cache.compact` removes and the one that replaces it. So it is listed
    until nothing has changed since the documents were read.
    """

    def attempt(path: Location) -> dict[str, Any] | None:
        try:
            return read(path)
        except FileNotFoundError:
            return None

    found: dict[Location, dict[str, Any]] = {}
    while (paths := listing(store)) != list(found):
        fresh = [path for path in paths if path not in found]
        contents = dict(zip(fresh, map_all(attempt, fresh, parallel=not isinstance(store, Path)), strict=True))
        known = {path: found.get(path) or contents.get(path) for path in paths}
        found = {path: content for path, content in known.items() if content is not None}
    return list(found.values())


def entry_paths(store: Somewhere) -> list[Somewhere]:
    """Return the paths of the manifest entries, ordered by part id."""
    return _documents(store / "manifest")


def failure_paths(store: Somewhere) -> list[Somewhere]:
    """Return the paths of the records of failures, ordered by name."""
    return _documents(store / "failures")


def read_entry(path: Location, cache_digest: str) -> dict[str, Any]:
    """Read one manifest entry; errors as of `read_entries`."""
    entry = read_sealed(path, PART_REMEDY)
    if entry.get("part") != path.stem:
        raise CorruptCacheError(f"{path} describes part {entry.get('part')}: it was renamed. {PART_REMEDY}")
    if entry["cache"] != cache_digest:
        raise CorruptCacheError(f"{path} belongs to a cache with another key, width or dtype. {PART_REMEDY}")
    return entry


def read_view(store: Location) -> dict[str, str] | None:
    """Return id to digest of the complete extraction, None before the first has completed."""
    path = store / "view.json"
    return dict(read_sealed(path)["samples"]) if path.exists() else None


def write_view(store: Path, samples: Mapping[str, str]) -> None:
    """Publish the view."""
    write_sealed(store / "view.json", {"samples": dict(samples)})


def write_failures(store: Path, failures: Mapping[str, tuple[str, str]]) -> None:
    """Publish failures, id to (digest, reason), in a file of their own: writers at the same time lose nothing."""
    write_failure_records(store, {(i, digest): reason for i, (digest, reason) in failures.items()})


def write_failure_records(store: Path, failures: Mapping[tuple[str, str], str]) -> None:
    """Publish the reason of every failed (id, digest) in a file of their own."""
    records = [{"id": i, "digest": digest, "reason": reason} for (i, digest), reason in sorted(failures.items())]
    if records:
        write_sealed(store / "failures" / f"{uuid.uuid4().hex}.json", {"records": records})


def read_failures(store: Location, paths: list[Path] | None = None) -> dict[tuple[str, str], str]:
    """Return the reason of every recorded (id, digest), of duplicates the first by file name; or of some files only."""
    documents = _read_all(store, failure_paths, read_sealed) if paths is None else map(read_sealed, paths)
    found: dict[tuple[str, str], str] = {}
    for document in documents:
        for record in document["records"]:
            found.setdefault((record["id"], record["digest"]), record["reason"])
    return found


def _documents(folder: Any) -> list[Any]:
    return sorted(folder.glob("*.json"), key=lambda path: str(path.name))
