"""Seeded splits that do not depend on the order of rows: a group's place comes from a salted hash of its id."""

import hashlib
from collections.abc import Sequence

import numpy as np


def hash_fraction(group_id: str, salt: str) -> float:
    """Return a number in [0, 1) that depends on the id and the salt alone."""
    digest = hashlib.sha256(f"{salt}:{group_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def stratified_share(group_ids: Sequence[str], labels: np.ndarray, share: float, salt: str) -> np.ndarray:
    """Choose `share` of each label's groups, the lowest hashes first; bool [N]. One row a group."""
    fractions = np.array([hash_fraction(group, salt) for group in group_ids])
    chosen = np.zeros(len(fractions), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = round(share * len(rows))
        chosen[rows[np.argsort(fractions[rows], kind="stable")[:count]]] = True
    return chosen
