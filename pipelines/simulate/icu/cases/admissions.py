"""Cases of the cohort's rules, of death, of billing codes and of splits."""

import numpy as np
import pandas as pd

from pipelines.simulate.icu.cases.case import START, Cases
from pipelines.simulate.icu.expected import FIXED, MF, MORTALITY, MP, PAPER, PF, PHENOTYPING, PP, RUNS


def add_cohort_cases(cases: Cases) -> None:
    """Add admissions and stays that a rule keeps or leaves out."""
    twice = cases.subject()
    twice.admission().stay("first_of_two_admissions")
    twice.admission(START + pd.Timedelta(days=90)).stay("second_of_two_admissions")
    both = cases.subject().admission()
    for name, after in (("two_stays_a", 5.0), ("two_stays_b", 80.0)):
        both.stay(name, after=after).drop("one stay per admission")
    moved = cases.subject().admission()
    moved.stay("transferred_sibling", moved=True).drop("no transfer")
    moved.stay("kept_beside_a_transfer", after=80)
    cases.subject().admission().stay("transfer_alone", moved=True).drop("no transfer")
    cases.stay("minor", age=17).drop("adult")
    cases.stay("oldest", age=91)
    cases.stay("turned_18", age=17, anchor_year=START.year - 1).drop("adult", PAPER)
    cases.stay("short_47_99", hours=47.99)
    cases.stay("exactly_48", hours=48)
    cases.stay("long_200", hours=200)
    cases.stay("no_event").no_events().drop("event in the window")
    early = cases.stay("only_early_events").no_events().drop("event in the window")
    early.chart(-2, 220045, "80", 80.0)
    cases.subject().admission().stay("backwards", hours=-3).drop("valid times")
    cases.subject().admission().stay("no_length", los=np.nan).drop("valid times")
    cases.subject().admission().stay("no_outtime", hours=None, los=2.5).drop("valid times")


def add_death_cases(cases: Cases) -> None:
    """Add deaths in the stay, and what looks like one."""
    died = START + pd.Timedelta(hours=70)
    cases.subject(dod=f"{died:%Y-%m-%d}").admission(days=4, flag=1, died=died).stay("died_in_stay")
    # discharged alive at 22:48 of day 3, dies later that day: a date lies between admission and discharge
    same_day = cases.subject(dod="2170-03-04").admission(days=3.7).stay("died_after_discharge_same_day")
    same_day.wanted.died[MP] = 1
    cases.subject(dod="2170-06-01").admission().stay("died_months_later")
    flagged = cases.subject().admission(flag=1).stay("flag_without_time_of_death")
    flagged.wanted.died[MP] = 0
    # dies on the day of admission: its date lies before the admission
    first_day = cases.subject(dod="2170-03-01").admission(flag=1).stay("flag_and_date_of_first_day")
    first_day.wanted.died[MP] = 0
    assert first_day.wanted.died[MF] == 1


def add_code_cases(cases: Cases) -> None:
    """Add billing codes: versions, leading zeros, blanks, codes unknown to a table."""
    _codes(cases, "icd9_only", [("41071", 9), ("42731", 9)], [100, 106], [100, 106])
    _codes(cases, "icd10_listed", [("J9600", 10)], [131], [131])
    _codes(
        cases, "icd10_not_listed", [("J9601", 10), ("I480", 10), ("I639", 10), ("J90", 10)], [106, 109, 130, 131], []
    )
    _codes(cases, "icd_of_both_versions", [("5849", 9), ("N183", 10)], [157, 158], [157, 158])
    _codes(cases, "icd_leading_zero", [("0389", 9)], [2], [2])
    _codes(cases, "icd_trailing_blank", [("N179  ", 10)], [157], [])
    _codes(cases, "icd_unknown_code", [("U071", 10), ("ZZZ", 10)], [], [])
    _codes(cases, "icd_newer_code", [("I4811", 10), ("N1830", 10), ("E8720", 10)], [55, 106, 158], [])
    _codes(cases, "icd_wrong_version", [("41071", 10)], [], [100])
    _codes(cases, "icd_none", [], [], [])


def _codes(cases: Cases, name: str, codes: list[tuple[str, int]], fixed: list[int], paper: list[int]) -> None:
    stay = cases.subject().admission(codes=codes).stay(name)
    stay.wanted.groups.update({PF: fixed, PP: paper})


def add_split_cases(cases: Cases) -> dict[str, str]:
    """Add subjects of the lists; returns the split by stay id that the lists mean."""
    splits = {}
    for name, split in (("listed_test", "test"), ("listed_valid", "valid"), ("listed_nowhere", "train")):
        splits[str(cases.stay(name).wanted.stay)] = split
    return splits


assert set(RUNS) == {*FIXED, *PAPER} == {*MORTALITY, *PHENOTYPING}
