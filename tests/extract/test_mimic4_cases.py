"""MIMIC-IV preparation against the simulator's plan: every odd stay, in both tasks and both modes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from extract.samples import SamplesTable, label_columns
from extract.sources.mimic4.phenotypes import PHENOTYPES
from extract.sources.mimic4.prepare import prepare_mimic4
from pipelines.simulate.icu.notes import CANARY

RUNS = ("mortality.fixed", "mortality.paper", "phenotyping.fixed", "phenotyping.paper")


@pytest.fixture(scope="module")
def tables(icu_raw: Path, icu_options: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SamplesTable]:
    tables = {}
    for run in RUNS:
        task, mode = run.split(".")
        hours, text = (48 if task == "mortality" else None), ("notes" if mode == "fixed" else "study")
        options = {**icu_options, "task": task, "mode": mode, "hours": hours, "text": text}
        tables[run] = prepare_mimic4(icu_raw, tmp_path_factory.mktemp("out") / "samples", options)
    return tables


@pytest.fixture(scope="module")
def expected(icu_raw: Path) -> dict:
    return json.loads((icu_raw / "expected.json").read_text())


def present(column: pd.Series) -> dict:
    return column.dropna().to_dict()


@pytest.mark.parametrize("run", RUNS)
def test_counts_and_dropped_stays_are_the_plans(tables: dict, expected: dict, icu_raw: Path, run: str) -> None:
    table, wanted = tables[run], expected["runs"][run]
    assert [step.model_dump() for step in table.info.counts] == wanted["steps"]
    dropped = pd.read_parquet(table.root / "dropped.parquet")
    assert dropped.set_index("source_id")["step"].to_dict() == wanted["dropped"]
    assert dropped["reason"].str.len().min() > 0
    stays = pd.read_csv(icu_raw / "icu/icustays.csv.gz")["stay_id"].astype(str)
    assert sorted([*dropped["source_id"], *table.frame["sample_id"]]) == sorted(stays)


@pytest.mark.parametrize("run", RUNS)
def test_labels_are_the_plans(tables: dict, expected: dict, run: str) -> None:
    rows = tables[run].frame.set_index("sample_id")
    values = rows[label_columns(tables[run].info.label)]
    if run.startswith("mortality"):
        found = values["label"].astype(int).to_dict()
    else:
        numbers = list(PHENOTYPES)
        found = {
            stay: sorted(numbers[i] for i in np.flatnonzero(row))
            for stay, row in zip(rows.index, values.to_numpy(), strict=True)
        }
    assert found == expected["runs"][run]["labels"]
    assert rows["group_id"].to_dict() == {stay: expected["subjects"][stay] for stay in rows.index}


@pytest.mark.parametrize("run", RUNS)
def test_films_are_the_plans_and_missing_ones_have_its_reason(tables: dict, expected: dict, run: str) -> None:
    table, wanted = tables[run], expected["runs"][run]
    rows = table.frame.set_index("sample_id")
    assert present(rows["cxr_dicom_id"]) == wanted["images"]
    reasons = present(rows["cxr_missing_reason"])
    assert set(reasons) == set(wanted["image_reasons"])
    assert {s: r for s, r in reasons.items() if not r.startswith(wanted["image_reasons"][s])} == {}
    for path in rows["cxr_path"].dropna():
        with Image.open(table.root / path) as image:
            image.load()
            assert image.mode == "L"
    assert len(list((table.root / "images").iterdir())) == rows["cxr_path"].notna().sum()


@pytest.mark.parametrize("run", RUNS)
def test_texts_are_the_plans_to_the_letter(tables: dict, expected: dict, run: str) -> None:
    rows, wanted = tables[run].frame.set_index("sample_id"), expected["runs"][run]
    assert present(rows["txt_text"]) == wanted["texts"]
    assert present(rows["txt_missing_reason"]) == wanted["text_reasons"]


@pytest.mark.parametrize("run", RUNS)
def test_values_land_in_their_bins_as_the_mode_has_them(tables: dict, expected: dict, run: str) -> None:
    info, rows = tables[run].info, tables[run].frame.set_index("sample_id")
    channels, moments = tables[run].modality("ehr").channels, info.source["train_moments"]
    cells = [cell for cell in expected["cells"] if run in cell["runs"]]
    assert len(cells) >= 20
    for cell in cells:
        row = rows.loc[cell["stay"]]
        found = float(np.reshape(row["ehr_array"], row["ehr_shape"])[cell["bin"], channels.index(cell["channel"])])
        if run.endswith("paper") and cell["channel"] in moments:  # standardised
            mean, deviation = moments[cell["channel"]]
            found = found * deviation + mean
        wanted = np.nan if cell["value"] is None else cell["value"]
        rtol, atol = (1e-4, 1e-3) if run.endswith("paper") else (1e-6, 0)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol, err_msg=str(cell))


def test_stays_whose_flag_and_time_of_death_disagree_are_counted(tables: dict) -> None:
    assert tables["mortality.fixed"].info.source["rules"]["stays whose flag and time of death disagree"] == 2


def test_lists_split_and_unlisted_subjects_are_hashed_or_train(
    icu_raw: Path, icu_options: dict, expected: dict, tables: dict, tmp_path: Path
) -> None:
    lists = {"test_subjects": icu_raw / "splits/test.csv", "valid_subjects": icu_raw / "splits/valid.csv"}
    for mode in ("paper", "fixed"):
        table = prepare_mimic4(icu_raw, tmp_path / mode, {**icu_options, **lists, "mode": mode})
        split = table.frame.set_index("sample_id")["split"]
        listed = {stay: name for stay, name in expected["listed_splits"].items() if name != "train"}
        assert split[list(listed)].to_dict() == listed
        others = split.drop(list(listed))
        if mode == "paper":
            assert set(others) == {"train"}
        else:
            hashed = tables["mortality.fixed"].frame.set_index("sample_id")["split"]
            assert others.to_dict() == hashed[others.index].to_dict()


@pytest.mark.parametrize("run", RUNS)
def test_nothing_is_known_after_the_prediction_time_but_the_papers_film(tables: dict, run: str) -> None:
    table = tables[run]
    late = {}
    for name in ("cxr", "txt"):
        known = table.frame[table.frame[f"{name}_available_time"].notna()]
        assert len(known) > 10
        late[name] = int((known[f"{name}_available_time"] > known["prediction_time"]).sum())
    if run == "mortality.paper":
        assert late["cxr"] > 0
        assert [leak.split(":")[0] for leak in table.info.source["leaks"]] == ["film", "text"]
    else:
        assert late == {"cxr": 0, "txt": 0}
        assert table.info.source["leaks"] == []


@pytest.mark.parametrize("run", RUNS)
def test_every_invariant_of_a_samples_table_holds(tables: dict, run: str) -> None:
    frame, root = tables[run].frame, tables[run].root
    assert frame["sample_id"].is_unique
    assert (frame.groupby("group_id")["split"].nunique() == 1).all()
    assert frame["group_id"].nunique() < len(frame)  # some have two admissions
    for name, column in (("cxr", "cxr_path"), ("txt", "txt_text")):
        assert (frame[f"{name}_missing_reason"].isna() == frame[column].notna()).all()
    for path in root.rglob("*.parquet"):
        assert CANARY not in pd.read_parquet(path).to_csv()
    assert CANARY not in (root / "dataset.json").read_text()
    assert str(root) not in (root / "dataset.json").read_text()  # no absolute path
    assert not list(root.parent.glob(".*"))  # what an interrupted run would need is gone


def test_discharge_text_only_behind_its_flag_which_stamps_the_table(
    icu_raw: Path, icu_options: dict, tmp_path: Path
) -> None:
    table = prepare_mimic4(icu_raw, tmp_path / "out", {**icu_options, "allow_leaky_text": True})
    assert table.frame["txt_text"].str.startswith(CANARY).all()
    assert table.info.source["leaks"] == ["text: discharge summary"]
    assert table.info.options["allow_leaky_text"] is True
