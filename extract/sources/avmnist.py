"""avMNIST by the protocol of SMIL and ShaSpec: written digits (MNIST) paired with spoken ones (FSDD).

1,500 pairs, 150 a digit. Audio: speakers jackson, nicolas and theo; takes 0-14 are the test, 15-49 the training part.
Images: the first 105 of a digit's MNIST training images in string order of "<index>.png", the last 45 of its test
images. The j-th image goes with the j-th clip in order of file names, so speaker after speaker. In the training part
only some clips of each digit are kept, as many of each speaker; the test keeps all. The clips of a lower rate are among
those of a higher one, and the validation split is the same at every rate, so that rates compare on the same rows.

Files are copied below the table's root (1 MB). It takes a few seconds, most of them for decompressing MNIST.
"""

import gzip
import math
import shutil
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
REASON = "left out of training by the protocol"


def prepare_avmnist(raw: tuple[Path, Path], out: Path, options: Mapping[str, Any]) -> SamplesTable:
    """Write the samples table with its images and clips.

    Args:
        raw: folder of MNIST's four idx files (gzip or plain); folder of the wav files, or the one above its
            `recordings`.
        out: folder to write: table, `images/`, `audio/`.
        options: audio_rate, share of the training part's clips that are kept, in (0, 1]; valid_share of the training
            part; split_seed, which draws both.

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
    _drop_audio(frame, kept_per_speaker, f"avmnist-audio:{options['split_seed']}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "dataset.json").unlink(missing_ok=True)  # an older table must not outlive its files
    _write_images(frame, {part: pixels for part, (pixels, _) in images.items()}, out)
    _copy_clips(frame, clips, out)
    columns = ["sample_id", "group_id", "split", "label", "image_path", "audio_path", "audio_missing_reason"]
    dropped = pd.DataFrame([], columns=["source_id", "step", "reason"], dtype=str)
    return SamplesTable.write(out, _info(frame, options), frame[columns], dropped)


def clips_per_speaker(rate: float) -> int:
    """Return how many of a speaker's 35 training takes of a digit are kept, halves rounded up.

    Equal numbers per speaker make n = 3 x this: 6, 12, 15 and 21 of 105 at 5, 10, 15 and 20 %.
    """
    return math.floor(rate * len(TRAIN_TAKES) + 0.5)
