"""The bedside and laboratory variables of MIMIC-IV: item ids, units, plausible ranges, coma-scale words.

Ids, units and ranges are those of the public MIMIC benchmarks, with their two variables without an item in MIMIC-IV
(capillary refill, coma total) left out. Urine values (51478, 51491, 51094) and other body fluids (50831) are left out:
they would mix into blood glucose and pH. Units are repaired by item id, never by guessing from the value.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One channel.

    Values outside `drop` are recording errors and count as unobserved; those between `drop` and `valid` are clamped.
    """

    name: str
    chart_items: tuple[int, ...]
    lab_items: tuple[int, ...]
    drop: tuple[float, float]
    valid: tuple[float, float]


VARIABLES = (
    Variable("diastolic_bp", (220051, 220180, 224643, 225310), (), (0, 375), (0, 375)),
    Variable("fio2", (223835,), (), (0.2, 1.1), (0.21, 1.0)),
    Variable("gcs_eye", (220739,), (), (1, 4), (1, 4)),
    Variable("gcs_motor", (223901,), (), (1, 6), (1, 6)),
    Variable("gcs_verbal", (223900,), (), (1, 5), (1, 5)),
    Variable("glucose", (220621, 225664, 226537), (50809, 50931), (0, 2200), (33, 2000)),
    Variable("heart_rate", (220045,), (), (0, 390), (0, 350)),
    Variable("height", (226707, 226730), (), (0, 275), (0, 240)),
    Variable("mean_bp", (220052, 220181, 225312, 224322), (), (0, 375), (14, 330)),
    Variable("oxygen_saturation", (220277, 220227), (50817,), (0, 150), (0, 100)),
    Variable("respiratory_rate", (220210, 224690, 224689, 224422), (), (0, 330), (0, 300)),
    Variable("systolic_bp", (220050, 220179, 225309, 224167, 227243), (), (0, 375), (0, 375)),
    Variable("temperature", (223761, 223762), (), (14.2, 47), (26, 45)),
    Variable("weight", (226512, 224639, 226531), (), (0, 250), (0, 250)),
    Variable("ph", (223830, 220274), (50820,), (6.3, 10), (6.3, 8.4)),
)
FAHRENHEIT, INCHES, POUNDS, FIO2, SATURATION = 223761, 226707, 226531, 223835, (220277, 220227, 50817)
CHANNELS = tuple(variable.name for variable in VARIABLES)
CHART = {item: place for place, variable in enumerate(VARIABLES) for item in variable.chart_items}
LAB = {item: place for place, variable in enumerate(VARIABLES) for item in variable.lab_items}
_ITEMS = {variable.name: variable.chart_items for variable in VARIABLES}
SYSTOLIC, DIASTOLIC = _ITEMS["systolic_bp"], _ITEMS["diastolic_bp"]
# item id, words of the score 1, 2, ...; used where a row holds no number
COMA_WORDS: dict[int, tuple[tuple[str, ...], ...]] = {
    220739: (("none",), ("to pain",), ("to speech",), ("spontaneously",)),
    223901: (
        *(("no response",), ("abnormal extension",), ("abnormal flexion",), ("flex-withdraws",)),
        *(("localizes pain",), ("obeys commands",)),
    ),
    223900: (
        *(("no response", "no response-ett"), ("incomprehensible sounds",), ("inappropriate words",)),
        *(("confused",), ("oriented",)),
    ),
}
COMA_SCORES = {
    f"{item}:{word}": float(score)
    for item, scores in COMA_WORDS.items()
    for score, words in enumerate(scores, start=1)
    for word in words
}
