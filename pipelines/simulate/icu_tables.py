"""Tables of the simulated cohort: chart and laboratory events, and how a table is written.

Hourly vitals drift with severity over the first two days; laboratory values are drawn three times a day. Times,
units and item ids are MIMIC-IV's, a few oddities included: temperatures in Fahrenheit, implausible values, urine
glucose, and events after the prediction time.
"""

import gzip
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

# item id: (mean, effect of one unit of severity at the end, deviation, chance of a value in an hour, unit)
VITALS = {
    220045: (86.0, 5.0, 14.0, 0.9, "bpm"),
    220179: (120.0, -6.0, 17.0, 0.85, "mmHg"),
    220180: (62.0, -2.5, 11.0, 0.85, "mmHg"),
    220181: (80.0, -4.5, 12.0, 0.85, "mmHg"),
    220210: (19.0, 1.8, 4.5, 0.9, "insp/min"),
    220277: (96.5, -0.8, 2.0, 0.9, "%"),
    223761: (98.5, 0.25, 1.1, 0.3, "°F"),
    220621: (135.0, 10.0, 40.0, 0.15, "mg/dL"),
}
COMA = {220739: 4, 223900: 5, 223901: 6}  # eye, verbal, motor: best score
LABS = {50931: (130.0, 10.0, 40.0, "mg/dL"), 50820: (7.38, -0.025, 0.06, "units"), 51478: (1000.0, 0.0, 1.0, "mg/dL")}


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
    charts = [_vital(stays, severity, item, random) for item in VITALS]
    charts += [_coma(stays, severity, item, best, random) for item, best in COMA.items()]
    charts.append(_oddities(stays))
    events = pd.concat(charts).sort_values(["stay_id", "charttime", "itemid"], kind="stable")
    events["storetime"] = events["charttime"] + pd.Timedelta(minutes=9)
    events["warning"] = 0
    order = ["subject_id", "hadm_id", "stay_id", "charttime", "storetime", "itemid", "value", "valuenum", "valueuom"]
    write_csv(root / "icu/chartevents.csv.gz", dict(events[[*order, "warning"]].items()))
    labs = pd.concat([_lab(stays, severity, item, random) for item in LABS])
    labs = labs.sort_values(["hadm_id", "charttime", "itemid"], kind="stable")
    labs["storetime"] = labs["charttime"] + pd.Timedelta(minutes=50)
    labs.insert(0, "labevent_id", np.arange(1, len(labs) + 1))
    columns = ["labevent_id", "subject_id", "hadm_id", "itemid", "charttime", "storetime"]
    write_csv(root / "hosp/labevents.csv.gz", dict(labs[[*columns, "value", "valuenum", "valueuom"]].items()))
    items = [*VITALS, *COMA]
    write_csv(root / "icu/d_items.csv.gz", {"itemid": items, "label": "simulated", "linksto": "chartevents"})
    write_csv(root / "hosp/d_labitems.csv.gz", {"itemid": list(LABS), "label": "simulated", "fluid": "Blood"})


def _vital(stays: pd.DataFrame, severity: np.ndarray, item: int, random: np.random.Generator) -> pd.DataFrame:
    mean, effect, deviation, chance, unit = VITALS[item]
    hours = np.arange(60)
    level = random.normal(0, deviation * 0.7, len(stays))[:, None]
    trend = severity[:, None] * effect * np.minimum(hours / 48, 1)[None]
    values = mean + level + trend + random.normal(0, deviation * 0.6, (len(stays), len(hours)))
    if item == 220277:
        values = np.minimum(values, 100)
    row, hour = np.nonzero(random.random(values.shape) < chance)
    return _events(stays, row, hour + random.uniform(0, 0.99, len(row)), item, values[row, hour].round(1), unit)


def _coma(stays: pd.DataFrame, severity: np.ndarray, item: int, best: int, random: np.random.Generator) -> pd.DataFrame:
    row, hour = np.nonzero(random.random((len(stays), 60)) < 0.25)
    drop = np.maximum(0, 0.6 * severity[row] * hour / 48 + random.normal(0, 0.8, len(row)))
    return _events(stays, row, hour + 0.5, item, np.clip(best - drop.round(), 1, best), "")


def _lab(stays: pd.DataFrame, severity: np.ndarray, item: int, random: np.random.Generator) -> pd.DataFrame:
    mean, effect, deviation, unit = LABS[item]
    row = np.repeat(np.arange(len(stays)), 6)
    hour = np.tile(np.arange(6) * 8 + 2, len(stays))
    values = mean + effect * severity[row] * hour / 48 + random.normal(0, deviation, len(row))
    return _events(stays, row, hour + 0.25, item, values.round(3), unit)


def _oddities(stays: pd.DataFrame) -> pd.DataFrame:
    """A recording error and a height in inches for the first stay."""
    rows = np.zeros(2, int)
    errors = _events(stays, rows[:1], np.array([3.2]), 220045, np.array([10_000_000.0]), "bpm")
    return pd.concat([errors, _events(stays, rows[:1], np.array([1.0]), 226707, np.array([67.0]), "Inch")])


def _events(
    stays: pd.DataFrame, row: np.ndarray, hours: np.ndarray, item: int, values: np.ndarray, unit: str
) -> pd.DataFrame:
    chosen = stays.iloc[row]
    return pd.DataFrame(
        {
            "subject_id": chosen["subject_id"].to_numpy(),
            "hadm_id": chosen["hadm_id"].to_numpy(),
            "stay_id": chosen["stay_id"].to_numpy(),
            "charttime": (chosen["intime"].to_numpy() + pd.to_timedelta(hours, unit="h")).round("s"),
            "itemid": item,
            "value": values,
            "valuenum": values,
            "valueuom": unit,
        }
    )
