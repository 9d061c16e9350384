"""Single rules of the MIMIC-IV preparation: units, ranges, codes, MedFuse's columns, csv blocks, split lists."""

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cache.errors import UserError
from extract.sources.mimic4 import tables
from extract.sources.mimic4 import variables as v
from extract.sources.mimic4.cleaning import clean, clean_as_published
from extract.sources.mimic4.options import parse_options
from extract.sources.mimic4.phenotypes import CODES, PHENOTYPES, PhenotypeCodes
from extract.sources.mimic4.series import column_names, discretise, standardise
from extract.sources.mimic4.subjects import assign_splits
from pipelines.simulate.icu.codes import GROUPS

PLACES = {**v.chart_places(paper=False), **v.lab_places(paper=False)}


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
        (220045, np.inf, np.nan),
        (220210, 7_000_400.0, np.nan),
        (50820, 9.0, 8.4),
        (50820, np.nan, np.nan),
    ],
)
def test_units_and_ranges(item: int, number: float, wanted: float) -> None:
    counts = Counter[str]()
    found = clean(np.array([item]), np.array([PLACES[item]]), np.array([number]), counts)
    np.testing.assert_allclose(found, [wanted], rtol=1e-6)
    assert sum(counts.values()) == (np.isnan(wanted) or number in (0.205, 140.0, 370.0, 9.0))


@pytest.mark.parametrize(
    ("item", "number", "wanted"),
    [
        (226707, 67.0, 67.0),  # inches taken for centimetres
        (223835, 0.4, 0.004),
        (223835, 40.0, 0.4),
        (223761, 98.6, 37.0),
        (223761, 78.0, 78.0),  # below the size by which Fahrenheit is recognised
        (226531, 180.0, 81.64656),
        (220045, 1e7, 1e7),  # no range is applied
        (220277, 0.97, 97.0),
    ],
)
def test_units_as_medfuse_has_them(item: int, number: float, wanted: float) -> None:
    found = clean_as_published(np.array([item]), np.array([PLACES[item]]), np.array([number]), Counter())
    np.testing.assert_allclose(found, [wanted], rtol=1e-6)


def test_other_fluids_belong_to_the_paper_only() -> None:
    urine = {51478, 51491, 51094, 50831}
    assert urine.isdisjoint(v.lab_places(paper=False))
    assert urine <= set(v.lab_places(paper=True))


# --- phenotypes ----------------------------------------------------------------------------------------------------


def test_codes_of_each_group_as_published() -> None:
    """ICD-9 codes per group of HCUP's CCS 2015, and distinct ICD-10 codes of MedFuse's list."""
    counts = "157:6:6 109:25:20 100:40:6 106:13:12 158:19:15 127:15:11 238:145:119 105:28:22 108:16:15 101:20:16 "
    counts += "50:57:35 49:12:10 53:5:5 98:2:2 55:15:13 153:40:25 99:38:11 151:24:21 133:62:56 134:60:49 130:17:15 "
    counts += "122:62:47 131:16:11 2:26:24 249:4:4"
    with CODES.open(newline="") as stream:
        rows = Counter((int(row["ccs"]), row["map"]) for row in csv.DictReader(stream))
    for line in counts.split():
        group, nine, ten = map(int, line.split(":"))
        assert (rows[group, "all"], rows[group, "medfuse"]) == (nine, ten), PHENOTYPES[group]
    assert len(PHENOTYPES) == 25
    assert Counter(kind for _, kind in PHENOTYPES.values()) == {"acute": 13, "chronic": 7, "mixed": 5}


@pytest.mark.parametrize("group", GROUPS)
def test_example_codes_of_each_group(group: int) -> None:
    _, nine, listed, unlisted = GROUPS[group]
    fixed, paper = PhenotypeCodes(paper=False), PhenotypeCodes(paper=True)
    assert fixed.of(nine, 9) == fixed.of(listed, 10) == paper.of(nine, 9) == paper.of(listed, 10) == {group}
    if unlisted:
        assert (fixed.of(unlisted, 10), paper.of(unlisted, 10)) == ({group}, set())


@pytest.mark.parametrize(
    ("code", "version", "groups"),
    [
        ("I4811", 10, {106}),  # newer than the table: its longest known prefix
        ("N1830", 10, {158}),
        ("E8720", 10, {55}),
        ("U071", 10, set()),
        ("I", 10, set()),
        ("", 10, set()),
        ("N179  ", 10, {157}),
        ("n17.9", 10, {157}),
        ("41071", 10, set()),  # of the other version
        ("I214", 9, set()),
        ("5849", None, set()),
    ],
)
def test_codes_that_are_odd(code: str, version: int | None, groups: set[int]) -> None:
    assert PhenotypeCodes(paper=False).of(code, version) == groups


# --- MedFuse's columns ---------------------------------------------------------------------------------------------


def test_seventy_six_columns_in_medfuses_order() -> None:
    names = column_names()
    assert len(names) == 76
    assert [names.index(name) for name in ("diastolic_bp", "fio2", "glucose", "ph")] == [2, 3, 49, 58]
    assert names[59] == "mask of capillary_refill"


def test_unobserved_cells_take_the_value_before_else_a_usual_one() -> None:
    grid = np.full((3, 17), np.nan, np.float32)
    ranks = v.category_ranks()
    grid[1, v.PLACE["heart_rate"]] = 100
    grid[1, v.PLACE["gcs_eye"]] = ranks["220739:To Pain"]
    dense, names = discretise(grid), column_names()
    assert dense[:, names.index("heart_rate")].tolist() == [86, 100, 100]
    eye = [names[i] for row in dense[:, 4:12] for i in np.flatnonzero(row) + 4]
    assert eye == ["gcs_eye=4 Spontaneously", "gcs_eye=To Pain", "gcs_eye=To Pain"]
    assert (dense[:, 4:12].sum(1) == 1).all()
    assert np.argwhere(dense[:, 59:]).tolist() == [[1, 3], [1, 8]]  # masks are those before filling
    assert dense[:, names.index("gcs_total=15")].all()


def test_numbers_are_standardised_over_the_training_stays_alone() -> None:
    random = np.random.default_rng(0)
    raw = {stay: discretise(random.normal(50, 9, (5, 17)).astype(np.float32)) for stay in range(4)}
    dense = {stay: grid.copy() for stay, grid in raw.items()}
    moments = standardise(dense, {0, 1, 2})
    place = column_names().index("heart_rate")
    train = np.concatenate([raw[stay][:, place] for stay in (0, 1, 2)]).astype(float)
    np.testing.assert_allclose(moments["heart_rate"], (train.mean(), train.std(ddof=1)), rtol=1e-6)
    np.testing.assert_allclose(dense[3][:, place], (raw[3][:, place] - train.mean()) / train.std(ddof=1), rtol=1e-4)
    np.testing.assert_array_equal(dense[3][:, 4:49], raw[3][:, 4:49])  # one-hot columns stay


# --- csv in blocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("end", ["", "\n"])
def test_blocks_give_the_rows_of_one_read_whatever_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, end: str
) -> None:
    rows = ['1,"a\nb ""q"", c",x', "2,,y", '3,"""",z', '4,"\n\n",é', "5,plain,w"]
    content = "a,text,b\n" + "\n".join(rows) + end
    (tmp_path / "t.csv").write_text(content)
    halves = content.encode()[:25], content.encode()[25:]
    (tmp_path / "t.csv.gz").write_bytes(b"".join(gzip.compress(half) for half in halves))  # two gzip members
    wanted = pl.read_csv(content.encode(), schema_overrides={"a": pl.Int64}).select("text", "a")
    assert len(wanted) == 5
    monkeypatch.setattr(tables, "BLOCK", block)
    for name in ("t.csv", "t.csv.gz"):
        found = pl.concat(tables.read_blocks(tmp_path / name, {"text": pl.String, "a": pl.Int64}))
        assert found.equals(wanted)


# --- options and lists ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "readmission"}, "mortality"),
        ({"mode": "strict"}, "fixed"),
        ({"hours": -1}, "hours"),
        ({"hours": None}, "whole stay"),
        ({"bin_hours": 5}, "whole number"),
        ({"test_share": 0.9}, "nothing to train on"),
        ({"image_size": 3}, "image_size"),
    ],
)
def test_wrong_options(icu_options: dict, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_options({**icu_options, **change})


@pytest.mark.parametrize("content", ["subject_id,is_test\n1,1\n2,0\n3,0\n", "1,1\n2,0\n3,0.0\n", "subject_id\n1\n"])
def test_lists_with_and_without_flags_and_header(icu_options: dict, tmp_path: Path, content: str) -> None:
    (tmp_path / "test.csv").write_text(content)
    options = parse_options({**icu_options, "mode": "paper", "test_subjects": tmp_path / "test.csv"})
    assert assign_splits(["1", "2", "9"], options, Counter()) == ["test", "train", "train"]


def test_hash_shares_and_errors_of_lists(icu_options: dict, tmp_path: Path) -> None:
    options = parse_options({**icu_options, "valid_share": 0.08, "test_share": 0.2})
    found = Counter(assign_splits([str(i) for i in range(20_000)], options, Counter()))
    assert found["test"] / 20_000 == pytest.approx(0.2, abs=0.01)
    assert found["valid"] / 20_000 == pytest.approx(0.08, abs=0.01)
    (tmp_path / "list.csv").write_text("1\n")
    (tmp_path / "empty.csv").write_text("subject_id\n")
    both = {"test_subjects": tmp_path / "list.csv", "valid_subjects": tmp_path / "list.csv"}
    for change, message in (
        (both, "in both"),
        ({"test_subjects": tmp_path / "empty.csv"}, "lists no subject"),
        ({"test_subjects": tmp_path / "absent.csv"}, "no list of subject ids"),
    ):
        with pytest.raises(UserError, match=message):
            assign_splits(["1"], parse_options({**icu_options, **change}), Counter())
