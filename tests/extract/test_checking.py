"""The check of a samples table: patterns and balance as counted by hand, unreadable values and leaks found."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from extract.checking import describe, problems
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec


def write_table(root: Path, **changes: Any) -> SamplesTable:
    for place in range(6):
        Image.fromarray(np.full((4, 4), 10 * place, np.uint8)).save(root / f"{place}.png")
    columns: dict[str, Any] = {
        "sample_id": [f"secret{i}" for i in range(6)],
        "group_id": ["a", "a", "b", "c", "d", "e"],
        "split": ["train", "train", "train", "valid", "test", "test"],
        "label": [0, 1, None, 1, 0, 0],
        "scan_path": ["0.png", "1.png", None, "3.png", "4.png", "5.png"],
        "note_text": ["one", None, "three", "four", "five", None],
    }
    info = DatasetInfo(
        name="tiny",
        label=LabelSpec(kind="binary", names=("death",)),
        modalities=(
            ModalitySpec(name="scan", kind="image", column="scan_path"),
            ModalitySpec(name="note", kind="text", column="note_text"),
        ),
    )
    none = pd.DataFrame([], columns=["source_id", "step", "reason"], dtype=str)
    return SamplesTable.write(root, info, pd.DataFrame({**columns, **changes}), none)


def test_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    summary = describe(write_table(tmp_path))
    assert summary["train"] == {
        "samples": 3,
        "groups": 2,
        "observed": {"scan": pytest.approx(2 / 3), "note": pytest.approx(2 / 3)},
        "patterns": {"scan+note": 1, "scan": 1, "note": 1},
        "labels": {"0": 1.0, "1": 1.0, "unlabelled": 1.0},
    }
    assert summary["test"]["patterns"] == {"scan+note": 1, "scan": 1}
    assert (summary["unreadable"], summary["across_splits"], problems(summary)) == ({}, {}, [])


def test_unreadable_values_are_counted_by_reason_and_row(tmp_path: Path) -> None:
    table = write_table(tmp_path, note_text=["one", " ", "three", "four", "five", None])
    (tmp_path / "0.png").unlink()
    (tmp_path / "3.png").write_bytes(b"no image")
    summary = describe(table)
    assert summary["unreadable"]["note"] == {"empty text": {"count": 1, "rows": [1]}}
    assert {facts["rows"][0] for facts in summary["unreadable"]["scan"].values()} == {0, 3}
    assert problems(summary) == ["3 values cannot be read"]


def test_a_film_is_decoded_to_know_whether_it_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no film")
    info = DatasetInfo(
        name="films",
        label=LabelSpec(kind="binary", names=("smile",)),
        modalities=(ModalitySpec(name="film", kind="video", column="film_path"),),
    )
    row = {"sample_id": "a", "group_id": "a", "split": "train", "label": 1, "film_path": "a.mp4"}
    none = pd.DataFrame([], columns=["source_id", "step", "reason"], dtype=str)
    table = SamplesTable.write(tmp_path, info, pd.DataFrame([row]), none)
    ((reason, facts),) = describe(table)["unreadable"]["film"].items()
    assert "video cannot be decoded" in reason
    assert facts == {"count": 1, "rows": [0]}


def test_contents_in_several_splits_are_found_and_within_one_are_not(tmp_path: Path) -> None:
    table = write_table(tmp_path, note_text=["same", None, "same", "four", "same", None])
    (tmp_path / "4.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    summary = describe(table)
    assert summary["across_splits"]["scan"] == {"count": 3, "rows": [0, 1, 4]}
    assert summary["across_splits"]["note"] == {"count": 3, "rows": [0, 2, 4]}
    assert summary["across_splits"]["whole sample"] == {"count": 2, "rows": [0, 4]}
    assert problems(summary) == ["2 samples have the content of one in another split"]


def test_an_empty_split_is_a_problem(tmp_path: Path) -> None:
    summary = describe(write_table(tmp_path, split=["train", "train", "train", "train", "test", "test"]))
    assert summary["valid"] == {"samples": 0}
    assert problems(summary) == ["the valid split is empty"]


def test_strict_sets_the_exit_code_and_no_id_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    from pipelines.commands.data import check

    write_table(tmp_path)
    check(tmp_path, strict=True, as_json=False)
    (tmp_path / "0.png").unlink()
    check(tmp_path, strict=False, as_json=False)
    with pytest.raises(typer.Exit) as caught:
        check(tmp_path, strict=True, as_json=True)
    assert caught.value.exit_code == 1
    printed = capsys.readouterr().out
    assert "unreadable scan: file not found: 1 (rows 0)" in printed
    assert "problem: 1 values cannot be read" in printed
    assert "secret" not in printed
