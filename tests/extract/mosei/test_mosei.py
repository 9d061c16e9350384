"""CMU-MOSEI on the simulated corpus: every edge case against expected.json, from each of the three layouts."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import soundfile

from extract.samples import SPLITS, SamplesTable
from extract.sources.mosei.prepare import prepare_mosei
from extract.values import TimeSeries, Video, Waveform, read_value

pytestmark = pytest.mark.usefixtures("no_flush")
MODALITIES = {
    "csd": ["text", "covarep", "facet", "openface"],
    "raw": ["text", "audio", "video", "covarep", "facet"],
    "mmsa": ["text", "audio", "video", "covarep", "facet"],
}
DISTURBED = {"overlap_a", "nested_short", "nested_long"}  # later segments sound over them
Case = tuple[SamplesTable, dict[str, Any]]


def series(table: SamplesTable, row: Any, name: str) -> np.ndarray:
    value = read_value(table, row, name)
    assert isinstance(value, TimeSeries)
    return value.values


@pytest.fixture(scope="module")
def prepared(
    no_flush: None, sentiment_raw: Any, sentiment_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    done: dict[str, Case] = {}

    def prepare(layout: str) -> Case:
        if layout not in done:
            raw, out = sentiment_raw(layout), tmp_path_factory.mktemp("out") / "samples"
            prepare_mosei(raw, out, {**sentiment_options, "modalities": MODALITIES[layout]})
            done[layout] = SamplesTable.read(out), json.loads((raw / "expected.json").read_text())
        return done[layout]

    return prepare


@pytest.fixture(params=["csd", "raw", "mmsa"])
def case(request: pytest.FixtureRequest, prepared: Any) -> Case:
    result: Case = prepared(request.param)
    return result


def named(table: SamplesTable, expected: dict[str, Any]) -> dict[str, Any]:
    """Return the table's rows by the names of the plan."""
    rows = {row["sample_id"]: row for _, row in table.frame.iterrows()}
    return {name: rows[facts["id"]] for name, facts in expected["segments"].items()}


def test_every_segment_is_what_the_plan_says(case: Case) -> None:
    table, expected = case
    rows = named(table, expected)
    assert len(rows) == len(table.frame) == expected["samples"]
    for name, facts in expected["segments"].items():
        row = rows[name]
        assert (row["group_id"], row["split"]) == (facts["video"], facts["split"]), name
        assert row["label"] == pytest.approx(min(3, max(-3, facts["sentiment"])), abs=1e-6), name
        assert (None if pd.isna(row["text_text"]) else row["text_text"]) == facts["text"], name
        reasons = {m: row[f"{m}_missing_reason"] for m in table.modalities}
        known = {m: reason for m, reason in reasons.items() if not pd.isna(reason)}
        assert known == {m: r for m, r in facts["missing"].items() if m in table.modalities}, name
        if expected["layout"] != "mmsa":
            assert (row["start_seconds"], row["end_seconds"]) == (facts["start"], facts["end"]), name


def test_what_is_left_out_is_logged_with_its_reason(case: Case) -> None:
    table, expected = case
    dropped = pd.read_parquet(table.root / "dropped.parquet")
    reasons = dict(zip(dropped["source_id"], dropped["reason"], strict=True))
    for facts in expected["dropped"].values():
        assert reasons.pop(facts["id"]) == facts["reason"]
    assert list(reasons.values()) == ["listed twice"] * expected["duplicates"]
    assert table.info.counts[0].kept == expected["rows"] == len(table.frame) + len(dropped)
    by_interval = {"start before the video, set to 0": 1, "shorter than 0.5 s": 1, "fold ids without a label": 2}
    repaired = {"sentiment clipped to -3 .. 3": 1, **({} if expected["layout"] == "mmsa" else by_interval)}
    assert table.info.source["rules"] == repaired


def test_layouts_give_the_same_rows(prepared: Any) -> None:
    columns = ["group_id", "split", "label", "text_text"]
    content = {}
    for layout in MODALITIES:
        rows = named(*prepared(layout))
        content[layout] = pd.DataFrame(rows).T[columns].astype(str)
    pd.testing.assert_frame_equal(content["csd"], content["raw"])
    pd.testing.assert_frame_equal(content["csd"], content["mmsa"])


def test_invariants_of_every_table(case: Case) -> None:
    table, _ = case
    frame = table.frame
    assert frame["sample_id"].is_unique
    assert (frame.groupby("group_id")["split"].nunique() == 1).all()
    assert set(frame["split"]) == set(SPLITS)
    cells = []
    for spec in table.info.modalities:
        assert (frame[spec.column].isna() == frame[f"{spec.name}_missing_reason"].notna()).all()
        if spec.column.endswith("_path"):
            cells += [cell.partition("#")[0] for cell in frame[spec.column].dropna()]
    named_files = {table.root / cell for cell in cells}
    tables = {table.root / name for name in ("samples.parquet", "dropped.parquet", "dataset.json")}
    assert {path for path in table.root.rglob("*") if path.is_file()} == named_files | tables
    assert str(table.root.parent) not in (table.root / "dataset.json").read_text()
    for _, row in frame.iterrows():
        for spec in table.info.modalities:
            if not pd.isna(row[spec.column]):
                value = read_value(table, row, spec.name)
                assert value.frames(2) if isinstance(value, Video) else value is not None


@pytest.mark.parametrize("layout", ["raw", "mmsa"])
def test_sound_is_the_segment_s(prepared: Any, layout: str) -> None:
    table, expected = prepared(layout)
    for name, row in named(table, expected).items():
        facts = expected["segments"][name]
        if facts["audio_seconds"] is None:
            continue
        sound = read_value(table, row, "audio")
        assert isinstance(sound, Waveform)
        assert sound.rate_hz == 16_000
        assert soundfile.info(table.root / row["audio_path"]).channels == 1
        tolerance = 1e-3 if layout == "raw" else 0.08  # a film's sound comes in packets
        assert len(sound.samples) / 16_000 == pytest.approx(facts["audio_seconds"], abs=tolerance), name
        if name not in DISTURBED and facts["audio_seconds"] > 1:
            middle = sound.samples[len(sound.samples) // 4 : -len(sound.samples) // 4]
            peak = np.abs(np.fft.rfft(middle)).argmax() * 16_000 / len(middle)
            assert peak == pytest.approx(400 * 2 ** (facts["severity"]["audio"] / 2), abs=2), name


@pytest.mark.parametrize("layout", ["raw", "mmsa"])
def test_film_is_the_segment_s(prepared: Any, layout: str) -> None:
    table, expected = prepared(layout)
    for name, row in named(table, expected).items():
        facts = expected["segments"][name]
        if pd.isna(row["video_path"]):
            continue
        with av.open(str(table.root / row["video_path"])) as container:
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert container.streams.video[0].average_rate == 5
        seconds = min(facts["end"], 109.9) - facts["start"]
        assert abs(len(pictures) - seconds * 5) <= 1.01, name
        if name not in DISTURBED and len(pictures) > 4:
            level = np.mean([picture.mean() for picture in pictures[1:-1]])
            row_of = np.clip(128 + 30 * facts["severity"]["video"] + np.linspace(-16, 16, 32), 0, 255)
            assert level == pytest.approx(row_of.mean(), abs=3), name


def test_series_are_the_segment_s(prepared: Any) -> None:
    table, expected = prepared("csd")
    rows = named(table, expected)
    telling = {"covarep": 1, "facet": 4}
    for name, row in rows.items():
        facts = expected["segments"][name]
        for modality, column in telling.items():
            if pd.isna(row[f"{modality}_path"]):
                continue
            values = series(table, row, modality)
            assert len(values) == max(1, math.ceil((facts["end"] - facts["start"]) * 10 - 1e-9)), name
            if name not in DISTURBED | {"overlap_b"} and len(values) > 20:
                noise = 4 / math.sqrt(len(values) * 3)
                assert np.nanmean(values[:, column]) == pytest.approx(facts["severity"][modality], abs=noise), name
    broken = series(table, rows["covarep_nonfinite"], "covarep")
    assert np.isnan(broken[:, 5]).all()
    assert np.isfinite(broken[:, [0, 1, 2, 3, 4, 6]]).all()  # -inf in a third of the frames leaves the bin's others
    assert table.modality("openface").channels[712] == "OpenFace_2 712"  # as the file's metadata name it
    assert table.modality("facet").channels[34] == "facet_34"  # metadata without names
    assert series(table, rows["three"], "openface").shape == (30, 713)


def test_padding_of_pickles_is_unobserved(prepared: Any) -> None:
    table, expected = prepared("mmsa")
    values = series(table, named(table, expected)["very_short"], "covarep")
    assert values.shape == (12, 74)  # of 60 steps
    assert np.isfinite(values).all()
    broken = series(table, named(table, expected)["covarep_nonfinite"], "covarep")
    assert np.isnan(broken[:, 5]).all()
    assert not np.isinf(broken).any()


def test_answers_of_annotators_stand_in_for_the_label_file(
    sentiment_raw: Any, sentiment_options: dict[str, Any], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(sentiment_raw("raw") / "Raw", raw, ignore=shutil.ignore_patterns("*.wav", "*.mp4"))
    shutil.copy(sentiment_raw("raw") / "folds.json", raw)
    table = prepare_mosei(raw, tmp_path / "out", sentiment_options)
    expected = json.loads((sentiment_raw("raw") / "expected.json").read_text())
    facts = {f["id_by_answers"]: f for f in expected["segments"].values() if f["text"] is not None}
    rows = table.frame.set_index("sample_id")
    assert set(rows.index) == set(facts)  # the segment without words has nothing else here
    for name, fact in facts.items():
        assert rows.loc[name, "label"] == pytest.approx(min(3, fact["sentiment"]), abs=1e-6), name
        assert rows.loc[name, "text_text"] == fact["text"]
    assert table.info.source["rules"]["answers that are not numbers"] == 3


def test_sound_of_the_film_stands_in_for_an_absent_wav(
    sentiment_raw: Any, sentiment_options: dict[str, Any], prepared: Any, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(sentiment_raw("raw"), raw, ignore=shutil.ignore_patterns("*.wav", "*COVAREP*", "*Face*"))
    table = prepare_mosei(raw, tmp_path / "out", {**sentiment_options, "modalities": ["audio"]})
    other, expected = prepared("raw")
    reference, rows = named(other, expected), {row["sample_id"]: row for _, row in table.frame.iterrows()}
    for name in ("overlap_b", "unordered_late", "stereo_44khz"):
        mine = read_value(table, rows[expected["segments"][name]["id"]], "audio")
        theirs = read_value(other, reference[name], "audio")
        assert isinstance(mine, Waveform)
        assert isinstance(theirs, Waveform)
        assert abs(len(mine.samples) - len(theirs.samples)) <= 1200
        length = min(len(mine.samples), len(theirs.samples)) - 3200
        peaks = [np.abs(np.fft.rfft(sound.samples[1600 : 1600 + length])).argmax() for sound in (mine, theirs)]
        assert abs(peaks[0] - peaks[1]) <= 1, name
