"""Every sample that a cache stores, whether or not its extraction is complete.

`TokenStore.read` serves the samples of the view; comparing, merging and rewriting caches must also see those of an
extraction that is still under way. Samples come in the order of parts and rows, so disks read forwards, and in batches
of bounded size, so memory is that of one batch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from cache.manifest import read_failures, read_view
from cache.parts import SampleTokens, read_identities
from cache.places import Identity, Place
from cache.progress import tracked
from cache.store import TokenStore
from cache.verify import require_whole


def identities_by_part(store: TokenStore) -> dict[str, list[Identity]]:
    """Return the identity of every row of every part, by part id in ascending order."""
    return {entry["part"]: read_identities(store.location, entry) for entry in store.entries()}


def is_complete(store: TokenStore) -> bool:
    """Tell whether an extraction into the cache has completed, so that there is a view."""
    return read_view(store.location) is not None


def current(store: TokenStore) -> dict[Identity, Place]:
    """Return where what a reader of the cache gets lies: of the view, or all that is stored before there is one."""
    view, places = read_view(store.location), store.places()
    if view is None:
        return places
    return {identity: place for identity, place in places.items() if view.get(identity[0]) == identity[1]}


def current_digests(store: TokenStore) -> dict[str, set[str]]:
    """Return id to digests, failed samples too: the view's one, or all that are stored of an id outside the view."""
    view = read_view(store.location) or {}
    found = {sample_id: {digest} for sample_id, digest in view.items()}
    for sample_id, digest in store.places().keys() | read_failures(store.location).keys():
        if sample_id not in view:
            found.setdefault(sample_id, set()).add(digest)
    return found


def stored_samples(
    store: TokenStore, rows: Mapping[str, Sequence[int]], checked: bool = False
) -> Iterator[SampleTokens]:
    """Yield rows, by part id, with float32 tokens [T, width].

    Args:
        store: cache.
        rows: which rows of which parts.
        checked: read every checksum of a part first, for those who write its tokens again under a new checksum.

    Raises:
        CorruptCacheError: a file is absent or damaged.
    """
    for entry in tracked([entry for entry in store.entries() if rows.get(entry["part"])], "parts read"):
        if checked:
            require_whole(store.location, entry)
        identities, part = read_identities(store.location, entry), store.read_part(entry)
        for row in rows[entry["part"]]:
            yield SampleTokens(*identities[row], *part.sample(row, store.dtype))


def rows_by_part(places: Iterable[Place]) -> dict[str, list[int]]:
    """Return the rows to read of each part, in ascending order."""
    found: dict[str, list[int]] = {}
    for place in sorted(places, key=lambda place: (place.part, place.row)):
        found.setdefault(place.part, []).append(place.row)
    return found


def batches(samples: Iterable[SampleTokens], token_bytes: int, most: float) -> Iterator[list[SampleTokens]]:
    """Group samples so that a batch holds `most` bytes when stored, or one sample that is larger.

    Args:
        samples: in the order wanted.
        token_bytes: stored bytes per token.
        most: bytes of a batch.
    """
    batch: list[SampleTokens] = []
    size = 0
    for sample in samples:
        own = len(sample.tokens) * token_bytes
        if batch and size + own > most:
            yield batch
            batch, size = [], 0
        batch.append(sample)
        size += own
    if batch:
        yield batch
