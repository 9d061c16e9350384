"""The simulated corpus as CMU-MOSEI's Raw folders: waveforms, films, transcripts, and the annotators' answers.

One row an annotator in the answers, some with a path before the video's id; some transcripts without a last newline.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.simulate.sentiment.media import write_film, write_wav
from pipelines.simulate.sentiment.plan import EMOTIONS, Segment, Video

ANSWERS = {"happy": "happiness", "sad": "sadness"}
COLUMNS = ("HITId", "WorkerId", "Input.VIDEO_ID", "Input.CLIP", "Answer.sentiment")


def write_raw(root: Path, videos: Sequence[Video]) -> None:
    """Write `Audio/`, `Videos/`, `Transcript/` and `Labels/`."""
    for video in videos:
        write_wav(root / f"Audio/Full/WAV_16000/{video.id}.wav", video)
        write_film(root / f"Videos/Full/Combined/{video.id}.mp4", video, 0, video.seconds)
        _write_transcript(root / f"Transcript/Segmented/Combined/{video.id}.txt", video)
    _write_answers(root / "Labels", videos)


def _write_transcript(path: Path, video: Video) -> None:
    clips = [(s.clip, *s.said, s.text) for s in video.segments]
    clips += [(clip, start, end, "nobody labelled this") for clip, start, end in video.extra_clips]
    lines = [f"{video.id}___{clip}___{start}___{end}___{text}" for clip, start, end, text in sorted(clips)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + ("\n" if len(lines) % 2 else ""), encoding="utf-8")


def _write_answers(root: Path, videos: Sequence[Video]) -> None:
    """Write two files of answers, as the real corpus has several; every segment's rows are in one of them."""
    root.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(("5000_batch_raw.csv", "mturk_extra_v2.csv")):
        with (root / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow([*COLUMNS, *(f"Answer.{ANSWERS.get(e, e)}" for e in EMOTIONS)])
            for number, video in enumerate(videos):
                if number % 2 == place:
                    writer.writerows(row for s in video.segments for row in _answers(s, with_path=number % 3 == 0))


def _answers(segment: Segment, with_path: bool) -> Iterator[list[str]]:
    name = f"/data/mturk/{segment.video}" if with_path else segment.video
    for number, sentiment in enumerate(segment.answers):
        emotions = ["" if value != value else repr(value) for value in segment.emotions]
        yield [f"H{segment.clip}", f"W{number}", name, str(segment.clip), sentiment, *emotions]
