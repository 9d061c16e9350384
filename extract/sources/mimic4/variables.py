"""The 17 bedside and laboratory variables: item ids, units, plausible ranges, words of categories.

Order, ids, units and ranges are those of the public MIMIC benchmarks. Of two variables their map has no item that
occurs in MIMIC-IV: capillary refill gets its two MetaVision items here, the coma total is the sum of its parts.
Urine (51478, 51491, 51094) and other body fluids (50831) are left out, or they would mix into blood glucose and pH;
`paper` keeps them.
"""

from dataclasses import dataclass, field


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
    usual: float
    """What the benchmarks fill in where nothing was measured before."""
    categories: tuple[str, ...] = ()
    """Texts of the benchmarks' one-hot columns, in their order."""
    wrong_fluid: tuple[int, ...] = field(default=())
    """Laboratory items of other fluids that the benchmarks mix in."""


EYE = (
    *("To Pain", "3 To speech", "1 No Response", "4 Spontaneously"),
    *("None", "To Speech", "Spontaneously", "2 To pain"),
)
MOTOR = (
    *("1 No Response", "3 Abnorm flexion", "Abnormal extension", "No response", "4 Flex-withdraws", "Localizes Pain"),
    *("Flex-withdraws", "Obeys Commands", "Abnormal Flexion", "6 Obeys Commands", "5 Localizes Pain"),
    "2 Abnorm extensn",
)
VERBAL = (
    *("1 No Response", "No Response", "Confused", "Inappropriate Words", "Oriented", "No Response-ETT", "5 Oriented"),
    *("Incomprehensible sounds", "1.0 ET/Trach", "4 Confused", "2 Incomp sounds", "3 Inapprop words"),
)
TOTAL = ("11", "10", "13", "12", "15", "14", "3", "5", "4", "7", "6", "9", "8")
VARIABLES = (
    Variable("capillary_refill", (223951, 224308), (), (0, 1), (0, 1), 0, ("0.0", "1.0")),
    Variable("diastolic_bp", (220051, 220180, 224643, 225310), (), (0, 375), (0, 375), 59),
    Variable("fio2", (223835,), (), (0.2, 1.1), (0.21, 1.0), 0.21),
    Variable("gcs_eye", (220739,), (), (1, 4), (1, 4), 4, EYE),
    Variable("gcs_motor", (223901,), (), (1, 6), (1, 6), 6, MOTOR),
    Variable("gcs_total", (), (), (3, 15), (3, 15), 15, TOTAL),
    Variable("gcs_verbal", (223900,), (), (1, 5), (1, 5), 5, VERBAL),
    Variable("glucose", (220621, 225664, 226537), (50809, 50931), (0, 2200), (33, 2000), 128, (), (51478,)),
    Variable("heart_rate", (220045,), (), (0, 390), (0, 350), 86),
    Variable("height", (226707, 226730), (), (0, 275), (0, 240), 170),
    Variable("mean_bp", (220052, 220181, 225312, 224322), (), (0, 375), (14, 330), 77),
    Variable("oxygen_saturation", (220277, 220227), (50817,), (0, 150), (0, 100), 98),
    Variable("respiratory_rate", (220210, 224690, 224689, 224422), (), (0, 330), (0, 300), 19),
    Variable("systolic_bp", (220050, 220179, 225309, 224167, 227243), (), (0, 375), (0, 375), 118),
    Variable("temperature", (223761, 223762), (), (14.2, 47), (26, 45), 36.6),
    Variable("weight", (226512, 224639, 226531), (), (0, 250), (0, 250), 81),
    Variable("ph", (223830, 220274), (50820,), (6.3, 10), (6.3, 8.4), 7.4, (), (50831, 51094, 51491)),
)
FAHRENHEIT, INCHES, POUNDS, FIO2, SATURATION = 223761, 226707, 226531, 223835, (220277, 220227, 50817)
CHANNELS = tuple(variable.name for variable in VARIABLES)
PLACE = {name: place for place, name in enumerate(CHANNELS)}
COMA_PARTS = ("gcs_eye", "gcs_motor", "gcs_verbal")
USUAL_TEXT = {"gcs_eye": "4 Spontaneously", "gcs_motor": "6 Obeys Commands", "gcs_verbal": "5 Oriented"}
_ITEMS = {variable.name: variable.chart_items for variable in VARIABLES}
SYSTOLIC, DIASTOLIC = _ITEMS["systolic_bp"], _ITEMS["diastolic_bp"]
CAPILLARY = _ITEMS["capillary_refill"]
# item id, words of each score; used where a row holds no number
WORDS: dict[int, dict[float, tuple[str, ...]]] = {
    **{item: {0.0: ("normal <3 seconds",), 1.0: ("abnormal >3 seconds",)} for item in CAPILLARY},
    220739: {1.0: ("none",), 2.0: ("to pain",), 3.0: ("to speech",), 4.0: ("spontaneously",)},
    223901: {
        **{1.0: ("no response",), 2.0: ("abnormal extension",), 3.0: ("abnormal flexion",)},
        **{4.0: ("flex-withdraws",), 5.0: ("localizes pain",), 6.0: ("obeys commands",)},
    },
    223900: {
        **{1.0: ("no response", "no response-ett"), 2.0: ("incomprehensible sounds",)},
        **{3.0: ("inappropriate words",), 4.0: ("confused",), 5.0: ("oriented",)},
    },
}
SCORES = {
    f"{item}:{word}": score for item, scores in WORDS.items() for score, words in scores.items() for word in words
}


def chart_places(*, paper: bool) -> dict[int, int]:
    """Return the channel of each chart item; the benchmarks' map lacks capillary refill."""
    items = {item: place for place, variable in enumerate(VARIABLES) for item in variable.chart_items}
    return {item: place for item, place in items.items() if not (paper and item in CAPILLARY)}


def lab_places(*, paper: bool) -> dict[int, int]:
    """Return the channel of each laboratory item."""
    both = ((place, v.lab_items + (v.wrong_fluid if paper else ())) for place, v in enumerate(VARIABLES))
    return {item: place for place, items in both for item in items}


def category_ranks() -> dict[str, float]:
    """Return, by `item:text`, the place of a text among its variable's categories in alphabetical order.

    So that of two texts of one time the later in the alphabet is the larger number, as the benchmarks keep it.
    """
    by_item = {item: v for v in VARIABLES if v.name in COMA_PARTS for item in v.chart_items}
    return {f"{item}:{t}": float(i) for item, v in by_item.items() for i, t in enumerate(sorted(v.categories))}
