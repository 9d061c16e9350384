"""avMNIST: the protocol's pairs, shares and splits on made-up digits; damaged input gives one clear error."""

import gzip
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from cache.errors import UserError
from extract.samples import SamplesTable
from extract.sources.avmnist import SPEAKERS, clips_per_speaker, prepare_avmnist
from extract.values import Waveform, read_value

OPTIONS: dict[str, Any] = {"audio_rate": 0.2, "valid_share": 0.15, "split_seed": 0}
COUNTS = {"train": ("train", 1200), "test": ("t10k", 500)}
Raw = tuple[Path, Path]


@pytest.fixture(autouse=True, scope="module")
def _no_flush() -> Iterator[None]:
    """Thousands of small files: what is tested here is not their durability."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def write_idx(path: Path, content: np.ndarray) -> None:
    header = bytes((0, 0, 8, content.ndim)) + np.array(content.shape, ">u4").tobytes()
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(header + content.tobytes(), 1))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    """Images of 2 x 3 pixels that hold their index, labels index mod 10; clips whose content tells their name."""
    mnist, fsdd = tmp_path_factory.mktemp("mnist"), tmp_path_factory.mktemp("fsdd")
    for name, count in COUNTS.values():
        index = np.arange(count)
        pixels = np.zeros((count, 2, 3), np.uint8)
        pixels[:, 0, 0], pixels[:, 1, 2] = index // 256, index % 256
        write_idx(mnist / f"{name}-images-idx3-ubyte", pixels)
        write_idx(mnist / f"{name}-labels-idx1-ubyte", (index % 10).astype(np.uint8))
    (fsdd / "recordings").mkdir()
    soundfile.write(fsdd / "first.wav", np.zeros(3, np.int16), 8000)
    header = (fsdd / "first.wav").read_bytes()[:-6]  # every clip has three samples
    for digit in range(10):
        for place, speaker in enumerate((*SPEAKERS, "george")):
            for take in range(50):
                samples = np.array([digit, place, take], np.int16)
                path = fsdd / "recordings" / f"{digit}_{speaker}_{take}.wav"
                path.write_bytes(header + samples.tobytes())
    return mnist, fsdd


@pytest.fixture(scope="module")
def prepared(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SamplesTable]:
    done: dict[str, SamplesTable] = {}

    def prepare(**options: Any) -> SamplesTable:
        key = repr(sorted(options.items()))
        if key not in done:
            done[key] = prepare_avmnist(raw, tmp_path_factory.mktemp("out"), {**OPTIONS, **options})
        return done[key]

    return prepare


def test_test_pairs_follow_the_protocol(prepared: Callable[..., SamplesTable]) -> None:
    """Reference: the last 45 "<index>.png" of a digit, with takes 0-14 of the three speakers, in string order."""
    table = prepared()
    for digit in range(10):
        rows = table.split("test").query("label == @digit")
        images = sorted(f"{index}.png" for index in range(500) if index % 10 == digit)[-45:]
        clips = sorted(f"{digit}_{speaker}_{take}.wav" for speaker in SPEAKERS for take in range(15))
        assert rows["image_path"].tolist() == [f"images/test_{name}" for name in images]
        assert rows["audio_path"].tolist() == [f"audio/{name}" for name in clips]


def test_training_pairs_follow_the_protocol(prepared: Callable[..., SamplesTable]) -> None:
    table = prepared(audio_rate=1.0, split_seed=1)
    training = table.frame[table.frame["split"] != "test"]
    for digit in range(10):
        rows = training.query("label == @digit")
        images = sorted(f"{index}.png" for index in range(1200) if index % 10 == digit)[:105]
        clips = [f"{digit}_{speaker}_{take}.wav" for speaker in SPEAKERS for take in range(15, 50)]
        assert rows["image_path"].tolist() == [f"images/train_{name}" for name in images]
        assert rows["audio_path"].tolist() == [f"audio/{name}" for name in clips]


def test_files_hold_what_the_rows_name(prepared: Callable[..., SamplesTable]) -> None:
    table = prepared()
    for _, row in table.frame.iloc[::97].iterrows():
        image = read_value(table, row, "image")
        assert isinstance(image, Image.Image)
        pixels = np.asarray(image)
        index = int(re.findall(r"\d+", row["image_path"])[0])
        assert image.mode == "L"
        assert int(pixels[0, 0]) * 256 + int(pixels[1, 2]) == index
        assert index % 10 == row["label"]
        audio = read_value(table, row, "audio")
        if audio is not None:
            assert isinstance(audio, Waveform)
            digit, speaker, take = (int(value) for value in np.rint(audio.samples * 32768))
            assert row["audio_path"] == f"audio/{digit}_{SPEAKERS[speaker]}_{take}.wav"
            assert digit == row["label"]
    copied = {f"audio/{path.name}" for path in (table.root / "audio").iterdir()}
    assert copied == set(table.frame["audio_path"].dropna())
    assert len(list((table.root / "images").iterdir())) == 1500
    assert not list(table.root.glob(".*"))


@pytest.mark.parametrize(("rate", "per_digit"), [(0.05, 6), (0.1, 12), (0.15, 15), (0.2, 21), (1.0, 105)])
def test_kept_clips_per_digit_are_the_published_ones(rate: float, per_digit: int) -> None:
    assert 3 * clips_per_speaker(rate) == per_digit


def test_audio_is_complete_in_test_and_equal_per_digit_and_speaker_in_training(
    prepared: Callable[..., SamplesTable],
) -> None:
    table = prepared(audio_rate=0.1)
    assert table.observed("test").all()
    training = table.frame[table.frame["split"] != "test"]
    speakers = training["audio_path"].str.extract(r"audio/(\d)_(\w+)_").dropna()
    assert speakers.groupby([0, 1]).size().tolist() == [4] * 30
    missing = table.frame["audio_path"].isna()
    assert table.frame["audio_missing_reason"].notna().tolist() == missing.tolist()
    assert table.frame["image_path"].notna().all()


def test_splits_are_stratified_by_digit_and_equal_at_every_rate(prepared: Callable[..., SamplesTable]) -> None:
    low, high, other = prepared(audio_rate=0.1), prepared(), prepared(audio_rate=1.0, split_seed=1)
    for table in (low, high, other):
        for split, per_digit in (("train", 89), ("valid", 16), ("test", 45)):
            assert np.bincount(table.labels(split).astype(int)).tolist() == [per_digit] * 10
    assert low.ids("valid") == high.ids("valid") != other.ids("valid")
    assert set(low.frame["audio_path"].dropna()) < set(high.frame["audio_path"].dropna())


def test_audio_seed_draws_other_clips_on_the_same_split(prepared: Callable[..., SamplesTable]) -> None:
    plain, same, other = prepared(), prepared(audio_seed=0), prepared(audio_seed=1)
    assert plain.frame.equals(same.frame)
    assert plain.ids("valid") == other.ids("valid")
    assert set(plain.frame["audio_path"].dropna()) != set(other.frame["audio_path"].dropna())
    assert plain.frame["audio_path"].notna().sum() == other.frame["audio_path"].notna().sum()


def test_a_second_run_gives_the_same_bytes_and_no_stale_file(
    raw: Raw, prepared: Callable[..., SamplesTable], tmp_path: Path
) -> None:
    def contents(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    prepare_avmnist(raw, tmp_path, {**OPTIONS, "audio_rate": 0.5})
    prepare_avmnist((raw[0], raw[1] / "recordings"), tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(prepared().root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio_rate": 0.0}, "audio_rate"),
        ({"audio_rate": 1.5}, "audio_rate"),
        ({"audio_rate": float("nan")}, "audio_rate"),
        ({"audio_rate": "all"}, "must be numbers"),
        ({"valid_share": 0}, "valid_share"),
        ({"rate": 0.2}, "Options of avmnist"),
    ],
)
def test_bad_options_give_one_clear_error(raw: Raw, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_avmnist(raw, tmp_path / "out", {**OPTIONS, **options})


@pytest.mark.parametrize("damage", ["absent", "truncated", "no gzip", "other kind", "too few"])
def test_damaged_mnist_files_are_errors(raw: Raw, tmp_path: Path, damage: str) -> None:
    for path in raw[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    if damage == "absent":
        labels.unlink()
    elif damage == "too few":
        write_idx(labels.with_suffix(""), np.ones(500, np.uint8))
    else:
        images = (tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes()
        labels.write_bytes({"truncated": whole[:-20], "no gzip": b"1234", "other kind": images}[damage])
    with pytest.raises(UserError, match=r"t10k.*") as caught:
        prepare_avmnist((tmp_path, raw[1]), tmp_path / "out", OPTIONS)
    assert "\n" not in str(caught.value)


def test_damaged_clips_are_errors_and_leave_the_older_table(raw: Raw, prepared: Callable[..., SamplesTable]) -> None:
    table, clip = prepared(), raw[1] / "recordings" / "3_theo_4.wav"
    whole, digest = clip.read_bytes(), table.digest()
    try:
        for content, message in (
            (None, r"lacks 1 of the 1500 clips.*3_theo_4"),
            (b"RIFF, not really", r"3_theo_4.wav is no readable wav"),
            (whole[:44], r"3_theo_4.wav"),
        ):
            clip.unlink() if content is None else clip.write_bytes(content)
            with pytest.raises(UserError, match=message):
                prepare_avmnist(raw, table.root, OPTIONS)
    finally:
        clip.write_bytes(whole)
    assert SamplesTable.read(table.root).digest() == digest
    assert not list(table.root.glob(".*"))


def test_counts_of_the_real_data(tmp_path: Path) -> None:
    """1,500 pairs, 105 + 45 a digit; 21 clips a digit at 20 %; images of 28 x 28, clips at 8 kHz."""
    shared = Path(os.environ.get("SELFMASK_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    real = shared / "avmnist"
    if not (real / "mnist").is_dir():
        pytest.skip("the avMNIST data are not here; set SELFMASK_SHARED_DATA to their folder")
    table = prepare_avmnist((real / "mnist", real / "fsdd"), tmp_path, OPTIONS)
    assert {s: len(table.split(s)) for s in ("train", "valid", "test")} == {"train": 890, "valid": 160, "test": 450}
    training = table.frame[table.frame["split"] != "test"]
    assert training.groupby("label")["audio_path"].count().tolist() == [21] * 10
    row = table.split("test").iloc[-1]
    image, audio = read_value(table, row, "image"), read_value(table, row, "audio")
    assert image is not None
    assert audio is not None
    assert (image.size, image.mode, audio.rate_hz) == ((28, 28), "L", 8000)
