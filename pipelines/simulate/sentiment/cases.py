"""The named edge cases of the simulated sentiment corpus: one or more videos for each oddity of the real one.

Each case says beside its oddity what a correct preparation makes of it: kept, dropped with a reason, or a modality
missing with a reason.
"""

from collections.abc import Callable

import numpy as np

from pipelines.simulate.sentiment.plan import EMOTIONS, Segment, Video, make_segment, timed

NAN = float("nan")
Make = Callable[..., Segment]
FOLDS_WITHOUT_LABELS = {"train": ("noLabels002",), "test": ("7l3BNtSE0xc",)}


def case_videos(random: np.random.Generator) -> list[Video]:
    """Return one video or more for every case."""

    def make(video: str) -> Make:
        return lambda name, clip, start, end, **changes: make_segment(random, name, video, clip, start, end, **changes)

    return [
        *(_odd_intervals(make), _nested(make), _unordered(make), _durations(make), _long(make)),
        *_odd_audio(make),
        *(_odd_features(make), _texts(make), _labels(make), _not_in_a_fold(make), _duplicate(make)),
    ]


def _odd_intervals(make: Callable[[str], Make]) -> Video:
    segment = make("-0aB_cD3eF9")
    segments = (
        segment("negative_start", 0, -0.4875, 3.2),
        segment("overlap_a", 1, 4.0, 8.5, speech=(4.5, 7.4)),
        segment("overlap_b", 2, 7.5, 12.0, speech=(8.6, 11.5)),
    )
    return Video("-0aB_cD3eF9", 13.0, "train", segments)


def _nested(make: Callable[[str], Make]) -> Video:
    """Two segments with one start: the longer holds the shorter one's word."""
    segment = make("180971")
    words = ("charming", "story", "with", "the", "actor")
    segments = (
        segment("nested_short", 0, 0.0, 0.572, text="well", spoken=(("well", 0.0, 0.572),)),
        segment("nested_long", 1, 0.0, 6.16, text=" ".join(("well", *words)), spoken=timed(words, 0.6, 5.66)),
        segment("zero", 2, 8.0, 11.0, sentiment=0.0, answers=("0", "-1", "1")),
    )
    return Video("180971", 12.0, "valid", segments)


def _unordered(make: Callable[[str], Make]) -> Video:
    """Clip numbers are not row numbers, and the transcript has sentences without a label."""
    segment = make("_x___y_1Az")
    segments = (
        segment("unordered_early", 2, 1.0, 4.0),
        segment("unordered_middle", 5, 6.5, 9.5),
        segment("unordered_late", 7, 12.0, 15.0),
    )
    extra = ((0, 0.0, 0.4), (3, 4.6, 5.4), (4, 5.5, 6.3), (6, 10.2, 11.0))
    return Video("_x___y_1Az", 16.0, "test", segments, shuffled=True, extra_clips=extra)


def _durations(make: Callable[[str], Make]) -> Video:
    segment = make("dUrAtIoN012")
    words = [("plot", "scene", "funny", "film")[i % 4] + str(i) for i in range(300)]
    segments = (
        segment("very_short", 0, 2.0, 2.12, text="no", spoken=(("no", 2.0, 2.12),)),
        segment("zero_length", 1, 4.0, 4.0, dropped="interval of no length"),
        segment("long_text", 2, 6.0, 14.0, text=" ".join(words), spoken=timed(words, 6.5, 13.5)),
    )
    return Video("dUrAtIoN012", 15.0, "valid", segments)


def _long(make: Callable[[str], Make]) -> Video:
    """The longest segment; its video is absent from COVAREP."""
    segments = (make("Lo-ngerTha_")("very_long", 0, 0.5, 109.9, missing={"covarep": "not_in_source"}),)
    return Video("Lo-ngerTha_", 110.0, "train", segments, wav="slow", in_covarep=False)


def _odd_audio(make: Callable[[str], Make]) -> list[Video]:
    """Media that end early, hold nothing, are damaged or absent; the features are there all the same."""
    short, cut = make("8404"), make("truncated1A")
    gone, unreadable = {"audio": "not_recorded"}, {"video": "unreadable"}
    absent = {"audio": "not_in_source", "video": "not_in_source"}
    ended = (short("beyond_end", 0, 7.0, 12.0), short("after_end", 1, 12.5, 13.5, missing=gone))
    halves = (
        cut("before_cut", 0, 1.0, 4.0, missing=unreadable),
        cut("after_cut", 1, 10.0, 13.0, missing={**gone, **unreadable}),
    )
    header = make("102858")("header_only", 0, 1.0, 4.0, missing={"audio": "empty"})
    silent = make("zQ9wE7rT5yU")("no_media", 0, 1.0, 4.0, missing=absent)
    black = make("aLlBlackFlm")("black", 0, 1.0, 4.0, missing={"video": "empty"})
    return [
        Video("8404", 14.0, "train", ended, wav="short", wav_seconds=10.0),
        Video("truncated1A", 20.0, "train", halves, wav="truncated", wav_seconds=5.0, film="truncated"),
        Video("102858", 6.0, "train", (header,), wav="header_only"),
        Video("hN3kJ8sPq2L", 8.0, "test", (make("hN3kJ8sPq2L")("stereo_44khz", 0, 1.5, 5.25),), wav="stereo"),
        Video("zQ9wE7rT5yU", 6.0, "train", (silent,), wav="absent", film="absent"),
        Video("aLlBlackFlm", 6.0, "train", (black,), film="black"),
    ]


def _odd_features(make: Callable[[str], Make]) -> Video:
    segment = make("cOvArEp-bad")
    segments = (
        segment("covarep_nonfinite", 0, 1.0, 4.0, harm="covarep_nonfinite"),
        segment("covarep_zero", 1, 5.5, 8.5, harm="covarep_zero", missing={"covarep": "empty"}),
        segment("facet_zero", 2, 10.0, 13.0, harm="facet_zero", missing={"facet": "empty"}),
    )
    return Video("cOvArEp-bad", 14.0, "test", segments)


def _texts(make: Callable[[str], Make]) -> Video:
    segment = make("wOrDs-only1")
    said = ("None", "a ___ b ___c", 'she said "it\'s, fine", 5___6', "naïve — 映画 was good")
    names = ("text_none", "text_underscores", "text_quotes", "text_unicode")
    segments = [segment("only_pauses", 0, 0.5, 3.5, text="", spoken=(("sp", 1.0, 3.0),), missing={"text": "empty"})]
    for place, (name, text) in enumerate(zip(names, said, strict=True), 1):
        start = 5.0 * place
        words = timed(text.split(), start + 0.5, start + 2.5)
        segments.append(segment(name, place, start, start + 3, text=text, spoken=words))
    return Video("wOrDs-only1", 25.0, "train", tuple(segments))


def _labels(make: Callable[[str], Make]) -> Video:
    segment = make("lAbElVaLuEs")
    nothing = {"sentiment": NAN, "answers": ("", "none", "n/a"), "emotions": (NAN,) * len(EMOTIONS)}
    segments = (
        segment("minus_third", 0, 1.0, 4.0, sentiment=-1 / 3, answers=("-1", "0", "0")),
        segment("three", 1, 5.0, 8.0, sentiment=3.0, answers=("3", "3", "3", "not a number")),
        segment("ten_fourths", 2, 9.0, 12.0, sentiment=10 / 4, answers=("3", "3", "2", "2")),
        segment("too_large", 3, 13.0, 16.0, sentiment=11 / 3, answers=("4", "4", "3")),
        segment("nan_label", 4, 17.0, 20.0, **nothing, dropped="no label"),
    )
    return Video("lAbElVaLuEs", 21.0, "train", segments)


def _not_in_a_fold(make: Callable[[str], Make]) -> Video:
    return Video("notInAnyFld", 6.0, None, (make("notInAnyFld")("no_fold", 0, 1.0, 4.0, dropped="video in no fold"),))


def _duplicate(make: Callable[[str], Make]) -> Video:
    segment = make("duplicate_A")
    segments = (segment("duplicated", 0, 1.0, 4.0, copies=2), segment("beside_duplicate", 1, 6.0, 8.5))
    return Video("duplicate_A", 9.0, "valid", segments)
