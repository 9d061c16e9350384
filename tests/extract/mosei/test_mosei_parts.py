"""CMU-MOSEI's parts against plain references: bins, matching by interval, transcripts, words, cuts of films."""

import math
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.sources.mosei.features import binned
from extract.sources.mosei.media import Cut, NotThere, find_media, write_film, write_sound
from extract.sources.mosei.sdk import Sentence, matching, read_transcripts, word_reader
from extract.sources.mosei.segments import Segment
from pipelines.simulate.sentiment.csd import write_csd


def reference_bins(
    frames: np.ndarray, intervals: np.ndarray, start: float, end: float, rate: float
) -> list[list[list[float]]]:
    """Return the observed values of each cell, bin by bin, column by column."""
    bins = max(1, math.ceil((end - start) * rate - 1e-9))
    cells: list[list[list[float]]] = [[[] for _ in range(frames.shape[1])] for _ in range(bins)]
    for frame, (a, b) in zip(frames, intervals, strict=True):
        middle = (a + b) / 2
        if start <= middle < end and any(frame != 0):
            for column, value in enumerate(frame.tolist()):
                if math.isfinite(value):
                    cells[min(int((middle - start) * rate), bins - 1)][column].append(value)
    return cells


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 3), st.floats(0.05, 4), st.sampled_from([1.0, 5.0, 10.0]))
def test_bins_are_means_of_what_was_observed(seed: int, start: float, length: float, rate: float) -> None:
    random = np.random.default_rng(seed)
    frames = random.normal(size=(60, 3))
    frames[random.random(60) < 0.2] = 0
    frames[random.random((60, 3)) < 0.1] = random.choice([np.nan, np.inf, -np.inf])
    starts = np.sort(random.uniform(0, 6, 60))
    intervals = np.stack([starts, starts + 0.1], 1)
    cells = reference_bins(frames, intervals, start, start + length, rate)
    found = binned(frames, intervals, start, start + length, rate)
    if not any(values for row in cells for values in row):
        assert found in ("empty", "not_recorded")
        return
    expected = [[np.mean(values) if values else np.nan for values in row] for row in cells]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_best_sentence_is_taken_and_a_poor_one_is_not() -> None:
    sentences = [Sentence("0", 0.0, 3.0, "a"), Sentence("4", 3.0, 6.0, "b"), Sentence("7", 6.2, 6.5, "c")]

    def clip(start: float, end: float) -> str | None:
        found = matching(sentences, start, end, seconds=0.6, overlap=0.5)
        return None if found is None else found.clip

    assert clip(-0.5, 3.5) == "0"
    assert clip(2.5, 6.5) == "4"
    assert clip(5.7, 7.0) == "7"  # little overlap, but both ends are padding away
    assert clip(0.2, 5.0) == "0"  # half of it
    assert clip(4.5, 12.0) is None
    assert clip(20.0, 22.0) is None
    assert matching([], 0, 1, 0.6, 0.5) is None


def test_transcript_lines_are_parsed_whatever_underscores_they_hold(tmp_path: Path) -> None:
    folder = tmp_path / "Raw/Transcript/Combined"
    folder.mkdir(parents=True)
    lines = ["_x___y___0___0.5___2___one ___ two___", "_x___y___12___2.0___4.25___", "no line of a transcript", ""]
    (folder / "_x___y.txt").write_text("\r\n".join(lines), encoding="utf-8")
    (tmp_path / "readme.txt").write_text("8404___0___1___2___not a transcript")
    counts: Counter[str] = Counter()
    assert read_transcripts(tmp_path, counts) == {
        "_x___y": {"0": Sentence("0", 0.5, 2.0, "one ___ two___"), "12": Sentence("12", 2.0, 4.25, "")}
    }
    assert counts == {"transcript lines of another form": 1}


def test_words_belong_to_the_segment_that_holds_their_middle(tmp_path: Path) -> None:
    words = np.array([[b"late"], [b"sp"], [b"early"], [b"na\xc3\xafve"]])
    intervals = np.array([[3.0, 4.0], [2.0, 3.0], [0.0, 1.0], [1.0, 2.2]])
    write_csd(tmp_path / "w.csd", "words", {"8404": (words, intervals)}, as_json=True, gzip=None)
    spoken = word_reader(tmp_path / "w.csd")

    def text(video: str, start: float, end: float) -> str | None:
        return spoken(Segment("s", video, start, end, 0.0, ()))

    assert text("8404", 0, 4) == "early naïve late"
    assert text("8404", 0.5, 1.59) == "early"
    assert text("8404", 2.3, 2.9) == ""
    assert text("other", 0, 4) is None
    assert word_reader(None)(Segment("s", "8404", 0, 4, 0.0, ())) is None


def brightness(number: int) -> int:
    return 20 + 15 * (number % 16)


def write_ramp(path: Path, seconds: float, rate: int, side: int = 64) -> None:
    """Write a film whose frames have the brightness 20, 35, ... 245, and again; every 12th is a key frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = side, side // 2, "yuv420p"
        stream.codec_context.qmin = stream.codec_context.qmax = 1
        for number in range(round(seconds * rate)):
            picture = np.full((side // 2, side, 3), brightness(number), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (1.37, 4.01), (2.0, 2.12), (5.99, 9.0), (7.9, 8.0)])
def test_pictures_are_what_the_film_shows_at_their_time(tmp_path: Path, start: float, end: float) -> None:
    write_ramp(tmp_path / "a.mp4", 8, 25)
    write_film(tmp_path / "b.mp4", Cut(tmp_path / "a.mp4", start, end), frames_per_second=5, pixels=16, quantiser=1)
    with av.open(str(tmp_path / "b.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    times = start + np.arange(math.ceil((min(end, 8.0) - start) * 5 - 1e-6)) / 5
    assert len(pictures) == len(times)
    assert pictures[0].shape == (16, 32, 3)
    shown = [float(picture.mean()) for picture in pictures]
    np.testing.assert_allclose(shown, [brightness(int(time * 25 + 1e-3)) for time in times], atol=6)


@pytest.mark.parametrize("start", [8.01, 60.0])
def test_a_film_that_ends_before_the_segment_is_not_recorded(tmp_path: Path, start: float) -> None:
    write_ramp(tmp_path / "a.mp4", 8, 25)
    cut = Cut(tmp_path / "a.mp4", start, start + 1)
    with pytest.raises(NotThere, match="not_recorded"):
        write_film(tmp_path / "b.mp4", cut, frames_per_second=5, pixels=16, quantiser=1)
    with pytest.raises(NotThere, match="not_in_source"):  # it has no sound at all
        write_sound(tmp_path / "b.wav", cut, 16_000)
    assert not list(tmp_path.glob("b.*"))


def test_sound_is_cut_to_the_sample(tmp_path: Path) -> None:
    samples = np.arange(16_000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    write_sound(tmp_path / "b.wav", Cut(tmp_path / "a.wav", 0.25, 0.5), 16_000)
    cut, rate = soundfile.read(tmp_path / "b.wav", dtype="int16")
    assert rate == 16_000
    np.testing.assert_allclose(cut, samples[4000:8000], atol=1)


def test_files_of_folders_named_full_come_first(tmp_path: Path) -> None:
    for name in ("Audio/Full/WAV_16000/a.wav", "Audio/a.wav", "Audio/Segmented/b.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {stem: path.relative_to(tmp_path).as_posix() for stem, path in find_media(tmp_path, ".wav").items()}
    assert found == {"a": "Audio/Full/WAV_16000/a.wav", "b": "Audio/Segmented/b.wav"}
