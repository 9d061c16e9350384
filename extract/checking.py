"""What a person wants to know of a samples table before training: patterns, balance, unreadable values, duplicates.

Rules that must hold (one split a group, unique ids, paths below the root) are checked whenever a table is read. This
looks further and reads every value once; the cost is that of reading the data set. Rows are told by their place in
samples.parquet, never by id or content.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from extract.samples import SPLITS, SamplesTable
from extract.values import UnreadableValue, Video, read_value, value_digest

EXAMPLES = 5


def describe_split(table: SamplesTable, split: str) -> dict[str, Any]:
    """Return the number of samples, and if there are any: shares and patterns of what is observed, label balance."""
    if not (table.frame["split"] == split).any():
        return {"samples": 0}
    observed = table.observed(split)
    patterns = Counter(
        "+".join(name for name, seen in zip(table.modalities, row, strict=True) if seen) for row in observed
    )
    return {
        "samples": len(observed),
        "groups": int(table.split(split)["group_id"].nunique()),
        "observed": {name: float(share) for name, share in zip(table.modalities, observed.mean(0), strict=True)},
        "patterns": dict(patterns.most_common()),
        "labels": _balance(table, split),
    }


def _balance(table: SamplesTable, split: str) -> dict[str, float]:
    """Samples by class, positives by label, or mean and standard deviation; the unlabelled apart."""
    label, values = table.info.label, table.labels(split)
    known = values[np.isfinite(values).reshape(len(values), -1).any(-1)]
    unlabelled = {"unlabelled": float(len(values) - len(known))} if len(known) < len(values) else {}
    if label.kind == "multilabel":
        return {name: float((known[:, i] == 1).sum()) for i, name in enumerate(label.names)} | unlabelled
    if label.kind == "regression":
        return {"mean": float(known.mean()), "sd": float(known.std())} | unlabelled
    names = label.classes or ("0", "1")
    return {name: float((known == i).sum()) for i, name in enumerate(names)} | unlabelled


def unreadable(table: SamplesTable) -> dict[str, dict[str, dict[str, Any]]]:
    """Read every value; return count and first rows of what cannot be used, by modality and reason.

    Such values count as missing in training; a whole folder of them is a mistake in the paths.
    """
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, (_, row) in enumerate(table.frame.iterrows()):
        for name in table.modalities:
            try:
                value = read_value(table, row, name)
                if isinstance(value, Video):
                    value.frames(1)  # it is decoded when frames are asked for
            except UnreadableValue as reason:
                found[name][str(reason)].append(place)
    return {name: {reason: _counted(rows) for reason, rows in reasons.items()} for name, reasons in found.items()}


def duplicates(table: SamplesTable) -> dict[str, dict[str, Any]]:
    """Return contents that lie in several splits: of each modality, and of whole samples.

    A modality's content may repeat for good reasons (a short text); a whole sample in two splits is a leak.
    """
    digests = [[value_digest(table, row, name) for name in table.modalities] for _, row in table.frame.iterrows()]
    splits = table.frame["split"].tolist()
    columns: dict[str, list[Any]] = {name: [row[i] for row in digests] for i, name in enumerate(table.modalities)}
    columns["whole sample"] = [tuple(row) for row in digests]
    crossing = {name: _crossing(contents, splits) for name, contents in columns.items()}
    return {name: _counted(rows) for name, rows in crossing.items() if rows}


def _crossing(contents: Iterable[Any], splits: Iterable[str]) -> list[int]:
    """Return the rows whose content is also that of a row in another split."""
    content, split = list(contents), list(splits)
    seen: dict[Any, set[str]] = defaultdict(set)
    for key, place in zip(content, split, strict=True):
        seen[key].add(place)
    return [row for row, key in enumerate(content) if key is not None and len(seen[key]) > 1]


def _counted(rows: list[int]) -> dict[str, Any]:
    return {"count": len(rows), "rows": rows[:EXAMPLES]}


def describe(table: SamplesTable) -> dict[str, Any]:
    """Return everything: each split, `unreadable` and `across_splits`."""
    splits = {split: describe_split(table, split) for split in SPLITS}
    return {**splits, "unreadable": unreadable(table), "across_splits": duplicates(table)}


def problems(summary: dict[str, Any]) -> list[str]:
    """Return what a training run should not start with: empty splits, unreadable values, a sample in two splits."""
    found = [f"the {split} split is empty" for split in SPLITS if not summary[split]["samples"]]
    broken = sum(facts["count"] for reasons in summary["unreadable"].values() for facts in reasons.values())
    found += [f"{broken} values cannot be read"] if broken else []
    leaked = summary["across_splits"].get("whole sample", {}).get("count", 0)
    return found + ([f"{leaked} samples have the content of one in another split"] if leaked else [])
