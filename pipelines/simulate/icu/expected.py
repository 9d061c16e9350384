"""What a correct preparation finds, stated while the cohort is planned; never computed by the preparation.

A run is a task and a mode. `steps` are the cohort's rules in their order with stays kept and dropped.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MF, MP, PF, PP = "mortality.fixed", "mortality.paper", "phenotyping.fixed", "phenotyping.paper"
RUNS = (MF, MP, PF, PP)
FIXED, PAPER, MORTALITY, PHENOTYPING = (MF, PF), (MP, PP), (MF, MP), (PF, PP)
STEPS = ("no transfer", "one stay per admission", "valid times", "adult", "stay of 48 h", "event in the window")


@dataclass
class StayExpected:
    """One stay's outcomes by run; of a run in which it is dropped, the step alone counts."""

    name: str
    """Of the case; empty for an ordinary stay."""
    stay: int
    subject: int
    dropped: dict[str, str] = field(default_factory=dict)
    """Run -> step that leaves it out."""
    died: dict[str, int] = field(default_factory=dict)
    groups: dict[str, list[int]] = field(default_factory=dict)
    """Run -> CCS numbers of the phenotypes."""
    film: dict[str, str] = field(default_factory=dict)
    """Run -> DICOM id."""
    film_reason: dict[str, str] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    text_reason: dict[str, str] = field(default_factory=dict)
    cells: list[dict[str, Any]] = field(default_factory=list)
    """Runs, channel, bin and value (null: not observed)."""


def summarise(stays: Iterable[StayExpected], splits: dict[str, str]) -> dict[str, Any]:
    """Return the content of expected.json."""
    stays = list(stays)
    return {
        "runs": {run: _run(stays, run) for run in RUNS},
        "subjects": {str(stay.stay): str(stay.subject) for stay in stays},
        "cases": {stay.name: str(stay.stay) for stay in stays if stay.name},
        "cells": [{"stay": str(stay.stay), **cell} for stay in stays for cell in stay.cells],
        "listed_splits": splits,
    }


def _run(stays: list[StayExpected], run: str) -> dict[str, Any]:
    kept = [stay for stay in stays if run not in stay.dropped]
    labels: dict[str, Any] = {
        str(s.stay): s.died[run] if run in MORTALITY else sorted(s.groups.get(run, [])) for s in kept
    }
    return {
        "steps": _steps(stays, run),
        "samples": len(kept),
        "labels": labels,
        "images": {str(s.stay): s.film[run] for s in kept if run in s.film},
        "image_reasons": {str(s.stay): s.film_reason[run] for s in kept if run in s.film_reason},
        "texts": {str(s.stay): s.text[run] for s in kept if run in s.text},
        "text_reasons": {str(s.stay): s.text_reason[run] for s in kept if run in s.text_reason},
        "dropped": {str(s.stay): s.dropped[run] for s in stays if run in s.dropped},
    }


def _steps(stays: list[StayExpected], run: str) -> list[dict[str, object]]:
    lost = Counter(stay.dropped[run] for stay in stays if run in stay.dropped)
    left = len(stays)
    steps: list[dict[str, object]] = [{"step": "ICU stays", "kept": left, "dropped": 0}]
    for step in STEPS if run in MORTALITY else [s for s in STEPS if s != "stay of 48 h"]:
        left -= lost[step]
        steps.append({"step": step, "kept": left, "dropped": lost[step]})
    return steps
