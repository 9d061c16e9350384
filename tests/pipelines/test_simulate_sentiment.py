"""The simulated corpus: the same bytes twice, the real files' layout, misleading rows, a signal in every modality."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
import soundfile

from cache.errors import UserError
from pipelines.simulate.sentiment.cases import case_videos
from pipelines.simulate.sentiment.corpus import LAYOUTS, simulate_sentiment
from pipelines.simulate.sentiment.plan import MODALITIES, ordinary_videos

VIDEOS = 5


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentiment") / "raw"
    simulate_sentiment(folder, "raw", VIDEOS, seed=3)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_seed_same_bytes_and_nothing_temporary_is_left(raw: Path, tmp_path: Path, layout: str) -> None:
    folder = tmp_path / layout
    simulate_sentiment(folder, layout, VIDEOS, seed=3)  # type: ignore[arg-type]
    first = digests(folder)
    if layout == "csd":
        simulate_sentiment(folder, layout, VIDEOS, seed=4)  # type: ignore[arg-type]
        assert digests(folder)["acoustic/CMU_MOSEI_COVAREP.csd"] != first["acoustic/CMU_MOSEI_COVAREP.csd"]
        assert {name: first[name] for name in first if name != "expected.json"}.items() <= digests(raw).items()
    if layout == "raw":
        assert first == digests(raw)
    if layout == "mmsa":
        simulate_sentiment(folder, layout, VIDEOS, seed=3)  # type: ignore[arg-type]
        assert digests(folder) == first
    assert [path.name for path in tmp_path.iterdir()] == [layout]


def test_csd_files_have_the_sdk_s_layout(raw: Path) -> None:
    widths = {}
    for path in sorted(raw.rglob("*.csd")):
        with h5py.File(path) as file:
            (root,) = file
            assert set(file[root]) == {"data", "metadata"}
            for group in file[f"{root}/data"].values():
                assert len(group["features"]) == len(group["intervals"])
                assert group["intervals"].shape[1] == 2
            widths[path.stem] = group["features"].shape[1]
    assert widths == {
        "CMU_MOSEI_Labels": 7,
        "CMU_MOSEI_TimestampedWords": 1,
        "CMU_MOSEI_TimestampedWordVectors": 300,
        "CMU_MOSEI_COVAREP": 74,
        "CMU_MOSEI_VisualFacet42": 35,
        "CMU_MOSEI_VisualOpenFace2": 713,
    }


def test_label_rows_are_the_plan_s(raw: Path) -> None:
    expected = json.loads((raw / "expected.json").read_text())
    with h5py.File(raw / "labels/CMU_MOSEI_Labels.csd") as file:
        data = file["All Labels/data"]
        assert sum(len(group["features"]) for group in data.values()) == expected["rows"]
        starts = data["_x___y_1Az/intervals"][:, 0].tolist()
        assert starts == sorted(starts, reverse=True)
        for facts in expected["segments"].values():
            group = data[facts["video"]]
            at = np.flatnonzero(np.isclose(group["intervals"][:, 1], facts["end"]))
            assert facts["sentiment"] == pytest.approx(group["features"][at[-1], 0], abs=1e-6)
    assert expected["samples"] == len(expected["segments"])
    assert expected["rows"] == expected["samples"] + len(expected["dropped"]) + expected["duplicates"]


def test_answers_average_to_the_label(raw: Path) -> None:
    expected = json.loads((raw / "expected.json").read_text())
    found: dict[tuple[str, str], list[float]] = {}
    for path in (raw / "Raw/Labels").iterdir():
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if row["Answer.sentiment"].lstrip("-").isdigit():
                    key = (row["Input.VIDEO_ID"].split("/")[-1], row["Input.CLIP"])
                    found.setdefault(key, []).append(float(row["Answer.sentiment"]))
    means = {name: np.mean(values) for name, values in found.items()}
    for name in ("ten_fourths", "too_large", "minus_third", "three"):
        facts = expected["segments"][name]
        clip = {"minus_third": "0", "three": "1", "ten_fourths": "2", "too_large": "3"}[name]
        assert means[facts["video"], clip] == pytest.approx(facts["sentiment"])
    assert len(found["lAbElVaLuEs", "2"]) == 4


def test_media_have_the_oddities_of_their_cases(raw: Path) -> None:
    sounds, films = raw / "Raw/Audio/Full/WAV_16000", raw / "Raw/Videos/Full/Combined"
    assert soundfile.info(sounds / "102858.wav").frames == 0
    assert soundfile.info(sounds / "hN3kJ8sPq2L.wav").channels == 2
    assert soundfile.info(sounds / "8404.wav").duration == 10
    assert not (sounds / "zQ9wE7rT5yU.wav").exists()
    with pytest.raises(av.error.FFmpegError):
        av.open(str(films / "truncated1A.mp4")).close()
    with av.open(str(films / "8404.mp4")) as container:
        assert container.streams.video[0].frames == 14 * 5
        assert container.streams.audio[0].rate == 16_000


def test_each_modality_sees_a_part_and_all_together_more() -> None:
    random = np.random.default_rng(0)
    segments = [s for v in ordinary_videos(300, random) for s in v.segments]
    score = np.array([[s.severity[m] for m in MODALITIES] for s in segments])
    sentiment = np.array([s.sentiment for s in segments])
    alone = [np.corrcoef(column, sentiment)[0, 1] for column in score.T]
    assert all(0.4 < value < 0.85 for value in alone)
    assert np.corrcoef(score.mean(1), sentiment)[0, 1] > 0.95


def test_case_names_are_unique_and_words_lie_in_their_sentence() -> None:
    segments = [s for v in case_videos(np.random.default_rng(0)) for s in v.segments]
    assert len({s.name for s in segments}) == len(segments)
    for segment in segments:
        assert all(segment.start <= (a + b) / 2 <= segment.end for _, a, b in segment.spoken), segment.name


def test_the_error_of_an_absent_modality_names_the_command_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_line: Any
) -> None:
    params = Path(__file__).parents[2] / "params.yaml"
    monkeypatch.chdir(tmp_path)
    assert run_line("simulate", "sentiment", "--layout", "csd", "--videos", "5")[0] == 0
    words = ("prepare", "mosei", "--raw", "data/raw/mosei", "--params", params)
    code, _, err = run_line(*words)
    assert code == 2
    assert "holds nothing for audio" in err
    change = err.partition("--set '")[2].partition("'")[0]
    code, out, _ = run_line(*words, "--set", change)
    assert code == 0
    assert "wrote data/mosei/samples" in out
    assert run_line(*words, "--set", change, "--set", "datasets.mosei.options.folds=null")[0] == 2


def test_refuses_too_few_videos_and_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 5"):
        simulate_sentiment(tmp_path / "few", "csd", 2, seed=0)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="no simulated corpus"):
        simulate_sentiment(tmp_path, "csd", VIDEOS, seed=0)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
