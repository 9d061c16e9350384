"""PhysioNet 2012: a hand-made set gives the expected table; damaged input gives one clear error; real counts."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cache.errors import UserError
from extract.samples import SamplesTable
from extract.sources.physionet2012 import BLOCKS, prepare_physionet2012
from extract.sources.series import bin_series
from extract.values import TimeSeries, read_value

OPTIONS: dict[str, Any] = {
    **{"train_sets": ["a"], "test_sets": ["b"], "valid_share": 0.25, "split_seed": 0, "hours": 4, "bin_hours": 2}
}
ADMISSION = ["00:00,RecordID,{id}", "00:00,Age,54", "00:00,Gender,0", "00:00,Height,-1", "00:00,ICUType,4"]
HEART = "00:07,HR,73"


def stay(record: int, *lines: str) -> str:
    return "\n".join(["Time,Parameter,Value", *(line.format(id=record) for line in ADMISSION), *lines]) + "\n"


def write_set(raw: Path, letter: str, stays: dict[int, str], archive: bool = True, deaths: int = 0) -> None:
    """Write a set and its outcomes; the first `deaths` stays die."""
    rows = [f"{record},6,1,5,-1,{int(place < deaths)}" for place, record in enumerate(stays)]
    header = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
    (raw / f"Outcomes-{letter}.txt").write_text("\n".join([header, *rows]) + "\n")
    if not archive:
        (raw / f"set-{letter}").mkdir(exist_ok=True)
        for record, text in stays.items():
            (raw / f"set-{letter}" / f"{record}.txt").write_text(text)
        return
    with tarfile.open(raw / f"set-{letter}.tar.gz", "w:gz") as tar:
        folder = tarfile.TarInfo(f"set-{letter}")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for record, text in stays.items():
            member = tarfile.TarInfo(f"set-{letter}/{record}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))


def prepare(raw: Path, lines: tuple[str, ...] = (HEART,), **options: Any) -> SamplesTable:
    """Prepare one training stay with these lines, and seven plain ones."""
    write_set(raw, "a", {1: stay(1, *lines), **{n: stay(n, HEART) for n in range(2, 6)}}, deaths=0)
    write_set(raw, "b", {n: stay(n, HEART) for n in range(6, 9)}, archive=False)
    return prepare_physionet2012(raw, raw / "out", {**OPTIONS, **options})


def values(table: SamplesTable, modality: str, record: str = "1") -> np.ndarray | None:
    row = table.frame.set_index("sample_id").loc[record]
    value = read_value(table, row, modality)
    assert value is None or isinstance(value, TimeSeries)
    return None if value is None else value.values


def test_bins_the_last_value_and_marks_the_rest_unobserved(tmp_path: Path) -> None:
    table = prepare(tmp_path, ("00:07,HR,73", "01:59,HR,80", "02:00,HR,90", "03:00,Mg,1.5", "04:00,HR,95"))
    expected = np.full((2, len(BLOCKS["vitals"])), np.nan, np.float32)
    names = BLOCKS["vitals"]
    expected[:, names.index("HR")] = [80, 95]
    for name, value in (("Age", 54), ("Gender", 0), ("ICUType", 4)):
        expected[0, names.index(name)] = value
    np.testing.assert_array_equal(values(table, "vitals"), expected)
    labs = values(table, "labs")
    assert labs is not None
    assert np.argwhere(np.isfinite(labs)).tolist() == [[1, BLOCKS["labs"].index("Mg")]]
    assert values(table, "gas") is None
    assert values(table, "cardiac") is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("01:00,,5", "blank parameter"),
        ("01:00,Temp,-17.8", "negative value"),
        ("05:00,HR,70", "after the window"),
        ("01:00,Sodium,140", "unknown parameter"),
    ],
)
def test_lines_that_do_not_count_are_left_out_and_counted(tmp_path: Path, line: str, reason: str) -> None:
    table = prepare(tmp_path, (line, "01:00,pH,7.4"))
    left_out = table.info.source["lines_left_out"]
    assert left_out == {"negative value": 8, reason: 9 if reason == "negative value" else 1}  # 8 unknown heights
    assert values(table, "vitals") is None  # age, gender and unit alone
    assert values(table, "gas") is not None


def test_a_stay_without_measurement_is_dropped_with_a_reason(tmp_path: Path) -> None:
    table = prepare(tmp_path, ("00:00,Weight,80",))  # the weight on admission is no measurement
    dropped = pd.read_parquet(tmp_path / "out" / "dropped.parquet")
    assert dropped.values.tolist() == [["1", "measurement", "no measurement in the window"]]
    assert [(c.kept, c.dropped) for c in table.info.counts] == [(8, 0), (7, 1)]
    assert "1" not in set(table.frame["sample_id"])


def test_a_later_weight_is_a_measurement(tmp_path: Path) -> None:
    vitals = values(prepare(tmp_path, ("00:00,Weight,80", "03:00,Weight,81")), "vitals")
    assert vitals is not None
    assert vitals[:, BLOCKS["vitals"].index("Weight")].tolist() == [80, 81]


def test_splits_are_stratified_seeded_and_by_set(tmp_path: Path) -> None:
    write_set(tmp_path, "a", {n: stay(n, HEART) for n in range(100, 140)}, deaths=8)
    write_set(tmp_path, "b", {n: stay(n, HEART) for n in range(200, 210)}, deaths=3)
    tables = [prepare_physionet2012(tmp_path, tmp_path / str(k), {**OPTIONS, "split_seed": k % 2}) for k in range(3)]
    for table in tables:
        assert {s: len(table.split(s)) for s in ("train", "valid", "test")} == {"train": 30, "valid": 10, "test": 10}
        assert table.labels("valid").sum() == 2
        assert table.labels("test").sum() == 3
        assert set(table.ids("test")) == {str(n) for n in range(200, 210)}
    assert tables[0].ids("valid") == tables[2].ids("valid")
    assert tables[0].ids("valid") != tables[1].ids("valid")


def test_archive_and_folder_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for archive in (True, False, False):
        raw = tmp_path / f"raw{archive}"
        raw.mkdir(exist_ok=True)
        for letter, records in (("a", range(1, 9)), ("b", range(9, 12))):
            write_set(raw, letter, {n: stay(n, HEART, f"01:00,Na,{130 + n}") for n in records}, archive)
        prepare_physionet2012(raw, raw / "out", OPTIONS)
        contents.append([(raw / "out" / name).read_bytes() for name in ("samples.parquet", "dataset.json")])
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid_share": 1.0}, "valid_share"),
        ({"hours": 3}, "whole number of bin_hours"),
        ({"hours": 49}, "hours"),
        ({"test_sets": ["a"]}, "name a set twice"),
        ({"train_sets": ["../a"]}, "train_sets"),
        ({"train_sets": "a"}, "train_sets"),
        ({"seed": 1}, "seed"),
        ({"test_sets": ["c"]}, "Outcomes-c.txt"),
    ],
)
def test_bad_options_give_one_clear_error(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, **options)
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize("line", ["01:00,HR", "01:00,HR,high", "an hour,HR,70", "01:00,HR,70,70"])
def test_a_line_in_another_form_is_an_error_without_its_content(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match="A file of set-a is not in the form") as caught:
        prepare(tmp_path, (line,))
    assert line not in str(caught.value)


def test_damaged_archives_are_errors(tmp_path: Path) -> None:
    prepare(tmp_path)
    archive = tmp_path / "set-a.tar.gz"
    whole = archive.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in (b"", b"no archive", whole[: len(whole) // 2], bytes(damaged)):
        archive.write_bytes(content)
        with pytest.raises(UserError, match="Download"):
            prepare_physionet2012(tmp_path, tmp_path / "out", OPTIONS)


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "9.txt").write_text(stay(9, HEART))
    with tarfile.open(tmp_path / "set-a.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("set-a/1.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "9.txt")
        tar.addfile(link)
    with pytest.raises(UserError, match="5 of the 5 stays"):
        prepare_physionet2012(tmp_path, tmp_path / "out", OPTIONS)


def test_stays_and_outcomes_must_match(tmp_path: Path) -> None:
    prepare(tmp_path)
    path = tmp_path / "Outcomes-b.txt"
    whole = path.read_text()
    for content, message in (
        (whole.replace("6,6,", "66,6,"), "no row in Outcomes-b"),
        (whole + "9,6,1,5,-1,0\n", "1 of the 4 stays"),
        (whole + "8,6,1,5,-1,0\n", "repeats a record"),
        (whole.replace("In-hospital_death", "death"), "In-hospital_death"),
        ("", "Download"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            prepare_physionet2012(tmp_path, tmp_path / "out", OPTIONS)


def test_bin_series_does_not_depend_on_the_order_of_measurements() -> None:
    draw = np.random.default_rng(0)
    hours, channel, value = draw.integers(0, 9, 60) / 2, draw.integers(0, 3, 60), draw.normal(size=60)
    reference = bin_series(hours, channel, value, 3, 4, 1.0)
    shuffled = draw.permutation(60)
    np.testing.assert_array_equal(bin_series(hours[shuffled], channel[shuffled], value[shuffled], 3, 4, 1.0), reference)
    assert reference.dtype == np.float32
    assert np.isnan(bin_series(np.array([-0.5, 4.5]), np.array([0, 0]), np.ones(2), 3, 4, 1.0)).all()


@pytest.mark.slow
def test_counts_and_shares_of_the_real_sets(tmp_path: Path) -> None:
    """4,000 stays a set, 3 + 7 empty, 14 % deaths, chemistry and vitals in .985 of the stays."""
    shared = Path(os.environ.get("SELFMASK_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    raw = shared / "physionet2012"
    if not (raw / "set-b.tar.gz").is_file():
        pytest.skip("the PhysioNet 2012 data are not here; set SELFMASK_SHARED_DATA to their folder")
    table = prepare_physionet2012(raw, tmp_path, {**OPTIONS, "hours": 48, "bin_hours": 1, "valid_share": 0.2})
    assert {s: len(table.split(s)) for s in ("train", "valid", "test")} == {"train": 3197, "valid": 800, "test": 3993}
    np.testing.assert_allclose(table.observed("test").mean(0), [0.9855, 0.988, 0.836, 0.633], atol=1e-3)
    for split in ("train", "valid", "test"):
        assert abs(table.labels(split).mean() - 0.142) < 0.005
