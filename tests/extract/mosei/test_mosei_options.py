"""CMU-MOSEI's options and determinism: tasks, what is left out, the same bytes whatever order, workers or kills."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from cache.errors import UserError
from extract.samples import SamplesTable
from extract.sources.mosei import columns, media
from extract.sources.mosei.prepare import prepare_mosei
from extract.sources.mosei.segments import EMOTIONS
from extract.sources.mosei.targets import seven_class

pytestmark = pytest.mark.usefixtures("no_flush")
ALL = ["text", "audio", "video", "facet"]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def csd(sentiment_raw: Any) -> Path:
    path: Path = sentiment_raw("csd")
    return path


@pytest.fixture
def expected(csd: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((csd / "expected.json").read_text())
    return content


def table_of(raw: Path, out: Path, options: dict[str, Any], **changes: Any) -> SamplesTable:
    return prepare_mosei(raw, out / "samples", {**options, **changes})


def test_binary_takes_zero_as_it_is_told(
    csd: Path, expected: dict[str, Any], sentiment_options: dict[str, Any], tmp_path: Path
) -> None:
    kept = table_of(
        csd, tmp_path / "a", sentiment_options, task="binary", binary="nonneg", modalities=["covarep", "text"]
    )
    left = table_of(csd, tmp_path / "b", sentiment_options, task="binary", modalities=["covarep", "text"])
    signs = {facts["id"]: facts["sentiment"] for facts in expected["segments"].values()}
    assert dict(zip(kept.frame["sample_id"], kept.frame["label"], strict=True)) == {i: s >= 0 for i, s in signs.items()}
    assert dict(zip(left.frame["sample_id"], left.frame["label"], strict=True)) == {
        i: s > 0 for i, s in signs.items() if s != 0
    }
    assert len(kept.frame) - len(left.frame) == expected["zeros"] > 0
    assert kept.info.label.names == ("nonnegative",)
    assert left.info.label.names == ("positive",)


def test_seven_classes_are_the_published_ones() -> None:
    """Reference: a < -2: -3; [-2, -1): -2; [-1, 0): -1; 0: 0; (0, 1]: 1; (1, 2]: 2; > 2: 3."""

    def reference(a: float) -> int:
        bounds = ((a < -2, -3), (a < -1, -2), (a < 0, -1), (a == 0, 0), (a <= 1, 1), (a <= 2, 2))
        return next((value for holds, value in bounds if holds), 3)

    for value in np.round(np.r_[np.arange(-36, 37) / 12, -1 / 3, 2 / 3], 6).tolist():
        assert seven_class(value) - 3 == reference(value), value


def test_seven_and_emotions(
    csd: Path, expected: dict[str, Any], sentiment_options: dict[str, Any], tmp_path: Path
) -> None:
    seven = table_of(csd, tmp_path / "a", sentiment_options, task="seven")
    rows = seven.frame.set_index("sample_id")["label"]
    names = {"zero": 3, "minus_third": 2, "three": 6, "ten_fourths": 6, "too_large": 6}
    assert {name: rows[expected["segments"][name]["id"]] for name in names} == names
    emotions = table_of(csd, tmp_path / "b", sentiment_options, task="emotions")
    assert emotions.info.label.kind == "multilabel"
    for _, row in emotions.frame.iterrows():
        facts = next(f for f in expected["segments"].values() if f["id"] == row["sample_id"])
        assert [row[f"label_{name}"] for name in EMOTIONS] == [value > 0 for value in facts["emotions"]]


def test_out_of_range_and_unlisted_as_told(
    csd: Path, expected: dict[str, Any], sentiment_options: dict[str, Any], tmp_path: Path
) -> None:
    table = table_of(csd, tmp_path, sentiment_options, out_of_range="drop", unlisted="test")
    assert expected["segments"]["too_large"]["id"] not in set(table.frame["sample_id"])
    assert table.frame.set_index("sample_id").loc[expected["dropped"]["no_fold"]["id"], "split"] == "test"
    reasons = pd.read_parquet(table.root / "dropped.parquet")["reason"]
    assert Counter(reasons)["sentiment outside -3 .. 3"] == 1


def test_folds_of_the_sdk_s_python_file_are_parsed_and_not_run(
    csd: Path, sentiment_options: dict[str, Any], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(csd, raw, ignore=shutil.ignore_patterns("visual", "acoustic"))
    folds = json.loads((raw / "folds.json").read_text())
    lines = [f"standard_{name}_fold={ids!r}" for name, ids in folds.items()]
    (raw / "folds.py").write_text("\n".join(["import os", f"open({str(tmp_path / 'ran')!r}, 'w')", *lines]))
    table = table_of(raw, tmp_path / "py", sentiment_options, folds="folds.py")
    assert table.frame.equals(table_of(raw, tmp_path / "json", sentiment_options).frame)
    assert not (tmp_path / "ran").exists()


def test_same_bytes_again_and_with_any_number_of_workers(
    sentiment_raw: Any, sentiment_options: dict[str, Any], tmp_path: Path
) -> None:
    first = table_of(sentiment_raw("raw"), tmp_path / "a", sentiment_options, modalities=ALL, workers=1)
    again = table_of(sentiment_raw("raw"), tmp_path / "b", sentiment_options, modalities=ALL, workers=5)
    assert contents(first.root) == contents(again.root)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["samples"]


def shuffle_sequence(path: Path) -> None:
    """Write a sequence again with its videos, and their rows, in another order."""
    with h5py.File(path) as file:
        (root,) = file
        order = list(file[f"{root}/data"])
        data = {v: (file[f"{root}/data/{v}/features"][()], file[f"{root}/data/{v}/intervals"][()]) for v in order}
    random.Random(0).shuffle(order)
    with h5py.File(path, "w", track_order=True) as file:
        for video in order:
            place = np.random.default_rng(len(video)).permutation(len(data[video][0]))
            for name, array in zip(("features", "intervals"), data[video], strict=True):
                file.create_dataset(f"another/data/{video}/{name}", data=array[place])


def test_order_of_csd_rows_changes_no_byte(csd: Path, sentiment_options: dict[str, Any], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(csd, raw, ignore=shutil.ignore_patterns("visual", "acoustic"))
    before = table_of(raw, tmp_path / "a", sentiment_options)
    for path in sorted(raw.rglob("*.csd")):
        shuffle_sequence(path)
    folds = {name: ids[::-1] for name, ids in json.loads((raw / "folds.json").read_text()).items()}
    (raw / "folds.json").write_text(json.dumps(folds))
    assert contents(before.root) == contents(table_of(raw, tmp_path / "b", sentiment_options).root)


def test_order_of_csv_rows_changes_no_byte(
    sentiment_raw: Any, sentiment_options: dict[str, Any], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(sentiment_raw("mmsa"), raw, ignore=shutil.ignore_patterns("*.mp4"))
    before = table_of(raw, tmp_path / "a", sentiment_options, modalities=["text", "facet"])
    label = pd.read_csv(raw / "label.csv", dtype=str, keep_default_na=False)
    label.sample(frac=1, random_state=0).to_csv(raw / "label.csv", index=False)
    after = table_of(raw, tmp_path / "b", sentiment_options, modalities=["text", "facet"])
    assert contents(before.root) == contents(after.root)


@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_that_was_cut_off_is_gone_on_with(
    sentiment_raw: Any,
    sentiment_options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: BaseException,
) -> None:
    """After 20 clips nothing more can be written; the next run cuts the others, and finds nothing half done."""
    options = {**sentiment_options, "modalities": ["audio"], "workers": 1}
    whole = contents(table_of(sentiment_raw("raw"), tmp_path / "whole", options).root)
    written: list[Path] = []
    write = media.write_bytes

    def until_full(path: Path, data: bytes) -> None:
        if len(written) == 20:
            raise end
        written.append(path)
        write(path, data)

    monkeypatch.setattr(media, "write_bytes", until_full)
    with pytest.raises(UserError if isinstance(end, OSError) else KeyboardInterrupt, match=r"No space|^$"):
        table_of(sentiment_raw("raw"), tmp_path / "cut", options)
    assert not (tmp_path / "cut/samples").exists()
    (written[0].parent / ".half.wav.0123.partial").write_bytes(b"RIFF")  # as a kill would leave it
    monkeypatch.setattr(media, "write_bytes", write)
    cut: list[Path] = []
    write_sound = columns.write_sound

    def counted(path: Path, *args: Any, **options: Any) -> None:
        cut.append(path)
        write_sound(path, *args, **options)

    monkeypatch.setattr(columns, "write_sound", counted)
    table = table_of(sentiment_raw("raw"), tmp_path / "cut", options)
    assert contents(table.root) == whole
    assert not {path.name for path in written} & {path.name for path in cut}


def test_what_was_cut_with_other_options_is_not_used(
    sentiment_raw: Any, sentiment_options: dict[str, Any], tmp_path: Path
) -> None:
    partial = tmp_path / ".samples.partial"
    partial.mkdir()
    (partial / "stamp.json").write_text('{"inputs": "of another run"}')
    (partial / "stray.wav").write_bytes(b"stray")
    table = table_of(sentiment_raw("csd"), tmp_path, sentiment_options)
    assert "stray.wav" not in contents(table.root)
