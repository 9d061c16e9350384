"""Integrity of a cache: every byte against the manifest, and what a killed writer left behind.

Opening a cache compares sizes only (one stat a file); `verify` reads everything. Orphans are what no manifest entry
mentions. An entry that is there but damaged still protects its part: pulling the entry again repairs it, while
removing the part would lose the tokens.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import CorruptCacheError
from cache.location import Location, RemotePath, scan, sizes
from cache.manifest import (
    PART_REMEDY,
    REMEDY,
    entry_paths,
    failure_paths,
    read_entry,
    read_failures,
    read_sealed,
    read_view,
    seal,
)
from cache.metadata import GROUP_FILE
from cache.places import find_places, require_all
from cache.progress import tracked
from cache.root import PARTS_GROUP

ORPHAN_AGE_S = 24 * 3600


@dataclass(frozen=True)
class VerifyReport:
    """What `TokenStore.verify` found: damage, counts, and unpublished leftovers.

    `removed` are the names of the leftovers deleted, `repaired` one line for each thing restored or moved aside.
    """

    problems: list[str]
    parts: int
    samples: int
    orphans: int
    removed: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)


def verify_cache(store: Location, root: dict[str, Any], identity: str) -> VerifyReport:
    """Read every byte of a cache; `root` is what its document must say, `identity` what its parts must name."""
    problems, entries = document_problems(store, root), []
    for path in tracked(entry_paths(store), "parts verified"):
        try:
            entry = read_entry(path, identity)
        except FileNotFoundError:  # compacted since it was listed
            continue
        except CorruptCacheError as error:
            problems += [] if str(error) in problems else [str(error)]
            continue
        entries.append(entry)
        problems += part_problems(store, entry)
    problems += [] if problems else _view_problems(store, entries)
    return VerifyReport(problems, len(entries), sum(e["samples"] for e in entries), len(find_orphans(store)))


def check_sizes(store: Location, entry: dict[str, Any], found: Mapping[str, int]) -> None:
    """Compare a part's files with its manifest entry; CorruptCacheError names the first that differs.

    `found` is what lies below parts/: file name to bytes.
    """
    for name, expected in entry["files"].items():
        if found.get(f"{entry['part']}/{name}") != expected["bytes"]:
            path = store / "parts" / entry["part"] / name
            raise CorruptCacheError(f"{path} is absent or has another size than the manifest says. {PART_REMEDY}")


def document_problems(store: Location, root: dict[str, Any]) -> list[str]:
    """Compare both groups with what they must say, and check the view's, failures' and manifest's spelling."""
    problems = []
    for path, expected in ((store / GROUP_FILE, root), (store / "parts" / GROUP_FILE, PARTS_GROUP)):
        if not path.is_file() or path.read_bytes() != spelled(expected):
            problems.append(f"{path} is absent or was changed. {REMEDY}")
    view = store / "view.json"
    for path in [*([view] if view.exists() else []), *failure_paths(store)]:
        problems += sealed_problems(path, REMEDY)
    for path in entry_paths(store):
        problems += sealed_problems(path, PART_REMEDY)
    return problems


def sealed_problems(path: Location, remedy: str) -> list[str]:
    """Check the seal and the spelling of a document."""
    try:
        content = read_sealed(path, remedy)
    except FileNotFoundError:  # compacted since it was listed
        return []
    except CorruptCacheError as error:
        return [str(error)]
    # Some flipped bits leave the meaning as it was (`\u00e9`, `\u00E9`), but not the file.
    return [] if path.read_bytes() == spelled(seal(content)) else [f"{path} was changed. {remedy}"]


def spelled(document: Any) -> bytes:
    """Return the bytes that `cache.publish.write_json` writes."""
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def part_problems(store: Location, entry: dict[str, Any]) -> list[str]:
    """Read every file of a part; one message for each that is absent, damaged or not in the manifest."""
    folder = store / "parts" / entry["part"]
    present = sizes(folder).keys()
    problems = [f"{folder / name} {damage}. {PART_REMEDY}" for name, damage in damaged_files(store, entry).items()]
    return problems + [
        f"{folder / name} is not in the manifest. Remove it." for name in sorted(present - entry["files"].keys())
    ]


def require_whole(store: Location, entry: dict[str, Any]) -> None:
    """Read every file of a part; CorruptCacheError names the first that is absent or damaged."""
    for problem in part_problems(store, entry):
        raise CorruptCacheError(problem)


def _view_problems(store: Location, entries: list[dict[str, Any]]) -> list[str]:
    view = read_view(store) or {}
    try:
        require_all(store, view.items(), find_places(store, entries).keys() | read_failures(store).keys())
    except CorruptCacheError as error:
        return [str(error)]
    return []


def damaged_files(store: Location, entry: dict[str, Any]) -> dict[str, str]:
    """Read every listed file of a part; returns what is wrong with each that is not as the manifest says."""
    found = {name: _damage(store / "parts" / entry["part"] / name, facts) for name, facts in entry["files"].items()}
    return {name: damage for name, damage in found.items() if damage}


def _damage(path: Location, expected: dict[str, Any]) -> str:
    if not path.is_file():
        return "is absent"
    size, digest, ends_with_crc = scan(path)
    if (size, digest) != (expected["bytes"], expected["sha256"]):
        return "fails its checksum"
    if path.name != GROUP_FILE and not ends_with_crc:
        return "fails the checksum in its last four bytes"
    return ""


def find_orphans(store: Location) -> list[Path]:
    """Return unpublished parts and leftover temporary files; none of a cache at a URL, which has no local writers."""
    if isinstance(store, RemotePath):
        return []
    return sorted([*unpublished_parts(store), *_temporary_files(store)])


def remove_old(store: Path, orphans: list[Path]) -> list[str]:
    """Remove the orphans older than a day, younger ones may be another writer's; returns their names."""
    removed = []
    for path in orphans:
        # A part may have been published since it was found.
        if time.time() - _newest(path) > ORPHAN_AGE_S and not (store / "manifest" / f"{path.name}.json").exists():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def unpublished_parts(store: Path) -> Iterator[Path]:
    """Return what lies in parts/ without a manifest entry: killed writers' parts, and those being written."""
    published = {path.stem for path in entry_paths(store)} | {GROUP_FILE}
    folder = store / "parts"
    return (path for path in (folder.iterdir() if folder.is_dir() else ()) if path.name not in published)


def _temporary_files(store: Path) -> Iterator[Path]:
    """Files that `cache.publish` was writing; those in parts/ count as unpublished parts already."""
    folders = (store, store / "manifest", store / "failures")
    return (path for folder in folders for path in folder.glob(".*.partial"))


def _newest(path: Path) -> float:
    """Latest change below `path`, seconds since the epoch; now if a writer moved something meanwhile."""
    try:
        return max(p.stat().st_mtime for p in (path, *path.rglob("*")))
    except FileNotFoundError:
        return time.time()
