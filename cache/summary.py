"""What a cache holds, for `selfmask cache info`: counts, lengths, waste, failures, coverage of a samples table.

Reads the manifest, the ids and the offsets, no token: a fraction of a second for a cache of gigabytes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cache.contents import current, rows_by_part
from cache.parts import read_offsets
from cache.store import TokenStore

BARS = 12
BAR_WIDTH = 40


def summarise(store: TokenStore, expected: Mapping[str, Sequence[str | None]] | None = None) -> dict[str, Any]:
    """Return `TokenStore.info` with lengths, dead samples, failures by reason and coverage by split.

    Args:
        store: cache.
        expected: by split, the id of every sample, None for one without a value in this modality.
    """
    lengths = current_lengths(store)
    facts = store.info()
    facts |= {
        "readable": len(lengths),
        "dead": facts["samples"] - len(lengths),
        "lengths": length_histogram(lengths),
        "failures_by_reason": dict(Counter(store.failures().values()).most_common()),
    }
    if expected is not None:
        facts["splits"] = _coverage(store, expected)
    return facts


def current_lengths(store: TokenStore) -> np.ndarray:
    """Return the tokens of each sample that a reader gets; int64 [N]."""
    rows = rows_by_part(current(store).values())
    found = [np.diff(read_offsets(store.location, e))[rows[e["part"]]] for e in store.entries() if e["part"] in rows]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def length_histogram(lengths: np.ndarray) -> dict[str, Any]:
    """Return range, mean, median and counts in bins of whole tokens; `bins` are [first, last, samples]."""
    if not len(lengths):
        return {"bins": []}
    low, high = int(lengths.min()), int(lengths.max())
    step = -(-(high - low + 1) // BARS)
    edges = np.arange(low, high + step + 1, step)
    counts, _ = np.histogram(lengths, edges)
    bins = [[int(a), int(b) - 1, int(n)] for a, b, n in zip(edges, edges[1:], counts, strict=False)]
    bins[-1][1] = high
    return {
        "min": low,
        "max": high,
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "bins": bins,
    }


def _coverage(store: TokenStore, expected: Mapping[str, Sequence[str | None]]) -> dict[str, dict[str, int]]:
    present, failed = {sample_id for sample_id, _ in current(store)}, set(store.failures())
    return {split: _count(ids, present, failed - present) for split, ids in expected.items()}


def _count(ids: Sequence[str | None], present: set[str], failed: set[str]) -> dict[str, int]:
    wanted = [i for i in ids if i is not None]
    return {
        "samples": len(ids),
        "without_value": len(ids) - len(wanted),
        "with_tokens": sum(i in present for i in wanted),
        "failed": sum(i in failed for i in wanted),
        "not_extracted": sum(i not in present and i not in failed for i in wanted),
    }


def summary_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the summary for a terminal."""
    state = f"complete, {facts['in_view']} samples in the view" if facts["complete"] else "extraction not complete"
    lines = [
        f"{facts['path']}: {state}",
        f"  {facts['samples']} samples, {facts['tokens']} tokens of width {facts['width']} in {facts['dtype']}",
        f"  {facts['parts']} parts, {readable_bytes(facts['bytes'])}",
        f"  dead: {facts['dead']} samples that no reader gets"
        + (f" (`selfmask cache compact {facts['path']} --drop-dead` frees them)" if facts["dead"] else ""),
        f"  failed: {facts['failures']}",
        *(f"    {count} x {reason}" for reason, count in facts["failures_by_reason"].items()),
        *_length_lines(facts["lengths"]),
        *_split_lines(facts.get("splits", {})),
        f"key {facts['key_digest'][:16]}",
    ]
    return lines + [f"  {name}: {_short(value)}" for name, value in facts["key"].items()]


def readable_bytes(count: float) -> str:
    """Return bytes in the unit that leaves one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _length_lines(lengths: Mapping[str, Any]) -> list[str]:
    if not lengths["bins"]:
        return ["  lengths: no sample can be read"]
    range_ = f"{lengths['min']} to {lengths['max']}"
    lines = [f"  tokens per sample: {range_}, mean {lengths['mean']:.1f}, median {lengths['median']:g}"]
    most = max(count for _, _, count in lengths["bins"])
    digits = len(str(lengths["max"]))
    for first, last, count in lengths["bins"]:
        label = f"{first:>{digits}}" + (f"-{last:<{digits}}" if last > first else " " * (digits + 1))
        bar = "#" * -(-BAR_WIDTH * count // most)
        lines.append(f"    {label} |{bar:<{BAR_WIDTH}} {count}")
    return lines


def _split_lines(splits: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        f"  {split}: {facts['samples']} samples, {facts['with_tokens']} with tokens, {facts['without_value']} without "
        f"a value, {facts['failed']} failed, {facts['not_extracted']} not extracted"
        for split, facts in splits.items()
    ]


def _short(value: Any, most: int = 100) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
