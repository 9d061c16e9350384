"""CMU-MOSEI as its authors distribute it: labels, folds and texts from computational sequences and Raw folders.

Labels come from the label file (`CMU_MOSEI_Labels.csd`) or, where there is none, from the annotators' answers
(`Labels/*.csv`), averaged over those that are numbers. Texts come from the sentence of the transcript whose interval
fits best, else from the timestamped words inside the segment.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from cache.errors import UserError
from extract.samples import SPLITS
from extract.sources.mosei.csd import ComputationalSequence
from extract.sources.mosei.segments import EMOTIONS, Segment, check_video, clamped

ANSWERS = ("sentiment", "happiness", "sadness", "anger", "surprise", "disgust", "fear")  # EMOTIONS' order
VIDEO, CLIP = "Input.VIDEO_ID", "Input.CLIP"
PAUSE = "sp"
SDK_FOLDS = {"standard_train_fold": "train", "standard_valid_fold": "valid", "standard_test_fold": "test"}
FOLDS_HELP = 'Give a .json file {"train": [ids], "valid": [ids], "test": [ids]}, or the SDK\'s cmu_mosei_std_folds.py.'


@dataclass(frozen=True)
class Sentence:
    """A line of a transcript; times in seconds."""

    clip: str
    start: float
    end: float
    text: str


def label_segments(path: Path, counts: Counter[str]) -> list[Segment]:
    """Return the segments of a label file.

    Raises:
        UserError: it cannot be read, or its features are not sentiment and six emotions.
    """
    segments = []
    with ComputationalSequence(path) as labels:
        for video in labels.videos():
            check_video(video, path)
            features, intervals = labels.read(video) or (np.empty((0, 7)), np.empty((0, 2)))
            if features.shape[1] != 1 + len(EMOTIONS) or not np.isfinite(intervals).all():
                raise UserError(
                    f"{path}: video {video} has {features.shape[1]} labels, or intervals that are not finite. "
                    f"7 are needed: sentiment, {', '.join(EMOTIONS)}. Use CMU_MOSEI_Labels.csd."
                )
            for row, (start, end) in zip(features.astype(np.float64).tolist(), intervals.tolist(), strict=True):
                segments.append(clamped(video, start, end, tuple(row), counts))
    return segments


def answer_segments(
    paths: Iterable[Path], transcripts: Mapping[str, Mapping[str, Sentence]], counts: Counter[str]
) -> list[Segment]:
    """Return the segments that annotators answered for, with the mean of the answers that are numbers.

    Args:
        paths: csv files, one row an annotator.
        transcripts: sentences by video and clip; a clip without a sentence has no interval and is counted.
        counts: of rows and answers left out.

    Raises:
        UserError: a file lacks a column.
    """
    rows = pd.concat([_read_answers(path, counts) for path in sorted(paths)], ignore_index=True)
    means = rows.groupby([VIDEO, CLIP], sort=True)[list(ANSWERS)].mean().reset_index()
    segments = []
    for video, clip, *labels in means.itertuples(index=False, name=None):
        sentence = transcripts.get(video, {}).get(clip)
        if sentence is None:
            counts["answered clips without a sentence in the transcripts"] += 1
        else:
            segments.append(clamped(video, sentence.start, sentence.end, tuple(map(float, labels)), counts))
    return segments


def _read_answers(path: Path, counts: Counter[str]) -> pd.DataFrame:
    frame = read_csv(path)
    columns = [VIDEO, CLIP, *(f"Answer.{name}" for name in ANSWERS)]
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        raise UserError(f"{path} lacks the columns {absent}. Take it out of the folder, or download it again.")
    result = frame[[VIDEO, CLIP]].copy()
    result[VIDEO] = [check_video(PurePosixPath(name).name.removesuffix(".mp4"), path) for name in frame[VIDEO]]
    for name in ANSWERS:
        given = frame[f"Answer.{name}"].str.strip()
        result[name] = pd.to_numeric(given, errors="coerce").where(lambda v: np.isfinite(v))
        counts["answers that are not numbers"] += int((result[name].isna() & (given != "")).sum())
    return result


def read_csv(path: Path) -> pd.DataFrame:
    """Read a csv of texts: ids keep their zeros, and "None" and "NA" are texts.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' own errors and bad encodings are ValueErrors
        raise UserError(f"{path} cannot be read as a csv file ({type(error).__name__}). Download it again.") from error


def read_folds(path: Path) -> dict[str, str]:
    """Return the split of each video.

    Raises:
        UserError: the file is absent or malformed, an id is no text, or an id is in two folds.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}, which names the folds (options.folds). {FOLDS_HELP}")
    try:
        text = path.read_text(encoding="utf-8")
        lists = _assignments(text) if path.suffix == ".py" else json.loads(text)
        pairs = [(video, split) for split in SPLITS for video in lists[split]]
    except (OSError, ValueError, SyntaxError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold the lists of three folds ({type(error).__name__}). {FOLDS_HELP}"
        ) from error
    if not all(isinstance(video, str) for video, _ in pairs):
        raise UserError(f'{path}: ids must be texts, also those of digits only, such as "8404". {FOLDS_HELP}')
    folds: dict[str, str] = {}
    for video, split in pairs:
        if folds.setdefault(video, split) != split:
            raise UserError(f"{path}: video {video} is in the folds {folds[video]} and {split}. Leave one.")
    return folds


def _assignments(text: str) -> dict[str, list[str]]:
    """Return the SDK's three lists; the file is parsed, never run."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in SDK_FOLDS:
            found[SDK_FOLDS[node.targets[0].id]] = ast.literal_eval(node.value)
    return found


def read_transcripts(raw: Path, counts: Counter[str]) -> dict[str, dict[str, Sentence]]:
    """Return the sentences by video and clip of every `<video>.txt` below a folder named Transcript.

    A line is `<video>___<clip>___<start>___<end>___<text>`; ids and texts may hold underscores themselves.
    """
    transcripts: dict[str, dict[str, Sentence]] = {}
    for path in sorted(raw.rglob("*.txt")):
        if not any(part.lower() == "transcript" for part in path.relative_to(raw).parts[:-1]):
            continue
        form = re.compile(re.escape(path.stem) + r"___(\d+)___(-?[\d.]+)___(-?[\d.]+)___(.*)")
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            match = form.fullmatch(line.rstrip("\r"))
            if match is None:
                counts["transcript lines of another form"] += bool(line.strip())
                continue
            clip, start, end, text = match.groups()
            sentence = Sentence(clip, float(start), float(end), text.strip())
            transcripts.setdefault(path.stem, {})[clip] = sentence
    return transcripts


def matching(
    sentences: Iterable[Sentence], start: float, end: float, seconds: float, overlap: float
) -> Sentence | None:
    """Return the sentence whose interval fits best, by intersection over union.

    Args:
        sentences: sentences of the video.
        start: start of the segment in seconds.
        end: its end.
        seconds: both ends may differ by so much: the label file's intervals are padded;
        overlap: or intersection over union must be at least this.
    """

    def fit(sentence: Sentence) -> tuple[float, float]:
        shared = min(end, sentence.end) - max(start, sentence.start)
        union = max(end, sentence.end) - min(start, sentence.start)
        return (max(0.0, shared) / union if union > 0 else 0.0, -sentence.start)

    best = max(sentences, key=fit, default=None)
    if best is None:
        return None
    near = max(abs(best.start - start), abs(best.end - end)) <= seconds
    return best if near or fit(best)[0] >= overlap else None


def word_reader(path: Path | None) -> Callable[[Segment], str | None]:
    """Return a function that gives the words whose middle lies in a segment; None where the file lacks the video."""
    if path is None:
        return lambda segment: None
    words: dict[str, tuple[list[str], np.ndarray]] = {}
    with ComputationalSequence(path) as sequence:
        for video in sequence.videos():
            features, intervals = sequence.read(video) or (np.empty((0, 1)), np.empty((0, 2)))
            words[video] = ([_decoded(word) for word in features[:, 0].tolist()], intervals.mean(axis=1))

    def spoken(segment: Segment) -> str | None:
        if segment.video not in words:
            return None
        texts, middles = words[segment.video]
        order = np.argsort(middles, kind="stable")
        inside = [texts[i] for i in order if segment.start <= middles[i] <= segment.end]
        return " ".join(word for word in inside if word not in ("", PAUSE))

    return spoken


def _decoded(word: object) -> str:
    return (word.decode("utf-8", errors="replace") if isinstance(word, bytes) else str(word)).strip()
