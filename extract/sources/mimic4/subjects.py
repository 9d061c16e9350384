"""Which split a subject is in: given lists, else a salted hash; never the X-ray project's own split.

Lists are MedFuse's (`testset_iv.csv`, `valset_iv.csv`) or one's own. Who is in neither is hashed, so that subjects of
a newer release do not all fall into training; in `paper` mode they do, as in MedFuse.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cache.errors import UserError
from extract.sources.mimic4.options import Mimic4Options
from extract.sources.splits import hash_fraction


def assign_splits(subjects: Sequence[str], options: Mimic4Options, counts: Counter[str]) -> list[str]:
    """Return train, valid or test for each subject id.

    Raises:
        UserError: a list cannot be read, or a subject is in both.
    """
    test, valid = _listed(options.test_subjects), _listed(options.valid_subjects)
    both = {s for s, chosen in test.items() if chosen} & {s for s, chosen in valid.items() if chosen}
    if both:
        raise UserError(f"{len(both)} subjects are in both {options.test_subjects} and {options.valid_subjects}.")
    known = {**dict.fromkeys((*test, *valid), "train"), **_chosen(valid, "valid"), **_chosen(test, "test")}
    if known:
        counts["stays of subjects outside the split lists"] = sum(s not in known for s in subjects)
    return [known.get(s) or ("train" if known and options.paper else _hashed(s, options)) for s in subjects]


def _hashed(subject: str, options: Mimic4Options) -> str:
    fraction = hash_fraction(subject, options.split_salt)
    if fraction >= 1 - options.test_share:
        return "test"
    return "valid" if fraction >= 1 - options.test_share - options.valid_share else "train"


def _chosen(listed: dict[str, bool], split: str) -> dict[str, str]:
    return {subject: split for subject, chosen in listed.items() if chosen}


def _listed(path: Path | None) -> dict[str, bool]:
    """Return the subjects of a list and whether they are chosen: rows `id` or `id,0|1`, with or without a header."""
    if path is None:
        return {}
    try:
        with path.open(newline="") as stream:
            rows = [row for row in csv.reader(stream) if row and row[0].strip().isdigit()]
        listed = {row[0].strip(): len(row) == 1 or float(row[1]) == 1 for row in rows}
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no list of subject ids ({type(error).__name__}): rows `id` or `id,0|1`.") from error
    if not listed:
        raise UserError(f"{path} lists no subject: rows must be `id` or `id,0|1`.")
    return listed
