"""What a raw folder of CMU-MOSEI offers for a segment: its text, where its sound and film lie, its series.

One form for both kinds of raw folder, so that everything after it is shared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from extract.sources.mosei.csd import dimension_names, find_sequences
from extract.sources.mosei.features import FEATURES, Found, sequence_series
from extract.sources.mosei.media import Cut, find_media
from extract.sources.mosei.mmsa import KEYS, find_pickle, mmsa_clips, mmsa_segments, pickle_series
from extract.sources.mosei.options import Options
from extract.sources.mosei.sdk import Sentence, answer_segments, label_segments, matching, read_transcripts, word_reader
from extract.sources.mosei.segments import Funnel, Segment


@dataclass(frozen=True)
class Inputs:
    """A raw folder's content; each function returns None for what the folder lacks."""

    source: str
    """Where the labels come from."""
    modalities: frozenset[str]
    """Those that the folder has for any segment."""
    text: Callable[[Segment], str | None]
    sound: Callable[[Segment], Cut | None]
    film: Callable[[Segment], Cut | None]
    series: Callable[[str, Sequence[Segment]], Iterator[tuple[str, dict[str, Found]]]]
    """A modality's videos with the series of their segments."""
    columns: Callable[[str], list[str]]
    """Names of a modality's columns, empty where the folder does not say."""
    bins_per_second: float | None


def open_sdk(raw: Path, options: Options, funnel: Funnel) -> tuple[list[Segment], Inputs] | None:
    """Return segments and inputs of the authors' files; None where the folder has no labels of theirs."""
    sequences = find_sequences(raw)
    answers = [path for path in raw.rglob("*.csv") if path.parent.name == "Labels"]
    if "labels" not in sequences and not answers:
        return None
    transcripts = read_transcripts(raw, funnel.counts)
    if "labels" in sequences:
        segments = label_segments(sequences["labels"], funnel.counts)
    else:
        segments = answer_segments(answers, transcripts, funnel.counts)
    sounds, films = find_media(raw, ".wav"), find_media(raw, ".mp4")
    words = word_reader(sequences.get("words"))
    there = {"text": bool(transcripts) or "words" in sequences, "audio": bool(sounds or films), "video": bool(films)}
    return segments, Inputs(
        source="CMU_MOSEI_Labels" if "labels" in sequences else "annotators' answers",
        modalities=frozenset({name for name, has in there.items() if has} | (sequences.keys() & set(FEATURES))),
        text=lambda segment: _sdk_text(segment, transcripts, words, options),
        sound=lambda segment: _cut(segment, sounds.get(segment.video) or films.get(segment.video)),
        film=lambda segment: _cut(segment, films.get(segment.video)),
        series=lambda name, chosen: sequence_series(sequences[name], chosen, options.feature_bins_per_second),
        columns=lambda name: dimension_names(sequences[name]),
        bins_per_second=options.feature_bins_per_second,
    )


def open_mmsa(raw: Path) -> tuple[list[Segment], Inputs] | None:
    """Return segments and inputs of MMSA's files; None where there is no label.csv."""
    labels = raw / "label.csv"
    if not labels.is_file():
        return None
    clips, pickled = mmsa_clips(raw), find_pickle(raw)
    media = {"audio", "video"} if clips else set()

    def whole(segment: Segment) -> Cut | None:
        path = clips.get((segment.video, segment.clip or ""))
        return None if path is None else Cut(path, 0.0, float("inf"))

    def series(name: str, chosen: Sequence[Segment]) -> Iterator[tuple[str, dict[str, Found]]]:
        assert pickled is not None
        return pickle_series(pickled, chosen, name)

    return mmsa_segments(labels), Inputs(
        source="MMSA's label.csv",
        modalities=frozenset({"text"} | media | (set(KEYS) if pickled else set())),
        text=lambda segment: segment.text,
        sound=whole,
        film=whole,
        series=series,
        columns=lambda name: [],
        bins_per_second=None,
    )


def _cut(segment: Segment, path: Path | None) -> Cut | None:
    return None if path is None else Cut(path, segment.start, segment.end)


def _sdk_text(
    segment: Segment,
    transcripts: Mapping[str, Mapping[str, Sentence]],
    words: Callable[[Segment], str | None],
    options: Options,
) -> str | None:
    """Return the sentence that fits, else the words inside; None where neither knows the video."""
    sentences = transcripts.get(segment.video, {})
    sentence = matching(sentences.values(), segment.start, segment.end, options.match_seconds, options.match_overlap)
    if sentence is not None and sentence.text:
        return sentence.text
    spoken = words(segment)
    return "" if spoken is None and sentences else spoken
