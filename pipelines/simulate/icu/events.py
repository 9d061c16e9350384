"""Chart and laboratory events of the simulated cohort.

Hourly vitals drift with severity over the first two days; laboratory values are drawn three times a day. Item ids,
units and rates of observation are MIMIC-IV's. Rows of other items, most of a real table, can be added in any number.
"""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

HOURS = 60  # events go on after the first two days
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
    51491: ("pH", "Urine", 5.0, 0.0, 0.0, "units"),
}
ODD_ITEMS = {223835: "Inspired O2 Fraction", 226707: "Height", 226730: "Height (cm)", 223762: "Temperature Celsius",
             226531: "Admission Weight (lbs.)", 226512: "Admission Weight (Kg)", 224639: "Daily Weight",
             225309: "ART BP Systolic", 225310: "ART BP Diastolic", 223951: "Capillary Refill R",
             220227: "Arterial O2 Saturation", 223830: "PH (Arterial)"}  # fmt: skip
OTHER_ITEMS = np.array([220048, 224093, 223781, 224054, 226228, 223907, 227944, 228096, 224409, 225054])
PER_BLOCK = 500_000


def bulk_charts(stays: pd.DataFrame, severity: np.ndarray, random: np.random.Generator) -> pd.DataFrame:
    """Return chartevents rows."""
    vitals = [_vital(stays, severity, item, random) for item in VITALS]
    frame = pd.concat([*vitals, *(_coma(stays, severity, item, random) for item in COMA)])
    return frame.assign(storetime=frame["charttime"] + pd.Timedelta(minutes=9), caregiver_id=1000, warning=0)


def bulk_labs(stays: pd.DataFrame, severity: np.ndarray, random: np.random.Generator) -> pd.DataFrame:
    """Return labevents rows."""
    frame = pd.concat([_lab(stays, severity, item, random) for item in LABS])
    return frame.assign(storetime=frame["charttime"] + pd.Timedelta(minutes=50))


def item_frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return d_items and d_labitems."""
    labels = {**{k: v[0] for k, v in VITALS.items()}, **{k: v[0] for k, v in COMA.items()}, **ODD_ITEMS}
    items = pd.DataFrame({"itemid": list(labels), "label": list(labels.values())})
    items = items.assign(abbreviation=items["label"], linksto="chartevents", category="Simulated")
    rows = [(item, label, fluid, "Chemistry") for item, (label, fluid, *_) in LABS.items()]
    return items, pd.DataFrame(rows, columns=["itemid", "label", "fluid", "category"])


def append_other_events(path: Path, columns: tuple[str, ...], stays: pd.DataFrame, rows: int, seed: int) -> None:
    """Append rows of items that no variable uses to chartevents, block by block, so that memory sets no limit."""
    random = np.random.default_rng(seed)
    intime = stays["intime"].to_numpy("datetime64[us]")
    with path.open("ab") as raw:
        for start in range(0, rows, PER_BLOCK):
            count = min(PER_BLOCK, rows - start)
            who = np.sort(random.integers(0, len(stays), count))
            at = intime[who] + random.integers(0, HOURS * 3600, count).astype("timedelta64[s]")
            value = random.normal(50, 20, count).round(1)
            frame = pl.DataFrame(
                {
                    **{name: stays[name].to_numpy()[who] for name in ("subject_id", "hadm_id", "stay_id")},
                    **{
                        "caregiver_id": np.full(count, 1000),
                        "charttime": at,
                        "storetime": at + np.timedelta64(540, "s"),
                    },
                    **{"itemid": random.choice(OTHER_ITEMS, count), "value": value.astype(str), "valuenum": value},
                    **{"valueuom": ["mmHg"] * count, "warning": np.zeros(count, int)},
                }
            )
            text = frame.select(columns).write_csv(include_header=False, datetime_format="%Y-%m-%d %H:%M:%S").encode()
            raw.write(gzip.compress(text, compresslevel=5, mtime=0) if path.suffix == ".gz" else text)


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


def _events(
    stays: pd.DataFrame, row: np.ndarray, hours: np.ndarray, item: Any, values: np.ndarray, unit: str
) -> pd.DataFrame:
    chosen = stays.iloc[row]
    return pd.DataFrame(
        {
            "subject_id": chosen["subject_id"].to_numpy(),
            "hadm_id": chosen["hadm_id"].to_numpy(),
            "stay_id": chosen["stay_id"].to_numpy(),
            "charttime": (pd.DatetimeIndex(chosen["intime"]) + pd.to_timedelta(hours, unit="h")).round("s"),
            "itemid": item,
            "value": values.astype(str),
            "valuenum": values,
            "valueuom": unit,
        }
    )
