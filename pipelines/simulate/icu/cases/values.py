"""Cases of bedside and laboratory values: errors, units, texts, other fluids, wrong ids, borders of the window."""

from pipelines.simulate.icu.cases.case import Cases
from pipelines.simulate.icu.expected import FIXED, MF, PAPER, PF

NUMBERS = (
    # case, item, text, number, channel, what a correct preparation finds
    ("pulse_ten_million", 220045, "10000000", 1e7, "heart_rate", None),
    ("pulse_zero", 220045, "0", 0.0, "heart_rate", 0.0),  # within the benchmarks' range
    ("breaths_seven_million", 220210, "7000400", 7_000_400.0, "respiratory_rate", None),
    ("saturation_as_fraction", 220277, "0.97", 0.97, "oxygen_saturation", 97.0),
    ("saturation_140", 220277, "140", 140.0, "oxygen_saturation", 100.0),
    ("celsius_in_fahrenheit_item", 223761, "37", 37.0, "temperature", None),
    ("fahrenheit_150", 223761, "150", 150.0, "temperature", None),
    ("celsius_item", 223762, "37", 37.0, "temperature", 37.0),
    ("oxygen_in_percent", 223835, "40", 40.0, "fio2", 0.4),
    ("oxygen_as_fraction", 223835, "0.4", 0.4, "fio2", 0.4),
    ("pressure_pair_systolic", 225309, "120/80", None, "systolic_bp", 120.0),
    ("pressure_pair_diastolic", 225310, "121/81", None, "diastolic_bp", 81.0),
    ("height_in_inches", 226707, "67", 67.0, "height", 170.18),
    ("height_in_cm", 226730, "170", 170.0, "height", 170.0),
    ("weight_in_pounds", 226531, "180", 180.0, "weight", 81.64656),
    ("weight_in_kg", 226512, "82", 82.0, "weight", 82.0),
    ("coma_eye_none", 220739, "None", None, "gcs_eye", 1.0),
    ("coma_verbal_tube", 223900, "No Response-ETT", 1.0, "gcs_verbal", 1.0),
    ("coma_unknown_text", 223901, "something else", None, "gcs_motor", None),
    ("capillary_refill", 223951, "Abnormal >3 Seconds", None, "capillary_refill", 1.0),
)
# what MedFuse makes of some of them: numbers as standardised later, one-hot columns and masks
AS_PUBLISHED: dict[str, tuple[tuple[str, float], ...]] = {
    "pulse_ten_million": (("heart_rate", 1e7), ("mask of heart_rate", 1.0)),
    "saturation_140": (("oxygen_saturation", 140.0),),
    "celsius_in_fahrenheit_item": (("temperature", 37.0),),
    "oxygen_in_percent": (("fio2", 0.4),),
    "oxygen_as_fraction": (("fio2", 0.004),),
    "height_in_inches": (("height", 67.0),),
    "weight_in_pounds": (("weight", 81.64656),),
    "coma_eye_none": (("gcs_eye=None", 1.0), ("gcs_eye=4 Spontaneously", 0.0)),
    "coma_verbal_tube": (("gcs_verbal=No Response-ETT", 1.0), ("gcs_verbal=No Response", 0.0)),
    "coma_unknown_text": (("gcs_motor=6 Obeys Commands", 1.0), ("mask of gcs_motor", 0.0)),
    "capillary_refill": (("capillary_refill=0.0", 1.0), ("mask of capillary_refill", 0.0)),
}
LAB_TEXTS = ("ERROR", ">600", "___", "NEG")


def add_value_cases(cases: Cases) -> None:
    """Add one odd number or text each, in the fifth hour."""
    for name, item, text, number, channel, wanted in NUMBERS:
        stay = cases.stay(name).chart(5.2, item, text, number).cell(channel, 5, wanted, FIXED)
        for column, value in AS_PUBLISHED.get(name, ()):
            stay.cell(column, 5, value, PAPER)
    for place, text in enumerate(LAB_TEXTS):
        cases.stay(f"lab_text_{place}").lab(5.2, 50931, text, None).cell("glucose", 5, None, FIXED)
    urine = cases.stay("urine").lab(5.2, 51478, "1000", 1000.0).lab(5.2, 51491, "5", 5.0)
    urine.cell("glucose", 5, None, FIXED).cell("ph", 5, None, FIXED)
    urine.cell("glucose", 5, 1000.0, PAPER).cell("ph", 5, 5.0, PAPER)
    parts = cases.stay("coma_total")
    for item, text, number in ((220739, "To Pain", 2.0), (223900, "Confused", 4.0), (223901, "Obeys Commands", 6.0)):
        parts.chart(5.2, item, text, number)
    parts.chart(7.2, 220739, "To Pain", 2.0)
    parts.cell("gcs_total", 5, 12.0, FIXED).cell("gcs_total", 7, None, FIXED)


def add_row_cases(cases: Cases) -> None:
    """Add rows whose ids are absent or wrong, repeated rows, and rows at the borders of the window."""
    loose = cases.stay("lab_without_admission").lab(5.2, 50820, "7.11", 7.11, own="none")
    loose.cell("ph", 5, 7.11, FIXED).cell("mask of ph", 5, 0.0, PAPER)
    cases.stay("lab_of_other_admission").lab(5.2, 50820, "6.99", 6.99, own="other").cell("ph", 5, None, FIXED)
    lost = cases.stay("chart_without_stay").chart(5.2, 224639, "70", 70.0, own="none")
    lost.cell("weight", 5, 70.0, FIXED).cell("weight", 5, 70.0, PAPER)
    cases.stay("chart_of_other_stay").chart(5.2, 224639, "70", 70.0, own="other").cell("weight", 5, None, FIXED)
    ties = cases.stay("two_values_at_once").chart(5.2, 224639, "71", 71.0).chart(5.2, 224639, "70", 70.0)
    ties.cell("weight", 5, 71.0, FIXED)
    again = cases.stay("repeated_rows").chart(5.9, 224639, "72", 72.0)
    for _ in range(2):
        again.chart(5.2, 224639, "70", 70.0)  # after the later value: the table is not in order
    again.cell("weight", 5, 72.0, FIXED)
    border = cases.stay("borders_of_the_window", hours=60)
    border.chart(-1, 224639, "60", 60.0).chart(0, 223835, "50", 50.0)
    border.chart(48, 224639, "80", 80.0, stored=48).chart(48.01, 224639, "99", 99.0)
    border.chart(60, 226512, "90", 90.0, stored=60).chart(60.01, 226512, "91", 91.0)
    border.cell("weight", 0, None, FIXED).cell("fio2", 0, 0.5, FIXED)
    border.cell("weight", 47, 80.0, (MF,)).cell("weight", 48, 99.0, (PF,)).cell("weight", 59, 90.0, (PF,))
    late = cases.stay("stored_after_the_prediction_time")
    late.chart(47.5, 224639, "80", 80.0, stored=48.5).lab(47.5, 50820, "6.88", 6.88, stored=50.5)
    late.cell("weight", 47, None, (MF,)).cell("weight", 47, 80.0, (PF,))
    late.cell("ph", 47, None, (MF,)).cell("ph", 47, 6.88, (PF,)).cell("ph", 47, 6.88, PAPER)
    bins = cases.stay("on_the_border_of_two_bins").chart(5, 224639, "70", 70.0)
    bins.cell("weight", 5, 70.0, FIXED).cell("weight", 4, None, FIXED).cell("mask of weight", 4, 1.0, PAPER)
