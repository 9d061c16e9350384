"""Repair of a damaged cache: restore what can be, move the rest aside, delete nothing.

The manifest vouches for a part by checksum and a part's own attributes vouch for its arrays, so either document can
be made again from the other side; lost tokens cannot, they are encoded again by the next `selfmask extract`, which
takes as lost exactly the samples of the parts that were moved to `quarantine/`. A part is moved before its manifest
entry: a kill in between leaves an entry whose part is absent, which no reader accepts.
"""

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache.chunks import Chunk
from cache.errors import CorruptCacheError
from cache.manifest import (
    PART_REMEDY,
    REMEDY,
    entry_paths,
    failure_paths,
    read_entries,
    read_entry,
    read_sealed,
    seal,
    write_sealed,
)
from cache.metadata import GROUP_FILE, part_documents
from cache.orphan import restored_entry
from cache.parts import attributes_of, read_identities
from cache.publish import write_bytes, write_json
from cache.root import PARTS_GROUP
from cache.verify import damaged_files, sealed_problems, spelled, unpublished_parts

QUARANTINE = "quarantine"


def repair_cache(store: Path, root: dict[str, Any], identity: str) -> list[str]:
    """Repair a local cache; returns one line for each thing done.

    Args:
        store: the cache, whose root document could be read.
        root: what that document must say.
        identity: which cache the parts must belong to.
    """
    return [
        *_repair_groups(store, root),
        *_repair_documents(store),
        *_repair_entries(store, identity),
        *_repair_parts(store, identity, root["attributes"]["selfmask"]["dtype"]),
        *_adopt_orphans(store, identity),
    ]


def _repair_groups(store: Path, root: dict[str, Any]) -> Iterator[str]:
    """Write both group documents again: their content is known."""
    for path, expected in ((store / GROUP_FILE, root), (store / "parts" / GROUP_FILE, PARTS_GROUP)):
        if not path.is_file() or path.read_bytes() != spelled(expected):
            write_json(path, expected)
            yield f"{path}: written again"


def _repair_documents(store: Path) -> Iterator[str]:
    """Move a damaged view or record of failures aside; an extraction writes them again."""
    view = store / "view.json"
    for path in [*([view] if view.exists() else []), *failure_paths(store)]:
        if not sealed_problems(path, REMEDY):
            continue
        if _respelled(path):
            yield f"{path}: written again"
        else:
            yield f"{path}: damaged, moved to {_set_aside(store, path)}. Run `selfmask extract`."


def _repair_entries(store: Path, identity: str) -> Iterator[str]:
    """Move aside manifest entries that are damaged or of another cache, with a part that only they describe."""
    for path in entry_paths(store):
        try:
            read_entry(path, identity)
        except CorruptCacheError:
            part = store / "parts" / path.stem
            whole = part.is_dir() and restored_entry(store, path.stem, identity) is not None
            if part.is_dir() and not whole:
                _set_aside(store, part)
            yield f"{path}: unusable, moved to {_set_aside(store, path)}"
            continue
        if sealed_problems(path, PART_REMEDY) and _respelled(path):
            yield f"{path}: written again"


def _repair_parts(store: Path, identity: str, dtype: str) -> Iterator[str]:
    """Restore damaged Zarr documents of a part; move a part with damaged arrays aside."""
    for entry in read_entries(store, identity):
        folder = store / "parts" / entry["part"]
        for stray in _strays(folder, entry):
            yield f"{stray}: not in the manifest, moved to {_set_aside(store, stray)}"
        damaged = damaged_files(store, entry)
        restored = [name for name in damaged if _restore_document(store, entry, dtype, name)]
        yield from (f"{folder / name}: written again" for name in restored)
        lost = len(damaged) - len(restored)
        if lost:
            _set_aside_part(store, entry)
            yield (
                f"{folder}: {lost} damaged or absent files, moved with its {entry['samples']} samples to "
                f"{store / QUARANTINE}. Run `selfmask extract`, which encodes those that no other part holds."
            )


def _adopt_orphans(store: Path, identity: str) -> Iterator[str]:
    """Write the manifest entry of every whole part without one, unless other parts hold all its samples."""
    known = {i for entry in read_entries(store, identity) for i in read_identities(store, entry)}
    for folder in sorted(path for path in unpublished_parts(store) if not path.name.startswith(".")):
        entry = restored_entry(store, folder.name, identity)
        if entry is None:
            continue
        own = set(read_identities(store, entry))
        if own <= known:
            continue
        known |= own
        write_sealed(store / "manifest" / f"{folder.name}.json", entry)
        yield f"{folder}: whole, its manifest entry was written again ({entry['samples']} samples)"


def _respelled(path: Path) -> bool:
    """Write a document whose meaning is whole in its own spelling; False if the meaning is damaged."""
    try:
        content = read_sealed(path)
    except CorruptCacheError:
        return False
    write_json(path, seal(content))
    return True


def _restore_document(store: Path, entry: dict[str, Any], dtype: str, name: str) -> bool:
    """Write a Zarr document again if what this zarr writes has the manifest's checksum."""
    folder = store / "parts" / entry["part"]
    if not name.endswith(GROUP_FILE) or not folder.is_dir():
        return False
    attributes: dict[str, Any] = {}
    if name == GROUP_FILE:
        try:
            arrays = {array: Chunk.of(store, entry, array).read() for array in entry["arrays"]}
        except CorruptCacheError:
            return False
        attributes = attributes_of(arrays, entry["cache"], dtype)
    document = part_documents(entry["arrays"], attributes).get(name, b"")
    if hashlib.sha256(document).hexdigest() != entry["files"][name]["sha256"]:
        return False
    write_bytes(folder / name, document)
    return True


def _strays(folder: Path, entry: dict[str, Any]) -> list[Path]:
    present = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in present if path.relative_to(folder).as_posix() not in entry["files"])


def _set_aside_part(store: Path, entry: dict[str, Any]) -> None:
    folder = store / "parts" / entry["part"]
    if folder.exists():
        _set_aside(store, folder)
    _set_aside(store, store / "manifest" / f"{entry['part']}.json")


def _set_aside(store: Path, path: Path) -> Path:
    """Move a file or folder to a new name in the quarantine; returns that."""
    target = store / QUARANTINE / f"{uuid.uuid4().hex[:8]}-{path.name}"
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    return target
