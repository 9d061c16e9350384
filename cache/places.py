"""Where each sample lies: the index over all parts' identities.

Of samples that several parts hold the first by part id counts, so that every reader, whatever the order in which
writers finished, sees the same tokens. Costs two small files a part.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import CorruptCacheError
from cache.location import Location, map_all
from cache.manifest import LOST_REMEDY
from cache.parts import read_identities

Identity = tuple[str, str]
"""(sample id, digest of the raw input)."""


@dataclass(frozen=True)
class Place:
    """Where a sample lies: part id, row in the part."""

    part: str
    row: int


def find_places(store: Location, entries: list[dict[str, Any]]) -> dict[Identity, Place]:
    """Return where each (sample id, digest) of the entries' parts lies."""
    found: dict[Identity, Place] = {}

    def identities(entry: dict[str, Any]) -> list[Identity]:
        return read_identities(store, entry)

    for entry, rows in zip(entries, map_all(identities, entries, not isinstance(store, Path)), strict=True):
        for row, identity in enumerate(rows):
            found.setdefault(identity, Place(entry["part"], row))
    return found


def require_all(store: Location, wanted: Iterable[Identity], present: AbstractSet[Identity]) -> None:
    """Raise CorruptCacheError when tokens that the view promises are gone: they are no missing modality."""
    lost = sum(identity not in present for identity in wanted)
    if lost:
        raise CorruptCacheError(
            f"{store / 'manifest'}: {lost} samples of view.json are in no part listed here. {LOST_REMEDY}"
        )
