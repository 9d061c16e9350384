"""Cases of texts: which report counts, at what time it is known, and texts that csv makes hard."""

from pipelines.simulate.icu.cases.case import Cases
from pipelines.simulate.icu.expected import FIXED, MF, PAPER, PF
from pipelines.simulate.icu.notes import HEAD, Note

WORDS = "EXAMINATION: CHEST. FINDINGS: none."
HARD = {
    "text_60_kb": "Line of a long report.\n" * 2600,
    "text_not_ascii": "Température 38 °C, naïve, 胸部X線, emoji 🫁",
    "text_quotes_and_lines": 'He said "clear", then\n"""worse""",\r\n, a comma, and a "\n',
    "text_none_word": "None",
}
BLANK = {"text_null": None, "text_empty": "", "text_placeholder": "___"}


def add_note_cases(cases: Cases) -> None:
    """Add texts in every form and reports at every time."""
    for name, text in HARD.items():
        cases.stay(name).note(Note(5, 6, text)).expect_text(text, FIXED)
    for name, blank in BLANK.items():
        cases.stay(name).note(Note(5, 6, blank)).expect_no_text("empty", FIXED)
    cases.stay("note_admission_unknown").note(Note(5, 6, WORDS), admission_known=False).expect_text(WORDS, FIXED)
    stored = cases.stay("note_stored_late", hours=70).note(Note(47, 50, WORDS))
    stored.expect_no_text("after_cutoff", (MF,)).expect_text(WORDS, (PF,))
    cases.stay("note_store_unknown").note(Note(20, None, WORDS)).expect_text(WORDS, FIXED)
    delayed = cases.stay("note_store_unknown_late", hours=60).note(Note(30, None, WORDS))
    delayed.expect_no_text("after_cutoff", (MF,)).expect_text(WORDS, (PF,))
    cases.stay("note_addendum").note(Note(5, 6, WORDS, kind="AR"))
    cases.stay("note_of_the_head").note(Note(5, 6, WORDS, exam=HEAD))
    cases.stay("note_before_the_unit").note(Note(-5, -4, WORDS))
    two = cases.stay("two_notes").note(Note(9, 10, "SECOND " + WORDS)).note(Note(5, 6, "FIRST " + WORDS))
    two.expect_text(f"FIRST {WORDS}\n\nSECOND {WORDS}", FIXED)
    study = cases.stay("report_of_the_study")
    study.film(10, report="earlier study")
    dicom = study.film(20, report=WORDS)[0]
    study.expect_film(dicom, (*FIXED, *PAPER)).expect_text(WORDS, PAPER)
