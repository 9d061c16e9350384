"""Series in long form agree with a pivot of pandas in any order; each row is used or counted; mistakes are clear."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cache.errors import UserError
from extract.samples import SamplesTable
from extract.sources import buckets, long_files, long_form
from extract.sources.table import prepare_table

LONG: dict[str, Any] = {
    **{"file": "vitals.csv", "sample": "stay", "time": "t", "variable": "name", "value": "number"},
    **{"unit": "hours", "hours": 6, "combine": "mean"},
}
SPLITS = ("train", "train", "train", "valid", "test")


def random_rows(samples: int = 20, rows: int = 800) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "stay": [f"{i:03d}" for i in random.integers(0, samples, rows)],
            "t": random.integers(0, 59, rows) / 10,
            "name": random.choice(["sbp", "hr", "lactate"], rows),
            "number": random.normal(80, 9, rows).round(2),
        }
    )


def write_raw(root: Path, rows: pd.DataFrame | str, samples: int = 20, **changes: Any) -> Path:
    """Write a table of samples with a note each and one series; `changes` go to the modality or to `long`."""
    root.mkdir(parents=True, exist_ok=True)
    long = {**LONG, **{k: v for k, v in changes.items() if k not in ("channels", "bin_hours", "kind", "column")}}
    series = {"name": "vitals", "kind": "timeseries", "column": "vitals_array", "bin_hours": 1, "long": long}
    series |= {k: v for k, v in changes.items() if k in ("channels", "bin_hours", "kind", "column")}
    modalities = [{"name": "note", "kind": "text", "column": "note_text"}, series]
    declared = {"name": "mine", "label": {"kind": "binary", "names": ["death"]}, "modalities": modalities}
    (root / "dataset.json").write_text(json.dumps(declared))
    lines = [f"{i:03d},{SPLITS[i % 5]},{i % 2},text,2026-01-{i + 1:02d} 12:00" for i in range(samples)]
    (root / "samples.csv").write_text("\n".join(["sample_id,split,label,note_text,admitted", *lines]) + "\n")
    text = rows if isinstance(rows, str) else rows.to_csv(index=False)
    (root / "vitals.csv").write_text(text, encoding="utf-8")
    return root


def grids(table: SamplesTable) -> dict[str, np.ndarray]:
    rows = table.frame[table.frame["vitals_array"].notna()]
    return {row.sample_id: np.reshape(row.vitals_array, row.vitals_shape) for row in rows.itertuples()}


def counted(table: SamplesTable) -> dict[str, int]:
    found: dict[str, int] = table.info.source["measurements"]["vitals"]
    return found


@pytest.mark.parametrize("combine", ["mean", "last"])
def test_agrees_with_a_pivot_by_pandas(tmp_path: Path, combine: str) -> None:
    rows = random_rows()
    table = prepare_table(write_raw(tmp_path / "raw", rows, combine=combine, bin_hours=0.5), tmp_path / "out")
    distinct = rows.drop_duplicates().sort_values(["t", "number"])
    distinct["bin"] = (distinct["t"] * 10).round().astype(int) // 5
    wanted = distinct.pivot_table(index=["stay", "bin"], columns="name", values="number", aggfunc=combine)
    found = grids(table)
    assert set(found) == set(rows["stay"])
    for stay, grid in found.items():
        reference = wanted.loc[stay].reindex(index=range(12), columns=["hr", "lactate", "sbp"])
        np.testing.assert_allclose(grid, reference.to_numpy(), rtol=1e-6)
    assert table.modality("vitals").channels == ("hr", "lactate", "sbp")
    assert counted(table)["used"] == len(distinct)


def test_order_form_and_size_of_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows()
    raw = write_raw(tmp_path / "raw", rows)
    first = prepare_table(raw, tmp_path / "a")
    for module, name in ((long_files, "BLOCK"), (long_files, "BATCH"), (buckets, "FLUSH_ROWS")):
        monkeypatch.setattr(module, name, 512)
    monkeypatch.setattr(long_form, "BUCKET_BYTES", 1000)
    mixed = rows.sample(frac=1, random_state=1)
    second = prepare_table(write_raw(raw, mixed), tmp_path / "b")
    (raw / "vitals.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + mixed.to_csv(index=False).encode()))
    third = prepare_table(write_raw(raw, mixed, file="vitals.csv.gz"), tmp_path / "c")
    mixed.astype({"name": "category"}).to_parquet(raw / "vitals.parquet")
    fourth = prepare_table(write_raw(raw, mixed, file="vitals.parquet"), tmp_path / "d")
    for other in (second, third, fourth):
        assert (other.root / "samples.parquet").read_bytes() == (first.root / "samples.parquet").read_bytes()
        assert counted(other) == counted(first)


ODD = """stay,t,name,number,extra
000,0.5,hr,80,
000,0.5,hr,80,the same
000,0.5,hr,90,
000,6,sbp,120,
000,6.001,sbp,1,
000,-0.1,sbp,1,
000,,sbp,1,
000,soon,sbp,1,
000,inf,sbp,1,
000,1,sbp,,
000,1,sbp,<5,
000,1,sbp,NaN,
000,1,sbp,1e40,
000,1,,1,
unknown,1,sbp,1,
,1,sbp,1,
003,1,troponin,1,
004,1,troponin,1,
004,1,hr,70,
"""
LEFT_OUT = {
    "of no sample of the table": 2,
    "without a variable": 1,
    "without a readable time": 3,
    "with no number as value": 2,
    "with a value NaN, infinite or beyond float32": 2,
    "before the window": 1,
    "after the window": 1,
}


def test_every_row_is_used_or_counted(tmp_path: Path) -> None:
    table = prepare_table(write_raw(tmp_path / "raw", ODD), tmp_path / "out")
    assert counted(table) == {
        **LEFT_OUT, "rows": 19, "used": 4, "repeated": 1, "of a variable that no training sample has": 2
    }  # fmt: skip
    assert table.modality("vitals").channels == ("hr", "sbp")  # troponin: valid and test only
    found = grids(table)
    assert set(found) == {"000", "004"}
    assert found["000"][0, 0] == 85  # the row that is there twice counts once
    assert found["000"][5, 1] == 120  # at the prediction time itself
    assert np.isfinite(found["000"]).sum() == 2
    missing = table.frame[table.frame["vitals_array"].isna()]
    assert set(missing["vitals_missing_reason"]) == {"no_measurement"}
    assert len(missing) == 18


def test_declared_channels_are_taken_as_they_are(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ODD, channels=["troponin", "hr", "crp"], combine="last")
    table = prepare_table(raw, tmp_path / "out")
    assert table.modality("vitals").channels == ("troponin", "hr", "crp")
    assert grids(table)["000"][0].tolist()[1] == 90  # of equal times the larger value is the last
    assert counted(table)["of no declared channel"] == 10
    assert counted(table)["channels without a measurement"] == 1
    assert "003" in grids(table)


def test_the_test_split_changes_nothing_in_training(tmp_path: Path) -> None:
    rows = random_rows()
    first = prepare_table(write_raw(tmp_path / "raw", rows), tmp_path / "a")
    harmed = rows[~rows["stay"].isin(first.ids("test"))]
    more = pd.DataFrame({"stay": first.ids("test"), "t": 1.0, "name": "alien", "number": 1.0})
    second = prepare_table(write_raw(tmp_path / "raw", pd.concat([harmed, more])), tmp_path / "b")
    assert first.modality("vitals") == second.modality("vitals")
    for split in ("train", "valid"):
        pd.testing.assert_frame_equal(first.split(split), second.split(split))


def test_timestamps_count_from_the_samples_start(tmp_path: Path) -> None:
    text = (
        "stay,t,name,number\n000,2026-01-01 12:30,hr,1\n000,2026-01-01T14:00:00.5,hr,2\n000,2026-01-01,hr,3\n"
        "000,2026-01-01 18:00:01,hr,4\n000,2026-01-01 11:59:59,hr,5\n000,2026-01-01T12:00:00Z,hr,6\n"
        "001,2026-01-02 12:00,hr,7\n"
    )
    raw = write_raw(tmp_path / "raw", text, unit=None, start="admitted")
    samples = (raw / "samples.csv").read_text()
    (raw / "samples.csv").write_text(samples.replace("2026-01-02 12:00", ""))
    table = prepare_table(raw, tmp_path / "a")
    np.testing.assert_array_equal(grids(table)["000"].ravel(), [1, np.nan, 2, np.nan, np.nan, np.nan])
    left_out = {"after the window": 1, "before the window": 1, "without a readable time": 2}
    assert counted(table) == {"rows": 7, "used": 2, "of a sample without a start": 1, **left_out}
    stamped = pd.DataFrame({"stay": ["000", "000"], "name": "hr", "number": [1, 2]})
    stamped["t"] = pd.to_datetime(["2026-01-01 12:30:00.0", "2026-01-01 14:00:00.5"])
    stamped.to_parquet(raw / "vitals.parquet")
    starts = pd.read_csv(raw / "samples.csv", dtype={"sample_id": str}, parse_dates=["admitted"])
    raw.joinpath("samples.csv").unlink()
    starts.to_parquet(raw / "samples.parquet")
    declared = raw.joinpath("dataset.json").read_text().replace("vitals.csv", "vitals.parquet")
    raw.joinpath("dataset.json").write_text(declared)
    again = prepare_table(raw, tmp_path / "b")
    np.testing.assert_array_equal(grids(again)["000"], grids(table)["000"])


def test_seconds_on_a_border_belong_to_the_later_bin(tmp_path: Path) -> None:
    rows = pd.DataFrame({"stay": "000", "t": np.arange(600) / 10, "name": "x", "number": np.arange(600.0)})
    window = {"unit": "seconds", "hours": 60 / 3600, "bin_hours": 0.1 / 3600}
    table = prepare_table(write_raw(tmp_path / "raw", rows, **window), tmp_path / "out")
    np.testing.assert_array_equal(grids(table)["000"].ravel(), np.arange(600))


def test_a_finished_table_forgets_the_roles_and_is_copied_as_it_is(tmp_path: Path) -> None:
    first = prepare_table(write_raw(tmp_path / "raw", random_rows()), tmp_path / "first")
    assert {path.name for path in first.root.iterdir()} == {"samples.parquet", "dropped.parquet", "dataset.json"}
    assert first.info.source["long"]["vitals"]["combine"] == "mean"
    second = prepare_table(first.root, tmp_path / "second")
    assert (first.root / "samples.parquet").read_bytes() == (second.root / "samples.parquet").read_bytes()


def test_an_interrupted_run_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_raw(tmp_path / "raw", random_rows())
    wanted = prepare_table(raw, tmp_path / "wanted")
    with monkeypatch.context() as patch:
        patch.setattr(long_form, "_grids", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_table(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(long_files, "read_rows", None)  # the pass that was finished is not made again
    found = prepare_table(raw, tmp_path / "out")
    assert found.digest() == wanted.digest()


GOOD = "stay,t,name,number\n000,1,hr,80\n"
MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no file": (GOOD, {"file": "other.csv"}, r"no .*other.csv.*\"long\""),
    "another form": (GOOD, {"file": "vitals.txt"}, r"one of .csv, .csv.gz, .parquet"),
    "a file outside": (GOOD, {"file": "../vitals.csv"}, "names a file outside"),
    "no column": (GOOD, {"value": "valuenum"}, r"\['valuenum'\] once each; it has \['stay', 't', 'name', 'number'\]"),
    "a column twice": ("stay,t,name,number,t\n000,1,hr,80,2\n", {}, r"\['t'\] once each"),
    "one column for two roles": (GOOD, {"value": "t"}, "must be four columns"),
    "an empty file": ("", {}, "cannot be read to its end"),
    "a header alone": ("stay,t,name,number\n", {}, "none of its 0 rows"),
    "rows of other lengths": (GOOD + "000,1,hr\n", {}, "as many cells"),
    "decimal commas": ('stay,t,name,number\n000,1,hr,"8,5"\n', {}, "with no number as value: 1"),
    "no known sample": (GOOD.replace("000", "0"), {}, "of no sample of the table: 1.*docs/samples.md"),
    "timestamps as numbers": (GOOD.replace(",1,", ",2026-01-01 12:00,"), {}, "without a readable time: 1"),
    "no training sample": (GOOD.replace("000", "004"), {}, 'channels are unknown. Declare "channels"'),
    "no unit and no start": (GOOD, {"unit": None}, "one of unit .*seconds.* and start"),
    "an unknown unit": (GOOD, {"unit": "weeks"}, "unit: Input should be 'seconds'"),
    "an unknown start": (GOOD, {"unit": None, "start": "birth"}, "no column 'birth'.*'admitted'"),
    "a start in words": (
        GOOD,
        {"unit": None, "start": "note_text"},
        "20 cells of column 'note_text' are no time",
    ),
    "an unknown key": (GOOD, {"bins": 3}, "bins: Extra inputs"),
    "no window": (GOOD, {"hours": 0}, "hours: Input should be greater than 0"),
    "a window of half a bin": (GOOD, {"hours": 2.5}, "not a whole number of bin_hours"),
    "no width": (GOOD, {"bin_hours": None}, "bin_hours above 0"),
    "another kind": (GOOD, {"kind": "text", "column": "vitals_text"}, "long needs kind timeseries"),
    "another way": (GOOD, {"combine": "median"}, "combine: Input should be 'last' or 'mean'"),
    "a channel twice": (GOOD, {"channels": ["hr", "hr"]}, "channels must be unique"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_clear_error(tmp_path: Path, mistake: str) -> None:
    text, changes, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as error:
        prepare_table(write_raw(tmp_path / "raw", text, **changes), tmp_path / "out")
    assert "000" not in str(error.value)  # no sample id
    assert not (tmp_path / "out").exists()


TYPES: dict[str, tuple[str, Any, str]] = {
    "ids": ("stay", [0.5], "'stay' is of type Float64; it must hold text or whole numbers"),
    "values": ("number", pd.to_datetime(["2026-01-01"]), "'number' is of type Datetime.*must hold numbers"),
    "times": ("t", pd.to_datetime(["2026-01-01"]), '"start" instead of "unit"'),
    "zones": ("t", pd.to_datetime(["2026-01-01"], utc=True), '"start" instead of "unit"'),
}


@pytest.mark.parametrize("wrong", TYPES)
def test_a_column_of_a_wrong_type_is_refused(tmp_path: Path, wrong: str) -> None:
    column, cells, message = TYPES[wrong]
    raw = write_raw(tmp_path / "raw", GOOD, file="vitals.parquet")
    rows = pd.DataFrame({"stay": ["000"], "t": [1.0], "name": ["hr"], "number": [80.0]})
    rows[column] = cells
    rows.to_parquet(raw / "vitals.parquet")
    with pytest.raises(UserError, match=message):
        prepare_table(raw, tmp_path / "out")


@pytest.mark.parametrize("file", ["vitals.csv", "vitals.csv.gz", "vitals.parquet"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, file: str) -> None:
    raw = write_raw(tmp_path / "raw", GOOD, file=file)
    (raw / file).write_bytes(b"stay,t,name,number\n000,1,\xff,80\n")
    with pytest.raises(UserError, match=r"cannot be read to its end.*run the same command again"):
        prepare_table(raw, tmp_path / "out")


def test_the_samples_file_may_not_hold_the_series_as_well(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", GOOD)
    samples = pd.read_csv(raw / "samples.csv", dtype=str).rename(columns={"admitted": "vitals_array"})
    samples.assign(vitals_array="[1]").to_csv(raw / "samples.csv", index=False)
    with pytest.raises(UserError, match=r"has the columns \['vitals_array'\]"):
        prepare_table(raw, tmp_path / "out")
