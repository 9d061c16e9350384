"""MIMIC-IV preparation against the simulator's plan, the rules one by one, and its errors."""

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cache.errors import UserError
from extract.samples import SamplesTable
from extract.sources import mimic4_variables as v
from extract.sources.mimic4 import prepare_mimic4
from extract.sources.mimic4_events import clean
from extract.sources.mimic4_links import last_films
from pipelines.simulate.icu import simulate_icu
from pipelines.simulate.icu_notes import CANARY

OPTIONS = {"task": "mortality", "hours": 48, "bin_hours": 1}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icu") / "raw"
    simulate_icu(folder, 80, seed=0)
    return folder


@pytest.fixture(scope="module")
def table(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> SamplesTable:
    return prepare_mimic4(raw, tmp_path_factory.mktemp("prepared"), OPTIONS)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icu") / "small"
    simulate_icu(folder, 20, seed=1)
    return folder


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A copy whose tables a test may change; without films, which most tests do not need."""
    shutil.copytree(small, tmp_path / "raw", ignore=shutil.ignore_patterns("mimic-cxr-jpg"))
    return tmp_path / "raw"


@pytest.fixture(scope="module")
def expected(raw: Path) -> dict:
    return json.loads((raw / "expected.json").read_text())


def series(table: SamplesTable) -> np.ndarray:
    return np.stack([np.reshape(a, s) for a, s in zip(table.frame["ehr_array"], table.frame["ehr_shape"], strict=True)])


def rewrite(raw: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = raw / f"{name}.csv.gz"
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


# --- the plan of the simulator -------------------------------------------------------------------------------------


def test_counts_labels_and_links_are_the_plans(table: SamplesTable, expected: dict) -> None:
    assert [step.model_dump() for step in table.info.counts] == expected["steps"]
    rows = table.frame.set_index("sample_id")
    assert rows["label"].astype(int).to_dict() == expected["labels"]
    assert rows["group_id"].to_dict() == expected["subjects"]
    assert rows["cxr_dicom_id"].dropna().to_dict() == expected["images"]
    assert rows["txt_text"].dropna().str.count("EXAMINATION").to_dict() == expected["reports"]


def test_odd_values_land_repaired_in_their_bins(table: SamplesTable, expected: dict) -> None:
    rows = dict(zip(table.frame["sample_id"], series(table), strict=True))
    for cell in expected["cells"]:
        found = rows[cell["stay"]][cell["bin"], v.CHANNELS.index(cell["channel"])]
        wanted = np.nan if cell["value"] is None else np.float32(cell["value"])
        np.testing.assert_equal(found, wanted, err_msg=str(cell))
    values = series(table)
    assert values.shape[1:] == (48, 15)
    ranges = np.array([variable.valid for variable in v.VARIABLES], np.float32)
    assert not ((values < ranges[:, 0]) | (values > ranges[:, 1])).any()
    assert np.nanmax(values[..., v.CHANNELS.index("glucose")]) < 900  # no urine, which has 1000


def test_every_stay_left_out_has_a_reason(table: SamplesTable, raw: Path) -> None:
    dropped = pd.read_parquet(table.root / "dropped.parquet")
    stays = pd.read_csv(raw / "icu/icustays.csv.gz")["stay_id"].astype(str)
    assert sorted([*dropped["source_id"], *table.frame["sample_id"]]) == sorted(stays)
    assert dropped["reason"].str.len().min() > 0


def test_no_discharge_text_and_nothing_after_the_prediction_time(table: SamplesTable) -> None:
    for path in table.root.rglob("*.parquet"):
        assert CANARY not in pd.read_parquet(path).to_csv()
    assert CANARY not in (table.root / "dataset.json").read_text()
    for column in ("cxr_available_time", "txt_available_time"):
        known = table.frame[table.frame[column].notna()]
        assert len(known) > 20
        assert (known[column] <= known["prediction_time"]).all()
    assert not table.frame["txt_text"].str.contains("ADDENDUM").any()


def test_missing_is_null_with_a_reason_and_unreadable_films_are_missing(table: SamplesTable, expected: dict) -> None:
    rows = table.frame.set_index("sample_id")
    for name, value in (("cxr", "cxr_path"), ("txt", "txt_text")):
        assert (rows[f"{name}_missing_reason"].isna() == rows[value].notna()).all()
    for case in ("truncated_film", "absent_film"):
        row = rows.loc[expected["cases"][case]]
        assert row["cxr_missing_reason"].startswith("unreadable")
        assert row["cxr_path"] is None
    assert rows.loc[expected["cases"]["blank_report"], "txt_text"] is None
    for path in rows["cxr_path"].dropna():
        with Image.open(table.root / path) as image:
            assert image.mode == "L"
            assert max(image.size) <= 256
    assert len(list((table.root / "images").iterdir())) == rows["cxr_path"].notna().sum()


def test_subjects_lie_in_one_split_near_the_shares(table: SamplesTable) -> None:
    assert (table.frame.groupby("group_id")["split"].nunique() == 1).all()
    assert table.frame["group_id"].nunique() < len(table.frame)  # some have two admissions
    assert 0.55 < (table.frame["split"] == "train").mean() < 0.85


def test_signal_exists_in_the_series(table: SamplesTable) -> None:
    values = series(table)
    late = np.nanmean(values[:, 30:][:, :, [v.CHANNELS.index(name) for name in ("heart_rate", "systolic_bp")]], axis=1)
    train, label = (table.frame["split"] == "train").to_numpy(), table.frame["label"].to_numpy()
    model = LogisticRegression(max_iter=1000).fit(late[train], label[train])
    assert roc_auc_score(label[~train], model.predict_proba(late[~train])[:, 1]) > 0.6


# --- invariance ----------------------------------------------------------------------------------------------------


def test_rerun_and_shuffled_plain_csv_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "shuffled")
    for path in sorted((tmp_path / "shuffled").rglob("*.csv.gz")):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False).sample(frac=1, random_state=0)
        frame.to_csv(path.with_suffix(""), index=False)
        path.write_bytes(gzip.compress(b"ignored,where,there,is,a,csv\n"))
    written = []
    for source, out in ((small, "a"), (small, "a"), (tmp_path / "shuffled", "b")):
        prepare_mimic4(source, tmp_path / out, OPTIONS)
        files = sorted(path for path in (tmp_path / out).rglob("*") if path.is_file())
        written.append({str(path.relative_to(tmp_path / out)): path.read_bytes() for path in files})
    assert written[0] == written[1] == written[2]


def test_films_and_notes_are_optional(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "note")
    table = prepare_mimic4(copy, tmp_path / "out", OPTIONS)
    assert table.frame["cxr_path"].isna().all()
    assert table.frame["txt_text"].isna().all()
    assert set(table.frame["cxr_missing_reason"]) == set(table.frame["txt_missing_reason"]) == {"not_in_source"}


def test_events_after_the_window_change_nothing(copy: Path, tmp_path: Path) -> None:
    before = series(prepare_mimic4(copy, tmp_path / "before", OPTIONS))
    intime = pd.read_csv(copy / "icu/icustays.csv.gz", parse_dates=["intime"]).set_index("stay_id")["intime"]

    def spoil(frame: pd.DataFrame) -> pd.DataFrame:
        start = frame["stay_id"].astype(int).map(intime)
        late = pd.to_datetime(frame["charttime"]) > start + pd.Timedelta(hours=48)
        assert late.any()
        frame.loc[late, ["value", "valuenum"]] = "5"
        return frame

    rewrite(copy, "icu/chartevents", spoil)
    np.testing.assert_array_equal(before, series(prepare_mimic4(copy, tmp_path / "after", OPTIONS)))


def test_other_windows_and_bins(copy: Path, tmp_path: Path) -> None:
    table = prepare_mimic4(copy, tmp_path / "out", {**OPTIONS, "hours": 24, "bin_hours": 2})
    assert {tuple(shape) for shape in table.frame["ehr_shape"]} == {(12, 15)}
    known = table.frame[table.frame["txt_text"].notna()]
    assert (known["txt_available_time"] <= known["prediction_time"]).all()


# --- single rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "number", "wanted"),
    [
        (223761, 98.6, 37.0),
        (223761, 37.0, np.nan),  # Celsius in the Fahrenheit item: 2.8 degrees
        (223761, 150.0, np.nan),
        (223762, 37.0, 37.0),
        (226707, 67.0, 170.18),
        (226730, 170.0, 170.0),
        (226531, 180.0, 81.64656),
        (226512, 82.0, 82.0),
        (223835, 40.0, 0.4),
        (223835, 0.4, 0.4),
        (223835, 0.205, 0.21),  # clamped
        (220277, 0.97, 97.0),
        (220277, 140.0, 100.0),
        (220045, 1e7, np.nan),
        (220045, 370.0, 350.0),
        (220045, -1.0, np.nan),
        (220210, 7_000_400.0, np.nan),
        (50820, 9.0, 8.4),
        (50820, np.nan, np.nan),
    ],
)
def test_units_and_ranges(item: int, number: float, wanted: float) -> None:
    channel = np.array([{**v.CHART, **v.LAB}[item]])
    found = clean(np.array([item]), channel, np.array([number]), Counter())
    np.testing.assert_allclose(found, [wanted], rtol=1e-6)


def test_numbers_are_read_from_text_where_there_is_none(copy: Path, tmp_path: Path) -> None:
    stay = min(json.loads((copy / "expected.json").read_text())["labels"])
    lines = [(225309, "120/80", 120.0, "systolic_bp"), (225310, "121/81", 81.0, "diastolic_bp")]
    lines += [(220739, "None", 1.0, "gcs_eye"), (223900, "No Response-ETT", 1.0, "gcs_verbal")]
    lines += [(223901, "something else", np.nan, "gcs_motor")]

    def only(frame: pd.DataFrame) -> pd.DataFrame:
        own = frame[frame["stay_id"] == stay].iloc[[20] * len(lines)].copy()  # a row of the window
        own["itemid"], own["value"], own["valuenum"] = [x[0] for x in lines], [x[1] for x in lines], ""
        own["stay_id"] = ""  # belongs to the only stay of its admission
        return own

    rewrite(copy, "icu/chartevents", only)
    table = prepare_mimic4(copy, tmp_path / "out", OPTIONS)
    grid = dict(zip(table.frame["sample_id"], series(table), strict=True))[stay]
    for _, text, wanted, channel in lines:
        found = grid[:, v.CHANNELS.index(channel)]
        np.testing.assert_array_equal(found[np.isfinite(found)], [] if np.isnan(wanted) else [wanted], err_msg=text)


def test_last_ap_film_in_the_window_is_chosen(tmp_path: Path) -> None:
    films = [
        ("a", 1, "AP", "21500101", "213.14"),  # 00:02:13
        ("c", 2, "AP", "21500102", "93015.0"),
        ("b", 2, "AP", "21500102", "93015.0"),  # the same second
        ("d", 3, "LATERAL", "21500102", "100000"),
        ("e", 4, "", "21500102", "100001"),
        ("f", 5, "AP", "21500103", "1.0"),  # the next midnight and a second: after the prediction time
        ("g", 6, "AP", "21491231", "235959"),
    ]
    names = ["dicom_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"]
    path = tmp_path / "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv"
    path.parent.mkdir()
    midnight = pd.Timestamp("2150-01-01")
    stays = pl.DataFrame({"stay_id": [9], "subject_id": [7], "intime": [midnight.to_pydatetime()]}).with_columns(
        prediction_time=pl.col("intime") + pl.duration(hours=48)
    )

    def chosen(count: slice) -> tuple[str, str]:
        pd.DataFrame(films[count], columns=names).assign(subject_id=7).to_csv(path, index=False)
        row = last_films(tmp_path, stays).row(0, named=True)
        return row["dicom_id"], str(row["taken"])

    assert chosen(slice(None)) == ("c", "2150-01-02 09:30:15")
    assert chosen(slice(0, 1)) == ("a", "2150-01-01 00:02:13")


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**OPTIONS, "task": "phenotyping"}, "mortality"),
        ({**OPTIONS, "hours": -1}, "hours"),
        ({**OPTIONS, "bin_hours": 5}, "whole number"),
        ({**OPTIONS, "text": "discharge"}, "text"),
        ({"task": "mortality"}, "hours"),
    ],
)
def test_wrong_options(small: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_mimic4(small, tmp_path / "out", options)


@pytest.mark.parametrize("name", ["hosp/patients", "hosp/admissions", "hosp/labevents", "icu/icustays"])
def test_absent_table_or_column_is_one_clear_error(copy: Path, tmp_path: Path, name: str) -> None:
    rewrite(copy, name, lambda frame: frame.drop(columns="subject_id" if name != "hosp/admissions" else "hadm_id"))
    with pytest.raises(UserError, match=rf"{name}\.csv\.gz lacks the columns \['(subject|hadm)_id'\]"):
        prepare_mimic4(copy, tmp_path / "out", OPTIONS)
    (copy / f"{name}.csv.gz").unlink()
    with pytest.raises(UserError, match=f"{name}.csv"):
        prepare_mimic4(copy, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out/dataset.json").exists()


def test_malformed_truncated_or_empty_tables_are_clear_errors(copy: Path, tmp_path: Path) -> None:
    path = copy / "icu/chartevents.csv.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="chartevents"):
        prepare_mimic4(copy, tmp_path / "out", OPTIONS)
    path.write_bytes(gzip.compress(gzip.decompress(whole).replace(b"220045", b"secret", 1)))
    with pytest.raises(UserError, match="chartevents") as raised:
        prepare_mimic4(copy, tmp_path / "out", OPTIONS)
    assert "secret" not in str(raised.value)  # no content of a record in a message
    path.write_bytes(gzip.compress(gzip.decompress(whole).split(b"\n", 1)[0] + b"\n"))
    rewrite(copy, "hosp/labevents", lambda frame: frame[:0])
    with pytest.raises(UserError, match="No stay"):
        prepare_mimic4(copy, tmp_path / "out", OPTIONS)


def test_a_repeated_stay_is_refused(copy: Path, tmp_path: Path) -> None:
    rewrite(copy, "icu/icustays", lambda frame: pd.concat([frame, frame[:1]]))
    with pytest.raises(UserError, match="repeats or lacks a stay_id"):
        prepare_mimic4(copy, tmp_path / "out", OPTIONS)
