"""Integrity of a cache: every byte against the manifest, and what a killed writer left behind.

Opening a cache compares sizes only (one stat a file); `verify` reads everything. Orphans are what no manifest entry
mentions. An entry that is there but damaged still protects its part: pulling the entry again repairs it, while
removing the part would lose the tokens.
"""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import CorruptCacheError
from cache.manifest import PART_REMEDY, REMEDY, entry_paths, read_sealed, seal
from cache.parts import crc_matches
from cache.publish import file_sha256
from cache.root import PARTS_GROUP

ORPHAN_AGE_S = 24 * 3600
GROUP_FILE = "zarr.json"


@dataclass(frozen=True)
class VerifyReport:
    """What `TokenStore.verify` found: damage, counts, and unpublished leftovers (`removed`: names of those deleted)."""

    problems: list[str]
    parts: int
    samples: int
    orphans: int
    removed: list[str] = field(default_factory=list)


def check_sizes(store: Path, entry: dict[str, Any]) -> None:
    """Compare a part's files with its manifest entry; CorruptCacheError names the first that differs."""
    for name, expected in entry["files"].items():
        path = store / "parts" / entry["part"] / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            raise CorruptCacheError(f"{path} is absent or has another size than the manifest says. {PART_REMEDY}")


def document_problems(store: Path, root: dict[str, Any]) -> list[str]:
    """Compare both groups with what they must say, and check the view's, failures' and manifest's spelling."""
    problems = []
    for path, expected in ((store / GROUP_FILE, root), (store / "parts" / GROUP_FILE, PARTS_GROUP)):
        if not path.is_file() or path.read_bytes() != _spelled(expected):
            problems.append(f"{path} is absent or was changed. {REMEDY}")
    view = store / "view.json"
    for path in [*([view] if view.exists() else []), *(store / "failures").glob("*.json")]:
        problems += _sealed_problems(path, REMEDY)
    for path in entry_paths(store):
        problems += _sealed_problems(path, PART_REMEDY)
    return problems


def _sealed_problems(path: Path, remedy: str) -> list[str]:
    try:
        content = read_sealed(path, remedy)
    except FileNotFoundError:  # compacted since it was listed
        return []
    except CorruptCacheError as error:
        return [str(error)]
    # Some flipped bits leave the meaning as it was (`\u00e9`, `\u00E9`), but not the file.
    return [] if path.read_bytes() == _spelled(seal(content)) else [f"{path} was changed. {remedy}"]


def _spelled(document: Any) -> bytes:
    """Return the bytes that `cache.publish.write_json` writes."""
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def part_problems(store: Path, entry: dict[str, Any]) -> list[str]:
    """Read every file of a part; one message for each that is absent, damaged or not in the manifest."""
    folder, problems = store / "parts" / entry["part"], []
    for name, expected in entry["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is absent. {PART_REMEDY}")
        elif path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            problems.append(f"{path} fails its checksum. {PART_REMEDY}")
        elif "/c/" in name and not crc_matches(path):
            problems.append(f"{path} fails the checksum in its last four bytes. {PART_REMEDY}")
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return problems + [
        f"{folder / name} is not in the manifest. Remove it." for name in present - entry["files"].keys()
    ]


def find_orphans(store: Path) -> list[Path]:
    """Return unpublished parts and leftover temporary files."""
    return sorted([*_unpublished_parts(store), *_temporary_files(store)])


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


def _unpublished_parts(store: Path) -> Iterator[Path]:
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
