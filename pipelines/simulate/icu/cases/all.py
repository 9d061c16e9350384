"""Every odd stay."""

from pathlib import Path

import numpy as np

from pipelines.simulate.icu.cases.admissions import (
    add_code_cases,
    add_cohort_cases,
    add_death_cases,
    add_split_cases,
)
from pipelines.simulate.icu.cases.case import Cases
from pipelines.simulate.icu.cases.films import add_film_cases, add_film_file_cases, add_film_time_cases
from pipelines.simulate.icu.cases.notes import add_note_cases
from pipelines.simulate.icu.cases.values import add_row_cases, add_value_cases


def make_cases(root: Path, random: np.random.Generator) -> tuple[Cases, dict[str, str]]:
    """Write the films and reports of the cases; returns their rows, and the splits that the shipped lists mean."""
    cases = Cases(root, random)
    for add in (add_cohort_cases, add_death_cases, add_code_cases, add_value_cases, add_row_cases):
        add(cases)
    for add in (add_film_cases, add_film_time_cases, add_film_file_cases, add_note_cases):
        add(cases)
    return cases, add_split_cases(cases)
