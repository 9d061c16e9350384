"""The manifest entry of a part that lost it, made again from the part itself.

A part's attributes name its cache, type and a digest of its arrays, and every array ends with a checksum. Only if all
agree, and the Zarr documents say what zarr would write for these arrays, is the part whole: otherwise it may be a
writer's half or another cache's.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from cache.chunks import Chunk, chunk_name
from cache.errors import CorruptCacheError
from cache.metadata import GROUP_FILE, part_documents
from cache.parts import DIGESTS, IDS, MASKABLE, OFFSETS, SCALES, TOKENS, attributes_of, entry_of, list_files

ALWAYS = (TOKENS, OFFSETS, MASKABLE, IDS, DIGESTS)


def restored_entry(store: Path, part_id: str, identity: str) -> dict[str, Any] | None:
    """Return the manifest entry of a whole part of this cache; None if anything in it does not agree."""
    folder = store / "parts" / part_id
    try:
        attributes = json.loads((folder / GROUP_FILE).read_bytes())["attributes"]
        names = [*ALWAYS, *([SCALES] if attributes["dtype"] == "int8" else [])]
        specs = {name: _spec(folder, name) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if attributes.get("cache") != identity or not _documents_agree(folder, specs, attributes):
        return None
    draft = _draft(folder, specs)
    try:
        arrays = {name: Chunk.of(store, draft, name).read() for name in specs}
    except CorruptCacheError:
        return None
    if attributes_of(arrays, identity, attributes["dtype"]) != attributes:
        return None
    return entry_of(part_id, identity, specs, int(arrays[OFFSETS][-1]), list_files(folder))


def _spec(folder: Path, name: str) -> dict[str, Any]:
    """Read shape, type and compression from an array's document."""
    document = json.loads((folder / name / GROUP_FILE).read_bytes())
    shape, dtype = [int(size) for size in document["shape"]], str(np.dtype(document["data_type"]))
    compressed = any(codec["name"] == "zstd" for codec in document["codecs"])
    return {"shape": shape, "dtype": dtype, **({"compression": "zstd"} if compressed else {})}


def _documents_agree(folder: Path, specs: dict[str, dict[str, Any]], attributes: dict[str, Any]) -> bool:
    documents = part_documents(specs, attributes)
    chunks = {chunk_name(name, len(spec["shape"])) for name, spec in specs.items() if prod(spec["shape"])}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return present == documents.keys() | chunks and all(
        json.loads((folder / name).read_bytes()) == json.loads(document) for name, document in documents.items()
    )


def _draft(folder: Path, specs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return as much of an entry as reading the arrays takes."""
    chunks = [chunk_name(name, len(spec["shape"])) for name, spec in specs.items() if prod(spec["shape"])]
    files = {name: {"bytes": (folder / name).stat().st_size} for name in chunks}
    return {"part": folder.name, "arrays": specs, "files": files}
