"""Tables of the simulated cohort: chart and laboratory events, and how a table is written.

Hourly vitals drift with severity over the first two days; laboratory values are drawn three times a day. Times,
units and item ids are MIMIC-IV's, its oddities included: temperatures in Fahrenheit, implausible values, urine
glucose, pressures as text, laboratory rows without an admission, and events outside the first two days.
"""

import gzip
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HOURS = 60  # events go on after the prediction time at 48 h
# item id: (label, mean, effect of one unit of severity after 48 h, deviation, chance of a value in an hour, unit)
VITALS = {
    220045: ("Heart Rate", 86.0, 13.0, 18.0, 0.9, "bpm"),
    220179: ("Non Invasive Blood Pressure systolic", 120.0, -14.0, 20.0, 0.85, "mmHg"),
    220180: ("Non Invasive Blood Pressure diastolic", 62.0, -6.0, 12.0, 0.85, "mmHg"),
    220181: ("Non Invasive Blood Pressure mean", 80.0, -9.0, 13.0, 0.85, "mmHg"),
    220210: ("Respiratory Rate", 19.0, 3.5, 5.0, 0.9, "insp/min"),
    220277: ("O2 saturation pulseoxymetry", 95.5, -1.3, 2.0, 0.9, "%"),
    223761: ("Temperature Fahrenheit", 98.5, 0.3, 1.2, 0.3, "°F"),
    220621: ("Glucose (serum)", 135.0, 10.0, 40.0, 0.15, "mg/dL"),
}
COMA = {
    220739: ("GCS - Eye Opening", "None|To Pain|To Speech|Spontaneously"),
    223900: (
        "GCS - Verbal Response",
        "No Response-ETT|Incomprehensible sounds|Inappropriate Words|Confused|Oriented",
    ),
    223901: (
        "GCS - Motor Response",
        "No response|Abnormal extension|Abnormal Flexion|Flex-withdraws|Localizes Pain|Obeys Commands",
    ),
}
# item id: (label, fluid, mean, effect, deviation, unit)
LABS = {
    50931: ("Glucose", "Blood", 130.0, 10.0, 40.0, "mg/dL"),
    50820: ("pH", "Blood", 7.38, -0.025, 0.06, "units"),
    51478: ("Glucose", "Urine", 1000.0, 0.0, 1.0, "mg/dL"),
}
# hour, item id, value as text, number (None: text only) of the stay with odd values
ODD_CHARTS = (
    (0.0, 223835, "50", 50.0),  # exactly at admission to the unit
    (1.0, 226707, "67", 67.0),  # inches
    (2.1, 226531, "180", 180.0),  # pounds
    (3.2, 220045, "10000000", 1e7),
    (3.3, 223835, "40", 40.0),  # percent
    (4.3, 223835, "0.4", 0.4),  # fraction
    (5.1, 225309, "120/80", None),
    (6.1, 223761, "37", 37.0),  # Celsius in the Fahrenheit item
    (-1.0, 224639, "70", 70.0),
    (48.0, 224639, "80", 80.0),  # exactly at the prediction time
    (48.1, 224639, "99", 99.0),
)
ODD_ITEMS = {223835: "Inspired O2 Fraction", 226707: "Height", 226531: "Admission Weight (lbs.)",
             225309: "ART BP Systolic", 224639: "Daily Weight"}  # fmt: skip
# hour, hours until stored, number, text, admission (own, none, other) of pH values of the same stay
ODD_LABS = (
    (12.1, 1.0, 7.11, "7.11", "none"),
    (14.1, 1.0, 6.99, "6.99", "other"),
    (13.1, 1.0, np.nan, "ERROR", "own"),
    (47.5, 3.0, 6.88, "6.88", "own"),  # its result is not known at the prediction time
)
# channel, bin, value that a correct preparation finds; None: nothing
ODD_CELLS: tuple[tuple[str, int, float | None], ...] = (
    *(("fio2", 0, 0.5), ("height", 1, 170.18), ("weight", 2, 81.64656), ("fio2", 3, 0.4), ("fio2", 4, 0.4)),
    *(("weight", 0, None), ("weight", 47, 80.0), ("ph", 12, 7.11), ("ph", 13, None), ("ph", 14, None)),
    ("ph", 47, None),
)


def write_csv(path: Path, columns: Mapping[Any, Any]) -> None:
    """Write a gzip csv whose bytes depend on the content alone (no time stamp)."""
    frame = pd.DataFrame(columns)
    for name in frame.select_dtypes("datetime"):
        frame[name] = frame[name].dt.strftime("%Y-%m-%d %H:%M:%S")
    text = io.BytesIO()
    frame.to_csv(text, index=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.getvalue(), compresslevel=5, mtime=0))


def write_measurements(root: Path, stays: pd.DataFrame, severity: np.ndarray, random: np.random.Generator) -> None:
    """Write chartevents, labevents and their dictionaries."""
    with_events = (stays["kind"] != "no_event").to_numpy()
    stays, severity = stays[with_events].reset_index(drop=True), severity[with_events]
    charts = [_vital(stays, severity, item, random) for item in VITALS]
    charts += [_coma(stays, severity, item, random) for item in COMA]
    _write_charts(root, pd.concat([*charts, _odd_charts(stays)]))
    labs = [_lab(stays, severity, item, random) for item in LABS]
    _write_labs(root, pd.concat([*labs, _odd_labs(stays)]))
    labels = {**{k: v[0] for k, v in VITALS.items()}, **{k: v[0] for k, v in COMA.items()}, **ODD_ITEMS}
    items = {"itemid": list(labels), "label": list(labels.values()), "abbreviation": list(labels.values())}
    empty = dict.fromkeys(("unitname", "param_type", "lownormalvalue", "highnormalvalue"), "")
    write_csv(root / "icu/d_items.csv.gz", {**items, "linksto": "chartevents", "category": "Simulated", **empty})
    rows = [(item, label, fluid, "Chemistry") for item, (label, fluid, *_) in LABS.items()]
    frame = pd.DataFrame(rows, columns=["itemid", "label", "fluid", "category"])
    write_csv(root / "hosp/d_labitems.csv.gz", dict(frame.items()))


def _write_charts(root: Path, events: pd.DataFrame) -> None:
    events = events.sort_values(["stay_id", "charttime", "itemid"], kind="stable")
    events["storetime"] = events["charttime"] + pd.Timedelta(minutes=9)
    events["caregiver_id"], events["warning"] = 1000, 0
    order = ["subject_id", "hadm_id", "stay_id", "caregiver_id", "charttime", "storetime", "itemid"]
    order += ["value", "valuenum", "valueuom", "warning"]
    write_csv(root / "icu/chartevents.csv.gz", dict(events[order].items()))


def _write_labs(root: Path, events: pd.DataFrame) -> None:
    events = events.sort_values(["subject_id", "charttime", "itemid"], kind="stable")
    events["storetime"] = events["storetime"].fillna(events["charttime"] + pd.Timedelta(minutes=50))
    events["hadm_id"] = events["hadm_id"].astype("Int64")
    events["labevent_id"] = events["specimen_id"] = np.arange(1, len(events) + 1)
    blank = ["order_provider_id", "ref_range_lower", "ref_range_upper", "flag", "priority", "comments"]
    events[blank] = ""
    order = ["labevent_id", "subject_id", "hadm_id", "specimen_id", "itemid", "order_provider_id", "charttime"]
    order += ["storetime", "value", "valuenum", "valueuom", *blank[1:]]
    write_csv(root / "hosp/labevents.csv.gz", dict(events[order].items()))


def _vital(stays: pd.DataFrame, severity: np.ndarray, item: int, random: np.random.Generator) -> pd.DataFrame:
    _, mean, effect, deviation, chance, unit = VITALS[item]
    hours = np.arange(HOURS)
    level = random.normal(0, deviation * 0.7, len(stays))[:, None]
    trend = severity[:, None] * effect * np.minimum(hours / 48, 1)[None]
    values = np.maximum(mean + level + trend + random.normal(0, deviation * 0.6, (len(stays), HOURS)), 1)
    if unit == "%":
        values = np.minimum(values, 100)
    row, hour = np.nonzero(random.random(values.shape) < chance)
    return _events(stays, row, hour + random.uniform(0, 0.99, len(row)), item, values[row, hour].round(1), unit)


def _coma(stays: pd.DataFrame, severity: np.ndarray, item: int, random: np.random.Generator) -> pd.DataFrame:
    names = COMA[item][1].split("|")
    row, hour = np.nonzero(random.random((len(stays), HOURS)) < 0.25)
    drop = np.maximum(0, 0.5 * severity[row] * hour / 48 + random.normal(0, 0.9, len(row))).round()
    score = np.clip(len(names) - drop, 1, len(names)).astype(int)
    events = _events(stays, row, hour + 0.5, item, score, "")
    events["value"] = np.array(names, dtype=object)[score - 1]
    return events


def _lab(stays: pd.DataFrame, severity: np.ndarray, item: int, random: np.random.Generator) -> pd.DataFrame:
    _, _, mean, effect, deviation, unit = LABS[item]
    row = np.repeat(np.arange(len(stays)), 6)
    hour = np.tile(np.arange(6) * 8 + 2, len(stays))
    values = np.maximum(mean + effect * severity[row] * hour / 48 + random.normal(0, deviation, len(row)), 5)
    return _events(stays, row, hour + 0.25, item, values.round(3), unit)


def _odd_charts(stays: pd.DataFrame) -> pd.DataFrame:
    row = np.flatnonzero(stays["case"] == "odd_values")[[0] * len(ODD_CHARTS)]
    hours, items, texts, numbers = (list(column) for column in zip(*ODD_CHARTS, strict=True))
    events = _events(stays, row, np.array(hours), np.array(items), np.array(numbers, float), "")
    events["value"] = texts
    return events


def _odd_labs(stays: pd.DataFrame) -> pd.DataFrame:
    row = np.flatnonzero(stays["case"] == "odd_values")[[0] * len(ODD_LABS)]
    hours, wait, numbers = (np.array([line[i] for line in ODD_LABS], float) for i in range(3))
    admission = np.array([line[4] for line in ODD_LABS])
    events = _events(stays, row, hours, 50820, numbers, "units")
    events["value"] = [line[3] for line in ODD_LABS]
    events["storetime"] = events["charttime"] + pd.to_timedelta(wait, unit="h")
    own = events["hadm_id"].astype("Int64")
    events["hadm_id"] = own.mask(admission == "none").mask(admission == "other", 29_999_999)
    return events


def _events(
    stays: pd.DataFrame, row: np.ndarray, hours: np.ndarray, item: Any, values: np.ndarray, unit: str
) -> pd.DataFrame:
    chosen = stays.iloc[row]
    moved = np.where(chosen["kind"] == "early_events", hours - HOURS - 2, hours)  # all of them before admission
    return pd.DataFrame(
        {
            "subject_id": chosen["subject_id"].to_numpy(),
            "hadm_id": chosen["hadm_id"].to_numpy(),
            "stay_id": chosen["stay_id"].to_numpy(),
            "charttime": (pd.DatetimeIndex(chosen["intime"]) + pd.to_timedelta(moved, unit="h")).round("s"),
            "itemid": item,
            "value": values.astype(str),
            "valuenum": values,
            "valueuom": unit,
        }
    )
