"""MIMIC-IV preparation: releases, layouts, order of rows, interruptions, absent and damaged files."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from cache.errors import UserError
from extract.samples import SamplesTable
from extract.sources import buckets
from extract.sources.mimic4 import events, prepare, tables
from extract.sources.mimic4.layout import open_layout
from extract.sources.mimic4.prepare import prepare_mimic4
from pipelines.simulate.icu.cohort import simulate_icu

ROOT = Path(__file__).parents[2]
FILMS = shutil.ignore_patterns("mimic-cxr*")


@pytest.fixture
def copy(icu_raw: Path, tmp_path: Path) -> Path:
    """A copy whose tables a test may change; without films, which most tests do not need."""
    shutil.copytree(icu_raw, tmp_path / "raw", ignore=FILMS)
    return tmp_path / "raw"


def rewrite(raw: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = raw / f"{name}.csv.gz"
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def series(table: SamplesTable) -> dict[str, np.ndarray]:
    rows = zip(table.frame["sample_id"], table.frame["ehr_array"], table.frame["ehr_shape"], strict=True)
    return {name: np.reshape(values, shape) for name, values, shape in rows}


# --- releases and invariance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "plain", "found"), [("1.0", True, "1.0"), ("2.0", False, "2.0 or 2.1"), ("3.1", False, "3.x")]
)
def test_every_release_gives_the_same_table(
    icu_raw: Path, icu_options: dict, tmp_path: Path, release: str, plain: bool, found: str
) -> None:
    simulate_icu(tmp_path / "raw", 24, 0, release, plain=plain)  # type: ignore[arg-type]
    wanted = prepare_mimic4(icu_raw, tmp_path / "a", icu_options)
    table = prepare_mimic4(tmp_path / "raw", tmp_path / "b", icu_options)
    assert (wanted.info.source["version"], table.info.source["version"]) == ("2.2", found)
    pd.testing.assert_frame_equal(table.frame, wanted.frame)


def test_again_shuffled_and_cut_into_small_blocks_give_the_same_bytes(
    icu_raw: Path, icu_options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = tmp_path / "shuffled"
    shutil.copytree(icu_raw, shuffled)
    for path in sorted(shuffled.rglob("*.csv.gz")):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False).sample(frac=1, random_state=0)
        frame.to_csv(path.with_suffix(""), index=False)
        path.write_bytes(gzip.compress(b"ignored,where,there,is,a,csv\n"))
    for source, out in ((icu_raw, "a"), (icu_raw, "a"), (shuffled, "b")):
        prepare_mimic4(source, tmp_path / out, icu_options)
    monkeypatch.setattr(tables, "BLOCK", 1 << 15)
    monkeypatch.setattr(buckets, "FLUSH_ROWS", 500)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    prepare_mimic4(icu_raw, tmp_path / "c", icu_options)
    assert content(tmp_path / "a") == content(tmp_path / "b") == content(tmp_path / "c")


@pytest.mark.slow
def test_the_number_of_threads_changes_nothing(icu_raw: Path, icu_options: dict, tmp_path: Path) -> None:
    call = "import json, sys; from pathlib import Path; from extract.sources.mimic4.prepare import prepare_mimic4; "
    call += "prepare_mimic4(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))"
    for threads in ("1", "3"):
        line = [sys.executable, "-c", call, icu_raw, tmp_path / threads, json.dumps(icu_options)]
        subprocess.run(line, check=True, env={**os.environ, "POLARS_MAX_THREADS": threads, "PYTHONPATH": str(ROOT)})
    assert content(tmp_path / "1") == content(tmp_path / "3")


def test_downloads_as_they_unpack_are_found(icu_raw: Path, icu_options: dict, tmp_path: Path) -> None:
    files = tmp_path / "physionet.org/files"
    for old, new in (("hosp", "mimiciv/2.2/hosp"), ("icu", "mimiciv/2.2/icu"), ("note", "mimic-iv-note/2.2/note")):
        shutil.copytree(icu_raw / old, files / new)
    shutil.copytree(icu_raw / "mimic-cxr-jpg", files / "mimic-cxr-jpg/2.0.0")
    table = prepare_mimic4(tmp_path / "physionet.org", tmp_path / "out", icu_options)
    assert table.frame["cxr_path"].notna().any()
    assert table.frame["txt_text"].notna().any()
    shutil.copytree(icu_raw / "icu", files / "mimiciv/3.1/icu")
    with pytest.raises(UserError, match=r"holds MIMIC-IV 2 times: .*2\.2, .*3\.1"):
        open_layout(files)


def test_without_notes_and_films_as_the_open_demo_both_are_missing(
    copy: Path, icu_options: dict, tmp_path: Path
) -> None:
    shutil.rmtree(copy / "note")
    for mode in ("fixed", "paper"):
        table = prepare_mimic4(copy, tmp_path / mode, {**icu_options, "mode": mode})
        assert table.frame["cxr_path"].isna().all()
        assert table.frame["txt_text"].isna().all()
        assert set(table.frame["cxr_missing_reason"]) == set(table.frame["txt_missing_reason"]) == {"not_in_source"}


def test_events_after_the_window_change_nothing(copy: Path, icu_options: dict, tmp_path: Path) -> None:
    before = series(prepare_mimic4(copy, tmp_path / "before", icu_options))
    intime = pd.read_csv(copy / "icu/icustays.csv.gz", parse_dates=["intime"]).set_index("stay_id")["intime"]

    def spoil(frame: pd.DataFrame) -> pd.DataFrame:
        start = pd.to_numeric(frame["stay_id"]).map(intime)
        late = pd.to_datetime(frame["charttime"]) > start + pd.Timedelta(hours=48)
        assert late.any()
        frame.loc[late, ["value", "valuenum"]] = "5"
        return frame

    rewrite(copy, "icu/chartevents", spoil)
    after = series(prepare_mimic4(copy, tmp_path / "after", icu_options))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_windows_and_bins(copy: Path, icu_options: dict, tmp_path: Path) -> None:
    table = prepare_mimic4(copy, tmp_path / "out", {**icu_options, "hours": 24, "bin_hours": 2})
    assert {tuple(shape) for shape in table.frame["ehr_shape"]} == {(12, 17)}
    whole = prepare_mimic4(copy, tmp_path / "whole", {**icu_options, "task": "phenotyping", "hours": None})
    cut = prepare_mimic4(copy, tmp_path / "cut", {**icu_options, "task": "phenotyping", "hours": 48})
    first = {name: grid[:48] for name, grid in series(whole).items()}
    assert max(len(grid) for grid in series(whole).values()) == 200
    assert {len(grid) for grid in series(cut).values()} == {48}
    assert first.keys() == series(cut).keys()


# --- interruptions -------------------------------------------------------------------------------------------------


def test_a_finished_pass_is_not_made_again_and_a_changed_file_is(
    copy: Path, icu_options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = prepare_mimic4(copy, tmp_path / "wanted", icu_options)
    read: list[str] = []
    blocks = events.read_blocks

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    def counted(path: Path, columns: tables.Types) -> object:
        read.append(path.name)
        return blocks(path, columns)

    monkeypatch.setattr(events, "read_blocks", counted)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "find_texts", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_mimic4(copy, tmp_path / "out", icu_options)
    assert not (tmp_path / "out/dataset.json").exists()
    rewrite(copy, "hosp/labevents", lambda frame: frame[::-1])
    again = prepare_mimic4(copy, tmp_path / "out", icu_options)
    assert read == ["chartevents.csv.gz", "labevents.csv.gz", "labevents.csv.gz"]
    assert content(tmp_path / "out") == content(tmp_path / "wanted")
    assert again.info == wanted.info


def test_films_of_an_interrupted_run_in_the_other_mode_are_not_taken(
    icu_raw: Path, icu_options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "publish_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_mimic4(icu_raw, tmp_path / "out", icu_options)
    for out in ("out", "wanted"):
        prepare_mimic4(icu_raw, tmp_path / out, {**icu_options, "mode": "paper"})
    assert content(tmp_path / "out") == content(tmp_path / "wanted")


def test_an_interruption_within_a_pass_leaves_nothing_that_counts(
    copy: Path, icu_options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, calls = tables._parse, []

    def failing(block: bytes, columns: tables.Types) -> pl.DataFrame:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return parse(block, columns)

    with monkeypatch.context() as patch:
        patch.setattr(tables, "BLOCK", 1 << 15)
        patch.setattr(tables, "_parse", failing)
        with pytest.raises(KeyboardInterrupt):
            prepare_mimic4(copy, tmp_path / "out", icu_options)
    assert len(calls) == 20
    prepare_mimic4(copy, tmp_path / "out", icu_options)
    prepare_mimic4(copy, tmp_path / "wanted", icu_options)
    assert content(tmp_path / "out") == content(tmp_path / "wanted")


def test_a_full_disk_is_one_clear_error(
    copy: Path, icu_options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(buckets, "publish_folder", full)
    with pytest.raises(UserError, match=r"No space is left where .* Free disk space and run the same command again"):
        prepare_mimic4(copy, tmp_path / "out", icu_options)
    assert not (tmp_path / "out").exists()


# --- absent and damaged files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hosp/patients", "hosp/admissions", "hosp/labevents", "hosp/diagnoses_icd", "icu/chartevents"]
)
def test_an_absent_table_or_column_is_one_clear_error(copy: Path, icu_options: dict, tmp_path: Path, name: str) -> None:
    options = {**icu_options, "task": "phenotyping"}
    column = "subject_id" if name in ("hosp/patients", "hosp/labevents") else "hadm_id"
    rewrite(copy, name, lambda frame: frame.drop(columns=column))
    with pytest.raises(UserError, match=rf"{name}\.csv\.gz lacks the columns \['{column}'\]"):
        prepare_mimic4(copy, tmp_path / "out", options)
    (copy / f"{name}.csv.gz").unlink()
    with pytest.raises(UserError, match=f"There is no .*{name}.csv or .csv.gz"):
        prepare_mimic4(copy, tmp_path / "out", options)
    assert not (tmp_path / "out/dataset.json").exists()


def test_what_is_no_mimic4_is_said(copy: Path, icu_options: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        prepare_mimic4(tmp_path / "absent", tmp_path / "out", icu_options)
    (tmp_path / "old").mkdir()
    with pytest.raises(UserError, match=r"no icu/icustays.* hosp/ and icu/"):
        open_layout(tmp_path / "old")
    (tmp_path / "old/ICUSTAYS.csv.gz").touch()
    with pytest.raises(UserError, match="looks like MIMIC-III"):
        open_layout(tmp_path / "old")
    rewrite(copy, "icu/icustays", lambda frame: frame.rename(columns={"stay_id": "icustay_id"}))
    with pytest.raises(UserError, match="has no stay_id: not MIMIC-IV"):
        open_layout(copy)


def test_malformed_truncated_or_empty_tables_are_clear_errors(copy: Path, icu_options: dict, tmp_path: Path) -> None:
    path = copy / "icu/chartevents.csv.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"chartevents.* cannot be read to its end"):
        prepare_mimic4(copy, tmp_path / "out", icu_options)
    path.write_bytes(gzip.compress(gzip.decompress(whole).replace(b"220045", b"secret", 1)))
    with pytest.raises(UserError, match="chartevents") as raised:
        prepare_mimic4(copy, tmp_path / "out", icu_options)
    assert "secret" not in str(raised.value)  # no content of a record in a message
    path.write_bytes(gzip.compress(gzip.decompress(whole).split(b"\n", 1)[0] + b"\n"))
    rewrite(copy, "hosp/labevents", lambda frame: frame[:0])
    with pytest.raises(UserError, match="No stay"):
        prepare_mimic4(copy, tmp_path / "out", icu_options)


def test_repeated_stays_and_unknown_flags_are_refused(copy: Path, icu_options: dict, tmp_path: Path) -> None:
    rewrite(copy, "icu/icustays", lambda frame: pd.concat([frame, frame[:1]]))
    with pytest.raises(UserError, match="repeats or lacks a stay_id"):
        prepare_mimic4(copy, tmp_path / "out", icu_options)
    rewrite(copy, "icu/icustays", lambda frame: frame[:-1])
    rewrite(copy, "hosp/admissions", lambda frame: frame.assign(hospital_expire_flag=""))
    with pytest.raises(UserError, match="has no hospital_expire_flag of 0 or 1"):
        prepare_mimic4(copy, tmp_path / "out", icu_options)


def test_chest_examinations_need_the_table_that_names_them(copy: Path, icu_options: dict, tmp_path: Path) -> None:
    (copy / "note/radiology_detail.csv.gz").unlink()
    with pytest.raises(UserError, match=r"radiology_detail.* or set exams: all"):
        prepare_mimic4(copy, tmp_path / "out", icu_options)
    table = prepare_mimic4(copy, tmp_path / "out", {**icu_options, "exams": "all"})
    assert table.frame["txt_text"].str.contains("CT HEAD").any()
