"""How two caches differ: key fields, samples, and the tokens of samples that both hold.

What a reader of each would get is compared: the view, or all that is stored before an extraction is complete. Costs a
pass over the tokens when the keys are equal, in the order of the first cache's parts; memory is that of one sample.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cache.contents import current, is_complete
from cache.parts import PartArrays
from cache.places import Identity, Place
from cache.progress import tracked
from cache.store import TokenStore


@dataclass(frozen=True)
class TokenDifference:
    """Common samples whose tokens, lengths or maskable flags differ; `max_abs` over those of equal length."""

    compared: int
    differing: int
    other_length: int
    max_abs: float


@dataclass(frozen=True)
class CacheDifference:
    """Counts of samples, and by field the values of both keys (width, dtype and completeness count as fields)."""

    fields: dict[str, tuple[Any, Any]]
    common: int
    only_first: int
    only_second: int
    other_digest: int
    tokens: TokenDifference | None
    """None when the keys or widths differ: such tokens are not comparable."""

    @property
    def same(self) -> bool:
        """Whether a reader gets the same from both."""
        counts = self.only_first + self.only_second + self.other_digest
        return not (self.fields or counts or (self.tokens and self.tokens.differing))

    def document(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {"same": self.same, **asdict(self)}


def compare(first: TokenStore, second: TokenStore) -> CacheDifference:
    """Compare two caches.

    Raises:
        CorruptCacheError: a file of either is absent or damaged.
    """
    mine, theirs = current(first), current(second)
    my_ids, their_ids = {i for i, _ in mine}, {i for i, _ in theirs}
    common = mine.keys() & theirs.keys()
    comparable = not first.key.difference(second.key) and first.width == second.width
    return CacheDifference(
        fields=_fields(first, second),
        common=len(common),
        only_first=len(my_ids - their_ids),
        only_second=len(their_ids - my_ids),
        other_digest=len((my_ids & their_ids) - {i for i, _ in common}),
        tokens=_compare_tokens(first, second, {i: (mine[i], theirs[i]) for i in common}) if comparable else None,
    )


def _fields(first: TokenStore, second: TokenStore) -> dict[str, tuple[Any, Any]]:
    outside = {
        "width": (first.width, second.width),
        "dtype": (first.dtype, second.dtype),
        "complete": (is_complete(first), is_complete(second)),
    }
    return first.key.difference(second.key) | {name: pair for name, pair in outside.items() if pair[0] != pair[1]}


def _compare_tokens(
    first: TokenStore, second: TokenStore, places: Mapping[Identity, tuple[Place, Place]]
) -> TokenDifference:
    parts = _Parts(first), _Parts(second)
    differing = other_length = 0
    max_abs = 0.0
    pairs = sorted(places.values(), key=lambda pair: (pair[0].part, pair[0].row))
    for mine, theirs in tracked(pairs, "samples compared"):
        a, b = (part.read(place) for part, place in zip(parts, (mine, theirs), strict=True))
        if len(a[0]) != len(b[0]):
            other_length += 1
            differing += 1
            continue
        distance = float(np.abs(a[0] - b[0]).max(initial=0))
        differing += distance > 0 or not np.array_equal(a[1], b[1])
        max_abs = max(max_abs, distance)
    return TokenDifference(len(places), differing, other_length, max_abs)


class _Parts:
    """The mapped parts of a cache, opened when first needed."""

    def __init__(self, store: TokenStore) -> None:
        self.store = store
        self._entries = {entry["part"]: entry for entry in store.entries()}
        self._open: dict[str, PartArrays] = {}

    def read(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 tokens [T, width] and maskable [T]."""
        if place.part not in self._open:
            self._open[place.part] = self.store.read_part(self._entries[place.part])
        part = self._open[place.part]
        return part.sample(place.row, self.store.dtype)


def difference_lines(found: CacheDifference, first: object, second: object) -> list[str]:
    """Return the comparison for a terminal."""
    lines = [f"{name}: {a!r} in {first}, {b!r} in {second}" for name, (a, b) in found.fields.items()]
    lines.append(
        f"{found.common} samples in both, {found.only_first} only in {first}, {found.only_second} only in {second}, "
        f"{found.other_digest} in both with other raw inputs"
    )
    if found.tokens is None:
        lines.append("tokens not compared: they are of different encoders, settings or widths")
    elif found.tokens.differing:
        lines.append(
            f"tokens of {found.tokens.differing} of {found.tokens.compared} common samples differ: "
            f"{found.tokens.other_length} in length, the others by at most {found.tokens.max_abs:.3g}"
        )
    else:
        lines.append(f"tokens of {found.tokens.compared} common samples are equal")
    return [*lines, "same" if found.same else "different"]
