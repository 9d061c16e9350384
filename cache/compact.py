"""Fewer, bigger parts, without what no reader gets.

Small parts, and with `drop_dead` those that hold samples outside the view, are written anew; the new parts are
published before the manifest entries of the old ones are removed, so that at every instant each sample is in a
published part. A replaced part's folder stays for a day as an orphan, for readers that opened the cache before; `now`
removes it at once. Killed at any instant, the next run goes on: what is stored twice then counts as dead. Costs a read
and a write of the parts concerned, and memory of one part.
"""

import os
import shutil
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.contents import batches, identities_by_part, stored_samples
from cache.errors import UserError
from cache.lock import rewriting
from cache.manifest import failure_paths, read_failures, read_view, write_failure_records
from cache.places import Identity, Place
from cache.precision import token_bytes
from cache.publish import flush
from cache.store import TokenStore
from cache.verify import ORPHAN_AGE_S, require_whole

SMALL = 0.5
"""Share of a full part below which a part is joined with others; two such always fit into one."""


@dataclass(frozen=True)
class CompactReport:
    """Parts before and after, samples written anew and dropped, bytes of replaced parts and of new ones.

    kept_young: dead samples of parts younger than a day, which an extraction under way may have written.
    freed: whether the replaced parts are gone already.
    """

    parts_before: int
    parts_after: int
    rewritten: int
    dropped: int
    kept_young: int
    bytes_replaced: int
    bytes_written: int
    freed: bool


@dataclass(frozen=True)
class _Plan:
    rows: dict[str, list[int]]  # to write anew, by part
    replaced: list[dict[str, Any]]  # entries to remove
    relied_on: set[str]  # parts that keep a sample of which a copy is dropped
    dropped: int
    kept_young: int


def compact(store: TokenStore, part_bytes: float, drop_dead: bool = False, now: bool = False) -> CompactReport:
    """Rewrite small or partly dead parts.

    Args:
        store: cache.
        part_bytes: bytes of a full part's tokens, as stored.
        drop_dead: drop the samples and failures that are not in the view, for good.
        now: nobody else uses the cache: no day of grace for the parts of others, none for readers of replaced parts.

    Raises:
        UserError: files are read-only, another process rewrites the cache, the disk is full.
        CorruptCacheError: a part that must be read is damaged; nothing is removed then.
    """
    with rewriting(store.path):
        before = store.entries()
        plan = _plan(store, before, drop_dead, now, part_bytes)
        _require_writable(store.path, plan.replaced)
        for entry in before:
            if entry["part"] in plan.relied_on - plan.rows.keys():
                require_whole(store.path, entry)
        new = _rewrite(store, plan.rows, part_bytes)
        _retire(store.path, plan.replaced, now)
        _compact_failures(store.path, drop_dead, now)
        after = store.entries()
    return CompactReport(
        parts_before=len(before),
        parts_after=len(after),
        rewritten=sum(map(len, plan.rows.values())),
        dropped=plan.dropped,
        kept_young=plan.kept_young,
        bytes_replaced=sum(entry["bytes"] for entry in plan.replaced),
        bytes_written=sum(entry["bytes"] for entry in after if entry["part"] in new),
        freed=now,
    )


def _plan(store: TokenStore, entries: list[dict[str, Any]], drop_dead: bool, now: bool, part_bytes: float) -> _Plan:
    places, view = store.places(), read_view(store.path) if drop_dead else None
    identities = identities_by_part(store)
    keep: dict[str, list[int]] = {}
    relied_on: set[str] = set()
    kept_young = 0
    for entry in entries:
        part, young = entry["part"], not now and _is_young(store.path / "manifest" / f"{entry['part']}.json")
        keep[part] = []
        for row, identity in enumerate(identities[part]):
            dead = view is not None and view.get(identity[0]) != identity[1]
            if places[identity] != Place(part, row):
                relied_on.add(places[identity].part)
            elif not dead or young:
                keep[part].append(row)
                kept_young += dead
    replaced = [e for e in entries if _is_replaced(e, keep[e["part"]], drop_dead)]
    small = [
        e
        for e in entries
        if e not in replaced and e["tokens"] * token_bytes(store.width, store.dtype) < SMALL * part_bytes
    ]
    if len(small) > 1 or (small and any(keep[e["part"]] for e in replaced)):
        replaced += small
    rows = {e["part"]: keep[e["part"]] for e in replaced if keep[e["part"]]}
    dropped = sum(e["samples"] for e in replaced) - sum(map(len, rows.values()))
    return _Plan(rows, replaced, relied_on, dropped, kept_young)


def _is_replaced(entry: dict[str, Any], keep: list[int], drop_dead: bool) -> bool:
    """Tell whether a part is wholly dead, or partly and that is to be dropped."""
    return not keep or (drop_dead and len(keep) < entry["samples"])


def _is_young(path: Path) -> bool:
    return time.time() - path.stat().st_mtime < ORPHAN_AGE_S


def _require_writable(store: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Refuse files of somebody else's, such as links into DVC's cache; the mode tells, also to an administrator."""
    for entry in entries:
        names = [store / "parts" / entry["part"] / name for name in entry["files"]]
        for path in (store / "manifest" / f"{entry['part']}.json", *names):
            if not path.stat().st_mode & stat.S_IWUSR:
                raise UserError(
                    f"{store} has read-only files, such as {path.name}: it is linked from DVC's cache or shared. Run "
                    f"`dvc unprotect {store}`, or compact a copy: `selfmask cache merge {store} --into COPY`."
                )


def _rewrite(store: TokenStore, rows: dict[str, list[int]], part_bytes: float) -> set[str]:
    samples = stored_samples(store, rows, checked=True)
    new = {store.append(batch) for batch in batches(samples, token_bytes(store.width, store.dtype), part_bytes)}
    return {part for part in new if part}


def _retire(store: Path, entries: Iterable[dict[str, Any]], now: bool) -> None:
    folders = [store / "parts" / entry["part"] for entry in entries]
    try:
        for folder in folders:
            os.utime(folder)  # the day of grace starts now, see cache.verify
            (store / "manifest" / f"{folder.name}.json").unlink(missing_ok=True)
        flush(store / "manifest")
        for folder in folders if now else ():
            shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"{store}: cannot remove a replaced part ({error}). Nothing is lost; run it again.") from error


def _compact_failures(store: Path, drop_dead: bool, now: bool) -> None:
    """Join the files of failure records; with `drop_dead` those that the view does not know are left out."""
    paths = [path for path in failure_paths(store) if now or not drop_dead or not _is_young(path)]
    view = read_view(store) if drop_dead else None
    records = read_failures(store, paths)
    kept: dict[Identity, str] = {i: r for i, r in records.items() if view is None or view.get(i[0]) == i[1]}
    if len(paths) < 2 and kept == records:
        return
    write_failure_records(store, kept)
    for path in paths:
        path.unlink(missing_ok=True)
    flush(store / "failures")
