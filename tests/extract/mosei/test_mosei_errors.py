"""CMU-MOSEI: files that are absent, damaged or contradict each other give one clear error, and leave an older table."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cache.errors import UserError
from extract.samples import SamplesTable
from extract.sources.mosei.prepare import prepare_mosei

pytestmark = pytest.mark.usefixtures("no_flush")
LABELS, FACET = "labels/CMU_MOSEI_Labels.csd", "visual/CMU_MOSEI_VisualFacet42.csd"


class Exploit:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit",)


def edit_folds(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def harm(raw: Path) -> None:
        folds = json.loads((raw / "folds.json").read_text())
        (raw / "folds.json").write_text(json.dumps(change(folds)))

    return harm


def edit_sequence(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def harm(raw: Path) -> None:
        with h5py.File(raw / name, "r+") as file:
            (root,) = file
            change(file[f"{root}/data"])

    return harm


def replace(group: Any, name: str, value: Any) -> None:
    del group[name]
    group[name] = value


def conflict(data: Any) -> None:
    features = data["duplicate_A/features"][()]
    features[0, 0] += 1
    replace(data["duplicate_A"], "features", features)


def link_outside(data: Any) -> None:
    del data["8404/features"]
    data["8404/features"] = h5py.ExternalLink("other.h5", "secret")
    with h5py.File(Path(data.file.filename).parent / "other.h5", "w") as other:
        other["secret"] = np.zeros((2, 7))


def cut_short(name: str) -> Callable[[Path], None]:
    return lambda raw: (raw / name).write_bytes((raw / name).read_bytes()[:100]) and None


def two_of_a_kind(raw: Path) -> None:
    shutil.copy(raw / FACET, raw / "labels/VisualFacet42_copy.csd")


CSD = {
    "no labels": (lambda raw: (raw / LABELS).unlink(), r"holds no labels.*CMU_MOSEI_Labels.csd"),
    "no folds": (lambda raw: (raw / "folds.json").unlink(), r"There is no .*folds.json.*options.folds"),
    "folds cut off": (cut_short("folds.json"), "lists of three folds"),
    "a fold is absent": (edit_folds(lambda folds: {"train": folds["train"]}), r"lists of three folds \(KeyError\)"),
    "ids as numbers": (edit_folds(lambda f: {**f, "test": [8404]}), '"8404"'),
    "id in two folds": (
        edit_folds(lambda f: {**f, "test": [*f["test"], "8404"]}),
        "8404 is in the folds train and",
    ),
    "labels cut off": (cut_short(LABELS), "Labels.csd: the file cannot be read"),
    "labels of another kind": (
        edit_sequence(LABELS, lambda data: replace(data["8404"], "features", np.zeros((2, 6)))),
        "8404 has 6 labels",
    ),
    "labels without intervals": (
        edit_sequence(LABELS, lambda data: data["8404"].__delitem__("intervals")),
        "Labels.csd: video 8404 cannot be read",
    ),
    "features and intervals differ": (
        edit_sequence(FACET, lambda data: replace(data["8404"], "intervals", np.zeros((3, 2)))),
        r"Facet42.csd: video 8404 has features \[420, 35\] but intervals \[3, 2\]",
    ),
    "another number of columns": (
        edit_sequence(FACET, lambda data: replace(data["8404"], "features", np.ones((420, 34)))),
        "8404 has 34 columns, those before it 35",
    ),
    "links": (edit_sequence(LABELS, link_outside), "data in another file"),
    "an odd id": (edit_sequence(LABELS, lambda data: data.move("8404", "a b")), "'a b'"),
    "listed twice with another label": (edit_sequence(LABELS, conflict), r"duplicate_A_1000_4000 is listed twice"),
    "two files of one kind": (two_of_a_kind, "both hold facet"),
}


def edit_labels(old: str, new: str) -> Callable[[Path], None]:
    def harm(raw: Path) -> None:
        text = (raw / "label.csv").read_text(encoding="utf-8")
        assert old in text
        (raw / "label.csv").write_text(text.replace(old, new, 1), encoding="utf-8")

    return harm


def edit_pickle(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def harm(raw: Path) -> None:
        path = raw / "Processed/unaligned_50.pkl"
        content = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps(change(content)))

    return harm


def without_rows(content: Any) -> Any:
    content["valid"]["vision"] = content["valid"]["vision"][1:]
    return content


MMSA = {
    "no column": (edit_labels("clip_id", "clip"), r"lacks the columns \['clip_id'\]"),
    "an unknown mode": (edit_labels(",valid\n", ",dev\n"), "dev"),
    "a label in words": (edit_labels("-0.3333333333333333", "slightly bad"), "no numbers"),
    "listed twice with another text": (
        edit_labels("duplicate_A,0,", "duplicate_A,0,not "),
        r"duplicate_A\$_\$0 is listed twice",
    ),
    "no split": (edit_pickle(lambda content: {"train": content["train"]}), "lacks valid/id"),
    "rows and ids differ": (edit_pickle(without_rows), r"valid/vision is no array"),
    "a pickle that runs": (edit_pickle(lambda content: {**content, "x": Exploit()}), "class 'builtins.exec'"),
    "no pickle": (lambda raw: (raw / "Processed/unaligned_50.pkl").unlink(), r"nothing for facet.*modalities=\[text\]"),
}


@pytest.fixture(scope="module")
def older(
    no_flush: None, sentiment_raw: Any, sentiment_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> SamplesTable:
    return prepare_mosei(sentiment_raw("csd"), tmp_path_factory.mktemp("older") / "samples", sentiment_options)


def check(
    raw: Path, harm: Callable[[Path], None], message: str, options: dict[str, Any], older: SamplesTable, out: Path
) -> None:
    shutil.copytree(older.root, out)
    before = SamplesTable.read(out).digest()
    harm(raw)
    with pytest.raises(UserError, match=message) as caught:
        prepare_mosei(raw, out, options)
    assert "\n" not in str(caught.value)
    assert SamplesTable.read(out).digest() == before


@pytest.mark.parametrize("case", CSD)
def test_damaged_sequences_and_folds(
    sentiment_raw: Any, sentiment_options: dict[str, Any], older: SamplesTable, tmp_path: Path, case: str
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(sentiment_raw("csd"), raw, ignore=shutil.ignore_patterns("acoustic", "*OpenFace*", "*Vectors*"))
    check(raw, *CSD[case], {**sentiment_options, "modalities": ["text", "facet"]}, older, tmp_path / "out")


@pytest.mark.parametrize("case", MMSA)
def test_damaged_labels_and_pickles(
    sentiment_raw: Any, sentiment_options: dict[str, Any], older: SamplesTable, tmp_path: Path, case: str
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(sentiment_raw("mmsa"), raw, ignore=shutil.ignore_patterns("*.mp4"))
    check(raw, *MMSA[case], {**sentiment_options, "modalities": ["text", "facet"]}, older, tmp_path / "out")


def test_answers_without_a_column(sentiment_raw: Any, sentiment_options: dict[str, Any], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(sentiment_raw("raw") / "Raw", raw, ignore=shutil.ignore_patterns("*.wav", "*.mp4"))
    path = raw / "Labels/5000_batch_raw.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("Answer.fear", "Fear", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"5000_batch_raw.csv lacks the columns \['Answer.fear'\]"):
        prepare_mosei(raw, tmp_path / "out", sentiment_options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "ternary"}, "task"),
        ({"colour": True}, "colour"),
        ({"modalities": ["text", "text"]}, "named twice"),
        ({"modalities": ["smell"]}, "modalities"),
        ({"modalities": []}, "modalities"),
        ({"modalities": ["audio"]}, r"nothing for audio.*modalities=\[covarep,facet,openface,text\]"),
        ({"workers": 0}, "workers"),
        ({"folds": None}, "options.folds"),
    ],
)
def test_bad_options(
    sentiment_raw: Any, sentiment_options: dict[str, Any], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare_mosei(sentiment_raw("csd"), tmp_path / "out", {**sentiment_options, **options})


def test_emotions_need_the_label_file(sentiment_raw: Any, sentiment_options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No segment.*label 0"):
        prepare_mosei(sentiment_raw("mmsa"), tmp_path / "out", {**sentiment_options, "task": "emotions"})


def test_places_that_would_be_lost_are_refused(
    sentiment_raw: Any, sentiment_options: dict[str, Any], tmp_path: Path
) -> None:
    raw = sentiment_raw("csd")
    (tmp_path / "mine.txt").write_text("keep me")
    for out, message in (
        (tmp_path, "no samples table"),
        (raw / "samples", "in each other"),
        (raw.parent, "each"),
    ):
        with pytest.raises(UserError, match=message):
            prepare_mosei(raw, out, sentiment_options)
    with pytest.raises(UserError, match="There is no folder"):
        prepare_mosei(tmp_path / "absent", tmp_path / "out", sentiment_options)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
