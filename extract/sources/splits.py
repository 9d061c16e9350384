"""Seeded splits that do not depend on the order of rows: a group's place comes from a salted hash of its id.

A hash, not a shuffled list: adding or dropping stays moves no other group by more than the rank it gains or loses, and
every machine and library version draws the same.
"""

import hashlib
from collections.abc import Sequence

import numpy as np


def hash_fraction(group_id: str, salt: str) -> float:
    """Return a number in [0, 1) that depends on the id and the salt alone."""
    digest = hashlib.sha256(f"{salt}:{group_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def stratified_share(group_ids: Sequence[str], labels: np.ndarray, share: float, salt: str) -> np.ndarray:
    """Choose `share` of the groups of each label, those with the lowest hashes.

    Args:
        group_ids: group of each row, [N]; a group is chosen with all its rows or not at all.
        labels: label of each row, [N]; a group counts as its largest label (one positive stay makes a patient
            positive), and groups without any label (NaN) form a stratum of their own.
        share: between 0 and 1; each stratum gives the nearest whole number of groups.
        salt: name of the draw, with its seed.

    Returns:
        Bool [N].
    """
    groups, inverse = np.unique(np.asarray(group_ids, dtype=str), return_inverse=True)
    largest = np.full(len(groups), -np.inf)
    np.maximum.at(largest, inverse, np.where(np.isnan(labels), -np.inf, labels))
    fractions = np.array([hash_fraction(str(group), salt) for group in groups])
    chosen = np.zeros(len(groups), bool)
    for label in np.unique(largest):
        stratum = np.flatnonzero(largest == label)
        count = round(share * len(stratum))
        chosen[stratum[np.argsort(fractions[stratum], kind="stable")[:count]]] = True
    return chosen[inverse]
