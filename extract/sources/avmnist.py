"""avMNIST by the protocol of SMIL and ShaSpec: written digits (MNIST) paired with spoken ones (FSDD).

1,500 pairs, 150 a digit. Audio: speakers jackson, nicolas and theo; takes 0-14 are the test, 15-49 the training part.
Images: the first 105 of a digit's MNIST training images in string order of "<index>.png", the last 45 of its test
images. The j-th image goes with the j-th clip in order of file names, so speaker after speaker. In the training part
only some clips of each digit are kept, as many of each speaker; the test keeps all. The clips of a lower rate are among
those of a higher one, and the validation split is the same at every rate, so that rates compare on the same rows.

Files are copied below the table's root (10 MB at most), where a table keeps its files. It takes 5 to 20 seconds, most
of them for flushing 2,000 small files to disk.
"""

import gzip
import math
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from PIL import Image

from cache.errors import UserError
from cache.publish import publish_folder
from extract.samples import CountStep, DatasetInfo, ModalitySpec, SamplesTable
from extract.sources.splits import hash_fraction, stratified_share
from extract.task import LabelSpec

DIGITS = range(10)
SPEAKERS = ("jackson", "nicolas", "theo")
TEST_TAKES, TRAIN_TAKES = range(15), range(15, 50)
TAKES = {"train": TRAIN_TAKES, "test": TEST_TAKES}
IDX_NAMES = {"train": "train", "test": "t10k"}
OPTIONS = {"audio_rate", "valid_share", "split_seed"}
OPTIONAL = {"audio_seed"}
REASON = "left out of training by the protocol"


def prepare_avmnist(raw: tuple[Path, Path], out: Path, options: Mapping[str, Any]) -> SamplesTable:
    """Write the samples table with its images and clips.

    Args:
        raw: folder of MNIST's four idx files (gzip or plain); folder of the wav files, or the one above its
            `recordings`.
        out: folder to write: table, `images/`, `audio/`.
        options: audio_rate, share of the training part's clips that are kept, in (0, 1]; valid_share of the training
            part; split_seed, which draws both; audio_seed, if given, draws the kept clips alone.

    Raises:
        UserError: an option is out of range, or a raw file is absent or damaged.
    """
    kept_per_speaker = _check_options(options)
    mnist, fsdd = raw
    clips = _clip_folder(fsdd)
    images = {part: _read_mnist(mnist, part) for part in TAKES}
    rows = [row for part in TAKES for digit in DIGITS for row in _pairs(part, digit, images[part][1])]
    frame = pd.DataFrame(rows)
    _set_valid(frame, float(options["valid_share"]), f"avmnist-valid:{options['split_seed']}")
    audio_seed = options.get("audio_seed")
    _drop_audio(frame, kept_per_speaker, f"avmnist-audio:{options['split_seed'] if audio_seed is None else audio_seed}")
    _publish_files(frame, {part: pixels for part, (pixels, _) in images.items()}, clips, out)
    columns = ["sample_id", "group_id", "split", "label", "image_path", "audio_path", "audio_missing_reason"]
    dropped = pd.DataFrame([], columns=["source_id", "step", "reason"], dtype=str)
    return SamplesTable.write(out, _info(frame, options), frame[columns], dropped)


def clips_per_speaker(rate: float) -> int:
    """Return how many of a speaker's 35 training takes of a digit are kept, halves rounded up.

    Equal numbers per speaker make n = 3 x this: 6, 12, 15 and 21 of 105 at 5, 10, 15 and 20 %.
    """
    return math.floor(rate * len(TRAIN_TAKES) + 0.5)


def _check_options(options: Mapping[str, Any]) -> int:
    if set(options) - OPTIONAL != OPTIONS:
        raise UserError(
            f"Options of avmnist are {sorted(OPTIONS)} and optionally {sorted(OPTIONAL)}; given: {sorted(options)}."
        )
    try:
        rate, share = float(options["audio_rate"]), float(options["valid_share"])
    except (TypeError, ValueError) as error:
        raise UserError(f"audio_rate and valid_share of avmnist must be numbers; given: {dict(options)}.") from error
    kept = clips_per_speaker(rate) if math.isfinite(rate) else 0
    if not 1 <= kept <= len(TRAIN_TAKES):
        raise UserError(
            f"audio_rate is {rate}; it must be in (0, 1] and keep a clip per speaker and digit: at least 0.02. "
            "For images alone set dataset.modalities to [image]."
        )
    if not 0 < share < 1:
        raise UserError(f"valid_share is {share}; it must lie between 0 and 1.")
    return kept


def _pairs(part: str, digit: int, labels: np.ndarray) -> list[dict[str, Any]]:
    """Pair a digit's images with its clips, both in string order of their file names."""
    clips = sorted(f"{digit}_{speaker}_{take}.wav" for speaker in SPEAKERS for take in TAKES[part])
    ordered = sorted(np.flatnonzero(labels == digit).tolist(), key=lambda index: f"{index}.png")
    if len(ordered) < len(clips):
        raise UserError(
            f"MNIST's {IDX_NAMES[part]} files hold {len(ordered)} images of digit {digit}; "
            f"{len(clips)} are needed. Download the complete files."
        )
    indices = ordered[: len(clips)] if part == "train" else ordered[-len(clips) :]
    return [
        {
            "sample_id": f"{part}-{digit}-{place:03d}",
            "group_id": f"{part}-{digit}-{place:03d}",
            "split": part,
            "label": digit,
            "index": index,
            "speaker": clip.split("_")[1],
            "image_path": f"images/{part}_{index}.png",
            "audio_path": f"audio/{clip}",
            "audio_missing_reason": None,
        }
        for place, (index, clip) in enumerate(zip(indices, clips, strict=True))
    ]


def _set_valid(frame: pd.DataFrame, share: float, salt: str) -> None:
    train = frame.index[frame["split"] == "train"]
    chosen = stratified_share(frame.loc[train, "group_id"].tolist(), frame.loc[train, "label"].to_numpy(), share, salt)
    frame.loc[train[chosen], "split"] = "valid"


def _drop_audio(frame: pd.DataFrame, kept: int, salt: str) -> None:
    """Set the clips of train and valid to null but for `kept` of each digit and speaker, the lowest hashes."""
    training = frame[frame["split"] != "test"]
    for _, rows in training.groupby(["label", "speaker"]):
        fractions = rows["sample_id"].map(lambda sample: hash_fraction(sample, salt))
        left_out = fractions.sort_values(kind="stable").index[kept:]
        frame.loc[left_out, "audio_path"] = None
        frame.loc[left_out, "audio_missing_reason"] = REASON


def _info(frame: pd.DataFrame, options: Mapping[str, Any]) -> DatasetInfo:
    names = tuple(str(digit) for digit in DIGITS)
    return DatasetInfo(
        name="avmnist",
        label=LabelSpec(kind="multiclass", names=("digit",), classes=names),
        modalities=(
            ModalitySpec(name="image", kind="image", column="image_path"),
            ModalitySpec(name="audio", kind="audio", column="audio_path"),
        ),
        source={"image": "MNIST (CC BY-SA 3.0)", "audio": "Free Spoken Digit Dataset (CC BY-SA 4.0)"},
        options=dict(options),
        counts=(CountStep(step="pairs", kept=len(frame), dropped=0),),
    )


def _clip_folder(fsdd: Path) -> Path:
    folder = fsdd / "recordings" if (fsdd / "recordings").is_dir() else fsdd
    names = [f"{d}_{s}_{t}.wav" for d in DIGITS for s in SPEAKERS for takes in TAKES.values() for t in takes]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{folder} lacks {len(absent)} of the {len(names)} clips <digit>_<speaker>_<take>.wav of "
            f"{', '.join(SPEAKERS)}, for instance {absent[0]}. --fsdd must name the Free Spoken Digit Dataset, v1.0.8+."
        )
    return folder


def _publish_files(frame: pd.DataFrame, pixels: Mapping[str, np.ndarray], clips: Path, out: Path) -> None:
    """Write images/ and audio/ beside each other, then put both in place; a raw file's error leaves `out` as it was."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as name:
        partial = Path(name)
        _write_images(frame, pixels, partial)
        _copy_clips(frame, clips, partial)
        (out / "dataset.json").unlink(missing_ok=True)  # an older table must not outlive its files
        for folder in ("images", "audio"):
            publish_folder(partial / folder, out / folder)


def _write_images(frame: pd.DataFrame, pixels: Mapping[str, np.ndarray], root: Path) -> None:
    (root / "images").mkdir()
    for path, index in zip(frame["image_path"], frame["index"], strict=True):
        part = Path(path).name.partition("_")[0]
        Image.fromarray(pixels[part][index]).save(root / path)


def _copy_clips(frame: pd.DataFrame, source: Path, root: Path) -> None:
    (root / "audio").mkdir()
    for path in frame["audio_path"].dropna():
        clip = source / Path(path).name
        try:
            frames = soundfile.info(clip).frames
            shutil.copyfile(clip, root / path)
        except (soundfile.LibsndfileError, OSError) as error:
            raise UserError(f"{clip} is no readable wav file. Download it again.") from error
        if not frames:
            raise UserError(f"{clip} holds no sound. Download it again.")


def _read_mnist(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a part's images, uint8 [N, rows, columns], and labels, uint8 [N]."""
    pixels = _read_idx(folder, f"{IDX_NAMES[part]}-images-idx3-ubyte", 3)
    labels = _read_idx(folder, f"{IDX_NAMES[part]}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels):
        raise UserError(f"MNIST's {IDX_NAMES[part]} files hold {len(pixels)} images but {len(labels)} labels.")
    return pixels, labels


def _read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """Read an idx file of unsigned bytes: magic 0, 0, 8, dimensions; sizes as big-endian int32; content."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise UserError(
            f"There is neither {folder / name}.gz nor {name}. --mnist must name the folder of the idx files."
        )
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no complete gzip file. Download it again.") from error
    start = 4 + 4 * dimensions
    sizes = _idx_sizes(data[:start], dimensions)
    if sizes is None or len(data) != start + math.prod(sizes):
        raise UserError(f"{path} is no complete idx file of {dimensions} dimension(s). Download it again.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(sizes)


def _idx_sizes(header: bytes, dimensions: int) -> Sequence[int] | None:
    if len(header) != 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
        return None
    return [int(size) for size in np.frombuffer(header, ">u4", offset=4)]
