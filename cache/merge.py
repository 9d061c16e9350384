"""The union of caches with the same key, into a new cache or one that exists.

Everything that a source stores is carried over, also what its unfinished extraction has so far; a sample that several
hold is taken from the first part by id, whatever the order of the sources. Parts of which every sample is wanted are
copied whole, as links where the file system can, and published like written ones: folder, then manifest entry. The rest
is written anew in full parts. Killed at any instant, the same command goes on where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from cache.contents import batches, current_digests, identities_by_part, stored_samples
from cache.errors import StaleCacheError, UserError
from cache.linking import copy_part
from cache.manifest import read_failures, read_view, write_failure_records
from cache.places import Identity
from cache.precision import token_bytes
from cache.progress import tracked
from cache.store import TokenStore


@dataclass(frozen=True)
class MergeReport:
    """What was added to the target: parts copied whole, samples written anew, failures; `view`: one was published."""

    parts_copied: int
    samples_copied: int
    samples_rewritten: int
    failures: int
    view: bool


def merge(
    sources: Sequence[TokenStore],
    into: Path,
    part_bytes: float,
    prefer: Path | None = None,
    with_view: bool | None = None,
) -> MergeReport:
    """Add everything that the sources hold to the cache at `into`; created if absent.

    Args:
        sources: caches of one key; not changed.
        into: another folder, or that of a source (then it receives the others).
        part_bytes: bytes of a full part's tokens, as stored, where a part is written anew.
        prefer: whose raw input counts for an id that others hold with another one.
        with_view: publish the union of the views; None: if the target and all sources are complete.

    Raises:
        StaleCacheError: keys, widths or dtypes differ; names the fields.
        UserError: an id has different raw inputs and nothing is preferred, or a view is asked for that is not complete.
        CorruptCacheError: a part to be written anew is damaged.
    """
    first = sources[0]
    existing = [TokenStore.open(into)] if (into / "zarr.json").exists() else []
    others = [store for store in sources if store.path.resolve() != into.resolve()]
    stores = [*existing, *others]
    for store in stores[1:]:
        require_same_tokens(stores[0], store)
    refused = _refused(stores, prefer)
    view = _merged_view(stores, refused, with_view)
    target = existing[0] if existing else TokenStore.create(into, first.key, first.width, first.dtype)
    copied, samples_copied, rewritten = _carry_parts(others, target, refused, part_bytes)
    failures = _carry_failures(others, target, refused)
    if view is not None and view != read_view(target.path):
        target.publish_view(view)
    return MergeReport(copied, samples_copied, rewritten, failures, view is not None)


def require_same_tokens(first: TokenStore, second: TokenStore) -> None:
    """Raise StaleCacheError that names every field in which the tokens of two caches differ."""
    fields: dict[str, tuple[Any, Any]] = first.key.difference(second.key)
    for name in ("width", "dtype"):
        if getattr(first, name) != getattr(second, name):
            fields[name] = (getattr(first, name), getattr(second, name))
    if fields:
        told = "; ".join(f"{name}: {a!r} and {b!r}" for name, (a, b) in fields.items())
        raise StaleCacheError(
            f"{first.path} and {second.path} hold different tokens ({told}); they cannot be merged. Extract one of "
            "them again with the encoder and settings of the other: `selfmask extract`."
        )


def _refused(stores: Sequence[TokenStore], prefer: Path | None) -> dict[Path, set[str]]:
    """Return by cache the ids whose raw input there is not the preferred one."""
    digests = {store.path: current_digests(store) for store in stores}
    conflicts = {
        sample_id
        for a, b in combinations(digests.values(), 2)
        for sample_id in a.keys() & b.keys()
        if not a[sample_id] & b[sample_id]
    }
    if prefer is None and conflicts:
        raise UserError(
            f"{len(conflicts)} samples have other raw inputs in another of these caches. Say whose count with "
            f"`--prefer {stores[-1].path}`, or prepare both from the same samples table."
        )
    chosen = _digests_of(prefer, digests) if prefer else {}
    undecided = conflicts - chosen.keys()
    if undecided:
        raise UserError(
            f"{len(undecided)} samples have other raw inputs in caches that are not preferred. Merge two at a time."
        )
    return {path: {i for i in conflicts if i in held and not held[i] & chosen[i]} for path, held in digests.items()}


def _digests_of(prefer: Path, digests: dict[Path, dict[str, set[str]]]) -> dict[str, set[str]]:
    for path, held in digests.items():
        if path.resolve() == prefer.resolve():
            return held
    raise UserError(f"--prefer {prefer} is not one of the merged caches: {', '.join(map(str, digests))}.")


def _merged_view(
    stores: Sequence[TokenStore], refused: dict[Path, set[str]], wanted: bool | None
) -> dict[str, str] | None:
    """Return the union of the views, or None when there is to be none."""
    views = {store.path: read_view(store.path) for store in stores}
    unfinished = [str(path) for path, view in views.items() if view is None]
    if wanted and unfinished:
        raise UserError(
            f"The extraction into {', '.join(unfinished)} is not complete, so there is no view to merge. Finish it "
            "with `selfmask extract`, or merge without `--view`."
        )
    if unfinished or wanted is False:
        return None
    return {i: d for path, view in views.items() for i, d in (view or {}).items() if i not in refused[path]}


def _carry_parts(
    sources: Sequence[TokenStore], target: TokenStore, refused: dict[Path, set[str]], part_bytes: float
) -> tuple[int, int, int]:
    """Copy or rewrite what the target lacks; returns parts copied, samples in them, samples written anew."""
    rows = _rows_to_take(sources, target, refused)
    copied = samples = rewritten = 0
    for store in sources:
        partly: dict[str, list[int]] = {}
        for entry in tracked(store.entries(), f"parts of {store.path}"):
            chosen = rows.get((store.path, entry["part"]), [])
            if len(chosen) == entry["samples"]:
                copied += copy_part(store.path, target.path, entry)
                samples += len(chosen)
            elif chosen:
                partly[entry["part"]] = chosen
        left = stored_samples(store, partly, checked=True)
        for batch in batches(left, token_bytes(store.width, store.dtype), part_bytes):
            target.append(batch)
            rewritten += len(batch)
    return copied, samples, rewritten


def _rows_to_take(
    sources: Sequence[TokenStore], target: TokenStore, refused: dict[Path, set[str]]
) -> dict[tuple[Path, str], list[int]]:
    taken: set[Identity] = set(target.places())
    parts = sorted((part, number) for number, s in enumerate(sources) for part in (e["part"] for e in s.entries()))
    identities = [identities_by_part(store) for store in sources]
    found: dict[tuple[Path, str], list[int]] = {}
    for part, number in parts:
        store = sources[number]
        for row, identity in enumerate(identities[number].get(part, [])):
            if identity not in taken and identity[0] not in refused[store.path]:
                taken.add(identity)
                found.setdefault((store.path, part), []).append(row)
    return found


def _carry_failures(sources: Sequence[TokenStore], target: TokenStore, refused: dict[Path, set[str]]) -> int:
    done = target.places().keys() | read_failures(target.path).keys()
    new: dict[Identity, str] = {}
    for store in sources:
        for identity, reason in read_failures(store.path).items():
            if identity not in done and identity[0] not in refused[store.path]:
                new.setdefault(identity, reason)
    write_failure_records(target.path, new)
    return len(new)
