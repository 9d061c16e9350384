"""The samples table: what is written is read back, every rule has its own error, a re-run changes no byte."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cache.errors import UserError
from extract.samples import CountStep, DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec

BINARY = LabelSpec(kind="binary", names=("death",))
MODALITIES = (
    ModalitySpec(name="ehr", kind="timeseries", column="ehr_array", channels=("hr", "bp"), bin_hours=1.0),
    ModalitySpec(name="cxr", kind="image", column="cxr_path"),
    ModalitySpec(name="txt", kind="text", column="txt_text"),
)
DROPPED = pd.DataFrame({"source_id": ["z", "y"], "step": ["s", "s"], "reason": ["empty", "empty"]})
FILES = ("samples.parquet", "dropped.parquet", "dataset.json")


def make_info(**changes: Any) -> DatasetInfo:
    content: dict[str, Any] = {"name": "tiny", "label": BINARY, "modalities": MODALITIES}
    content["counts"] = (CountStep(step="all", kept=6, dropped=2),)
    return DatasetInfo(**{**content, **changes})


def make_frame() -> pd.DataFrame:
    values = np.array([1, np.nan, 3, 4], np.float32)
    return pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(6)],
            "group_id": ["g0", "g0", "g1", "g2", "g3", "g4"],
            "split": ["train", "train", "train", "valid", "test", "test"],
            "label": [0, 1, 0, 1, 0, 1],
            "ehr_array": [values, None, values, None, values, values],
            "ehr_shape": [[2, 2], None, [2, 2], None, [2, 2], [2, 2]],
            "cxr_path": ["images/a.png", "images/b.png", None, None, "images/c.png", None],
            "txt_text": [None, "None", "stable", "two\nlines, “quoted”", None, "NA"],
        }
    )


def test_written_table_is_read_back(tmp_path: Path) -> None:
    SamplesTable.write(tmp_path, make_info(), make_frame(), DROPPED)
    table = SamplesTable.read(tmp_path)
    assert table.info == make_info()
    assert table.modalities == ("ehr", "cxr", "txt")
    assert table.ids("train") == ["s0", "s1", "s2"]
    assert table.labels("test").dtype == np.float32
    np.testing.assert_array_equal(table.labels("test"), [0, 1])
    expected = [[True, True, False], [False, True, True], [True, False, True]]
    np.testing.assert_array_equal(table.observed("train"), expected)
    # A text that reads "None" or "NA" is a text.
    assert table.row("s1")["txt_text"] == "None"
    assert table.row("s5")["txt_text"] == "NA"
    assert table.row("s3")["txt_text"] == "two\nlines, “quoted”"
    np.testing.assert_array_equal(table.row("s0")["ehr_array"], make_frame()["ehr_array"][0])


def test_rewriting_in_another_order_changes_no_byte(tmp_path: Path) -> None:
    first = SamplesTable.write(tmp_path / "a", make_info(), make_frame(), DROPPED)
    second = SamplesTable.write(tmp_path / "b", make_info(), make_frame()[::-1], DROPPED[::-1])
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert first.digest() == second.digest()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(FILES)


def test_digest_follows_content_and_declaration(tmp_path: Path) -> None:
    digests = {SamplesTable.write(tmp_path / "a", make_info(), make_frame(), DROPPED).digest()}
    digests.add(SamplesTable.write(tmp_path / "b", make_info(name="other"), make_frame(), DROPPED).digest())
    digests.add(SamplesTable.write(tmp_path / "c", make_info(), make_frame().assign(label=0), DROPPED).digest())
    assert len(digests) == 3


def test_multilabel_and_unlabelled_rows(tmp_path: Path) -> None:
    label = LabelSpec(kind="multilabel", names=("a", "b"))
    frame = make_frame().drop(columns="label").assign(label_a=[0, 1, None, 1, 0, 1], label_b=1)
    labels = SamplesTable.write(tmp_path, make_info(label=label), frame, DROPPED).labels("train")
    np.testing.assert_array_equal(labels, [[0, 1], [1, 1], [np.nan, 1]])


def test_select_leaves_out_samples_with_nothing(tmp_path: Path) -> None:
    table = SamplesTable.write(tmp_path, make_info(), make_frame(), DROPPED).select(["cxr"])
    assert table.modalities == ("cxr",)
    assert list(table.frame["sample_id"]) == ["s0", "s1", "s4"]


def test_a_rejected_write_keeps_the_older_table(tmp_path: Path) -> None:
    before = SamplesTable.write(tmp_path, make_info(), make_frame(), DROPPED).digest()
    with pytest.raises(UserError, match="duplicate"):
        SamplesTable.write(tmp_path, make_info(), pd.concat([make_frame()] * 2), DROPPED)
    with pytest.raises(UserError, match="dropped rows"):
        SamplesTable.write(tmp_path, make_info(), make_frame(), DROPPED.rename(columns={"step": "stage"}))
    assert SamplesTable.read(tmp_path).digest() == before


def changed(column: str, row: int, value: Any) -> pd.DataFrame:
    frame = make_frame().astype({column: object})
    frame.at[row, column] = value
    return frame


def everything_null() -> pd.DataFrame:
    frame = make_frame()
    frame.loc[0, ["ehr_array", "cxr_path", "txt_text"]] = None
    return frame


BAD_FRAMES = {
    "no sample_id": (make_frame().drop(columns="sample_id"), "missing columns.*sample_id"),
    "no value column": (make_frame().drop(columns="cxr_path"), "missing columns.*cxr_path"),
    "no shape column": (make_frame().drop(columns="ehr_shape"), "missing columns.*ehr_shape"),
    "no label": (make_frame().drop(columns="label"), "missing columns.*label"),
    "no rows": (make_frame()[:0], "no rows"),
    "duplicate ids": (changed("sample_id", 1, "s0"), "1 duplicate"),
    "number as id": (changed("sample_id", 1, 7), "non-empty string"),
    "empty id": (changed("sample_id", 1, ""), "non-empty string"),
    "null id": (changed("sample_id", 1, None), "non-empty string"),
    "group in two splits": (changed("group_id", 3, "g0"), "1 groups lie in several splits"),
    "null group": (changed("group_id", 3, None), "lack an id"),
    "unknown split": (changed("split", 0, "dev"), "dev.*not among train, valid, test"),
    "null split": (changed("split", 0, None), "not among train, valid, test"),
    "infinite label": (changed("label", 0, float("inf")), "not finite"),
    "text label": (changed("label", 0, "dead"), "not finite numbers"),
    "label out of range": (changed("label", 0, 2), "outside 0 .. 1"),
    "fraction as label": (changed("label", 0, 0.5), "outside 0 .. 1"),
    "row with nothing": (everything_null(), "1 rows have no modality"),
    "absolute path": (changed("cxr_path", 0, "/etc/passwd"), "leave the table's folder"),
    "path out of the root": (changed("cxr_path", 0, "images/../../x.png"), "leave the table's folder"),
    "empty path": (changed("cxr_path", 0, ""), "1 cells of 'cxr_path'"),
    "number as path": (changed("cxr_path", 0, 3), "1 cells of 'cxr_path'"),
    "array without shape": (changed("ehr_shape", 0, None), "no 'ehr_shape'"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_broken_rules_are_named(tmp_path: Path, case: str) -> None:
    frame, message = BAD_FRAMES[case]
    with pytest.raises(UserError, match=message):
        SamplesTable.write(tmp_path, make_info(), frame, DROPPED)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ((), "non-empty and unique"),
        ((MODALITIES[1], MODALITIES[1]), "non-empty and unique"),
        ((ModalitySpec(name="cxr", kind="image", column="cxr_text"),), "must be cxr_path"),
        ((ModalitySpec(name="txt", kind="text", column="txt_array"),), "must be txt_text or txt_path"),
        ((ModalitySpec(name="c", kind="image", column="cxr_path"),), "must be c_path"),
        ((ModalitySpec(name="../c", kind="image", column="../c_path"),), "letters, digits"),
    ],
)
def test_wrong_declarations_are_named(tmp_path: Path, modalities: tuple[ModalitySpec, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplesTable.write(tmp_path, make_info(modalities=modalities), make_frame(), DROPPED)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("dataset.json", Path.unlink),
        ("samples.parquet", Path.unlink),
        ("dataset.json", truncate),
        ("samples.parquet", truncate),
        ("dataset.json", lambda path: path.write_bytes(b'{"name": "\xff\xfe"}')),
        ("dataset.json", lambda path: path.write_text("[]")),
        ("dataset.json", lambda path: path.write_text(path.read_text().replace('"name": "tiny"', '"nom": "tiny"'))),
        ("dataset.json", lambda path: path.write_text(path.read_text().replace('_version": 1', '_version": 9'))),
    ],
)
def test_damaged_folders_are_one_clear_error(tmp_path: Path, name: str, harm: Any) -> None:
    SamplesTable.write(tmp_path, make_info(), make_frame(), DROPPED)
    harm(tmp_path / name)
    with pytest.raises(UserError, match=r"selfmask prepare|schema version 9"):
        SamplesTable.read(tmp_path)


def test_unknown_names_are_errors(tmp_path: Path) -> None:
    table = SamplesTable.write(tmp_path, make_info(), make_frame().query("split != 'valid'"), DROPPED)
    with pytest.raises(UserError, match="it has ehr, cxr, txt"):
        table.modality("mri")
    with pytest.raises(UserError, match="not one of train, valid, test"):
        table.split("dev")
    with pytest.raises(UserError, match=r"valid split .* is empty"):
        table.ids("valid")
    with pytest.raises(UserError, match="no sample"):
        table.row("s99")
