"""A table of the user's own: csv, jsonl and parquet give the same rows; empty is missing; mistakes are one error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cache.errors import UserError
from extract.samples import SamplesTable
from extract.sources.table import prepare_table
from extract.values import read_value

DECLARED: dict[str, Any] = {
    "name": "mine",
    "label": {"kind": "binary", "names": ["relapse"]},
    "modalities": [
        {"name": "scan", "kind": "image", "column": "scan_path"},
        {"name": "note", "kind": "text", "column": "note_text"},
        {"name": "labs", "kind": "timeseries", "column": "labs_array", "channels": ["crp", "wbc"]},
        {"name": "gait", "kind": "timeseries", "column": "gait_path", "channels": ["x"]},
    ],
}
CSV = """sample_id,group_id,split,label,scan_path,note_text,labs_array,labs_shape,gait_path
007,p1,train,0,scans/a.png,None,"[1, null, 3, 4]","[2, 2]",gait.npz#one
008,p1,train,1,,"two
lines, ~~quoted~~",,,
009,p2,valid,,scans/b.png,,,,gait.npz#two
010,p3,test,1,scans/absent.png,NA,"[5, 6]","[1, 2]",
011,p4,test,0,scans/absent.png,,,,
012,p5,train,0,,,,,
""".replace("~", '"')


def write_raw(root: Path, text: str = CSV, **changes: Any) -> Path:
    (root / "scans").mkdir(parents=True)
    for name, level in (("a", 10), ("b", 200), ("unused", 5)):
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(root / f"scans/{name}.png")
    np.savez(root / "gait.npz", one=np.ones((3, 1)), two=np.full((2, 1), 2.0))
    (root / "dataset.json").write_text(json.dumps({**DECLARED, **changes}))
    (root / "samples.csv").write_text(text)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def as_rows(raw: Path) -> list[dict[str, Any]]:
    frame = pd.read_csv(raw / "samples.csv", dtype=str, keep_default_na=False, na_values=[""])
    rows: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    for row in rows:
        row["label"] = None if row["label"] is None else int(row["label"])
        for name in ("labs_array", "labs_shape"):
            row[name] = None if row[name] is None else json.loads(row[name])
    return rows


def test_cells_are_read_as_declared(tmp_path: Path) -> None:
    prepare_table(write_raw(tmp_path / "raw"), tmp_path / "out")
    table = SamplesTable.read(tmp_path / "out")
    assert table.frame["sample_id"].tolist() == ["007", "008", "009", "010"]
    assert read_value(table, table.row("007"), "note") == "None"
    assert read_value(table, table.row("008"), "note") == 'two\nlines, "quoted"'
    assert read_value(table, table.row("010"), "note") == "NA"
    labs, gait = (read_value(table, table.row(name), kind) for name, kind in (("007", "labs"), ("009", "gait")))
    np.testing.assert_array_equal(labs.values, [[1, np.nan], [3, 4]])
    np.testing.assert_array_equal(gait.values, [[2], [2]])
    assert np.asarray(read_value(table, table.row("009"), "scan"))[0, 0] == 200
    assert table.observed("train").tolist() == [[True, True, True, True], [False, True, False, False]]
    np.testing.assert_array_equal(table.labels("valid"), [np.nan])


def test_absent_files_are_missing_and_empty_rows_are_logged(tmp_path: Path) -> None:
    table = prepare_table(write_raw(tmp_path / "raw"), tmp_path / "out")
    assert table.row("010")["scan_missing_reason"] == "not_in_source"
    assert table.info.source == {"rules": {"scan: files that are not there": 2}}
    dropped = pd.read_parquet(tmp_path / "out/dropped.parquet")
    assert dropped.to_numpy().tolist() == [[n, "modality", "no modality at all"] for n in ("011", "012")]
    assert (table.info.counts[-1].kept, table.info.counts[-1].dropped) == (4, 2)


def test_only_named_files_are_copied(tmp_path: Path) -> None:
    prepare_table(write_raw(tmp_path / "raw"), tmp_path / "out")
    files = {"samples.parquet", "dropped.parquet", "dataset.json", "gait.npz", "scans/a.png", "scans/b.png"}
    assert set(contents(tmp_path / "out")) == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_every_form_and_order_gives_the_same_bytes(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    prepare_table(raw, tmp_path / "csv")
    rows = as_rows(raw)
    (raw / "samples.csv").unlink()
    (raw / "samples.jsonl").write_text("\n".join(json.dumps(row) for row in reversed(rows)) + "\n")
    prepare_table(raw, tmp_path / "jsonl")
    (raw / "samples.jsonl").unlink()
    pd.DataFrame(rows).to_parquet(raw / "samples.parquet")
    prepare_table(raw, tmp_path / "parquet")
    assert contents(tmp_path / "csv") == contents(tmp_path / "jsonl") == contents(tmp_path / "parquet")


def test_a_finished_table_is_copied_as_it_is(tmp_path: Path) -> None:
    first = prepare_table(write_raw(tmp_path / "raw"), tmp_path / "first")
    second = prepare_table(tmp_path / "first", tmp_path / "second")
    assert (first.root / "samples.parquet").read_bytes() == (second.root / "samples.parquet").read_bytes()
    assert len(pd.read_parquet(tmp_path / "second/dropped.parquet")) == 2
    assert second.info.counts[-1].dropped == 0


def test_rows_without_a_split_are_placed_by_group(tmp_path: Path) -> None:
    lines = [f"s{i},g{i // 2},{'train' if i == 0 else ''},0,text {i}" for i in range(400)]
    text = "sample_id,group_id,split,label,note_text\n" + "\n".join(lines)
    modalities = [DECLARED["modalities"][1]]
    assign = {"valid": 0.2, "test": 0.3, "seed": 0}
    raw = write_raw(tmp_path / "raw", text, modalities=modalities, assign=assign)
    frame = prepare_table(raw, tmp_path / "out").frame.set_index("sample_id")
    assert frame.loc["s1", "split"] == "train"  # with the other row of its group
    shares = frame["split"].value_counts(normalize=True)
    assert shares["valid"] == pytest.approx(0.2, abs=0.06)
    assert shares["test"] == pytest.approx(0.3, abs=0.06)
    (raw / "samples.csv").write_text("\n".join([text.split("\n")[0], *lines[::-1][:200], lines[0], lines[1]]))
    part = prepare_table(raw, tmp_path / "out").frame.set_index("sample_id")["split"]
    assert (part == frame.loc[part.index, "split"]).all()  # no other row moves one


def test_without_groups_each_sample_is_its_own(tmp_path: Path) -> None:
    text = "sample_id,split,label,note_text\na,train,0,x\nb,valid,1,y\nc,test,1,z\n"
    raw = write_raw(tmp_path / "raw", text, modalities=[DECLARED["modalities"][1]])
    assert prepare_table(raw, tmp_path / "out").frame["group_id"].tolist() == ["a", "b", "c"]


def edit(old: str, new: str) -> Callable[[Path], None]:
    def harm(raw: Path) -> None:
        text = (raw / "samples.csv").read_text()
        assert old in text
        (raw / "samples.csv").write_text(text.replace(old, new))

    return harm


def link_out(raw: Path) -> None:
    (raw.parent / "secret.png").write_bytes(b"secret")
    (raw / "scans/a.png").unlink()
    (raw / "scans/a.png").symlink_to(raw.parent / "secret.png")


MISTAKES = {
    "no declaration": (lambda raw: (raw / "dataset.json").unlink(), r"no .*dataset.json.*docs/samples.md"),
    "no JSON": (lambda raw: (raw / "dataset.json").write_text("{"), "no JSON document"),
    "an unknown key": (lambda raw: (raw / "dataset.json").write_text('{"nom": 1}'), "nom: Extra inputs"),
    "no table": (lambda raw: (raw / "samples.csv").unlink(), "holds none of them"),
    "two tables": (lambda raw: (raw / "samples.jsonl").write_text("{}"), "holds samples.csv, samples.jsonl"),
    "no column": (edit("scan_path", "scan"), r"missing columns \['scan_path'\]"),
    "an empty split": (edit("p2,valid", "p2,"), '1 rows have no split.*"assign"'),
    "an unknown split": (edit("p2,valid", "p2,dev"), "dev"),
    "a label in words": (edit("train,0,scans", "train,no,scans"), "no numbers"),
    "a label out of range": (edit("train,0,scans", "train,2,scans"), r"outside 0 .. 1"),
    "an array in words": (edit("[1, null, 3, 4]", "one"), "'labs_array' must hold lists of numbers"),
    "no shape": (edit('"[2, 2]"', ""), "no 'labs_shape'"),
    "a group in two splits": (edit("p2,valid", "p1,valid"), "1 groups lie in several splits"),
    "the same id": (edit("008", "007"), "1 duplicate"),
    "a path outside": (edit("scans/a.png", "../secret.png"), "leave the table's folder"),
    "a link outside": (link_out, "names a file outside"),
    "bytes": (lambda raw: (raw / "samples.csv").write_bytes(b"\xff\xfe\x00"), "cannot be read as csv"),
    "rows of other lengths": (edit("012,p5,train,0,,,,,", "012,p5,train,0,,,,,,,,,,"), "cannot be read as csv"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_clear_error_and_leave_the_older_table(tmp_path: Path, mistake: str) -> None:
    raw = write_raw(tmp_path / "raw")
    before = prepare_table(raw, tmp_path / "out").digest()
    harm, message = MISTAKES[mistake]
    harm(raw)
    with pytest.raises(UserError, match=message):
        prepare_table(raw, tmp_path / "out")
    assert SamplesTable.read(tmp_path / "out").digest() == before


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    (raw / "samples.csv").unlink()
    (raw / "samples.jsonl").write_text('{"sample_id": "a"}\n[1]\n')
    with pytest.raises(UserError, match="line 2 is no JSON object"):
        prepare_table(raw, tmp_path / "out")


def test_a_full_disk_is_one_error_and_the_next_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_raw(tmp_path / "raw")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("extract.sources.table.shutil.copyfile", full)
        with pytest.raises(UserError, match="No space is left"):
            prepare_table(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(prepare_table(raw, tmp_path / "out").frame) == 4
