"""Cases of chest X-rays: which film of a stay counts, how its time is written, and damaged files."""

from typing import get_args

from pipelines.simulate.icu.cases.case import START, Cases
from pipelines.simulate.icu.expected import FIXED, MF, MP, PAPER, PF, PHENOTYPING, PP, RUNS
from pipelines.simulate.icu.images import FilmFile

LATER = (MP, PF, PP)  # the window of these is the whole stay
UNREADABLE: dict[FilmFile, str] = {
    "truncated": "unreadable",
    "empty": "unreadable",
    "absent": "unreadable: file not found",
}


def add_film_cases(cases: Cases) -> None:
    """Add films in and outside the window, of other views, of one second."""
    cases.stay("film_none")
    cases.stay("film_pa_only").film(20, view="PA")
    cases.stay("film_before_the_unit").film(-3)
    two = cases.stay("film_at_20_and_60_h", hours=70)
    early, late = two.film(20)[0], two.film(60)[0]
    two.expect_film(early, (MF,)).expect_film(late, LATER)
    only = cases.stay("film_at_60_h_only", hours=70)
    only.expect_film(only.film(60)[0], LATER).expect_no_film("after_cutoff", (MF,))
    cases.stay("film_without_view").film(20, view="")
    same = cases.stay("two_films_in_one_second")
    same.film(20)
    same.expect_film(same.film(20)[0], RUNS)
    study = cases.stay("two_films_in_one_study")
    first = study.film(20)
    study.expect_film(study.film(20, study=first[1])[0], RUNS)


def add_film_time_cases(cases: Cases) -> None:
    """Add times that lost their zeros; the stay starts at 11:00."""
    assert (START.hour + 5) % 24 == 11
    night = cases.stay("film_time_213")  # 00:02:13 of the next day, not 02:13 nor 21:3x
    before = night.film(13 - 0.1)[0]
    night.expect_film(night.film(13 + 2 / 60 + 13 / 3600, time=213.14)[0], RUNS)
    assert before
    morning = cases.stay("film_time_93015")
    morning.expect_film(morning.film(22.504, time=93015.0)[0], RUNS)
    midnight = cases.stay("film_across_midnight")
    midnight.film(12.99)
    midnight.expect_film(midnight.film(13.01)[0], RUNS)


def add_film_file_cases(cases: Cases) -> None:
    """Add files that cannot be read, or are not what their name says, and rows that are repeated or absent."""
    for file in get_args(FilmFile):
        stay = cases.stay(f"film_file_{file}")
        dicom = stay.film(20, file=file)[0]
        if file in UNREADABLE:
            stay.expect_no_film(UNREADABLE[file])
        else:
            stay.expect_film(dicom, RUNS)
    twice = cases.stay("film_row_twice")
    twice.expect_film(twice.film(20, twice=True)[0], RUNS)
    bare = cases.stay("film_without_chexpert")
    bare.expect_film(bare.film(20, labelled=False)[0], FIXED)
    assert set(PHENOTYPING) == {PF, PP}
    assert set(PAPER) == {MP, PP}
