"""Odd and damaged videos: frames of what is there, or a reason."""

import contextlib
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from extract.config import VideoSettings
from extract.encoders.manet import VideoEncoder
from extract.values import UnreadableValue, Video

Read = Callable[[str, str], Any]
CODECS = {"mp4": "mpeg4", "mov": "mpeg4", "avi": "mpeg4", "mkv": "mpeg4", "webm": "libvpx"}
SIZES = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.0, "frames": 4, "image_size": 16, "base_channels": 4}


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    fields = {"type": "manet", "weights": "scratch", "reverse_second_chain": False, **SIZES}
    return VideoEncoder(VideoSettings.model_validate(fields))


def write_video(
    path: Path, frames: int, size: tuple[int, int] = (64, 48), pixels: str = "yuv420p", codec: str = ""
) -> Path:
    """Noise, so that every part of the file counts."""
    draw = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or CODECS[path.suffix[1:]], rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        for _ in range(frames):
            image = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", CODECS)
def test_a_file_cut_anywhere_or_empty_has_a_reason(suffix: str, tmp_path: Path, read_file: Read) -> None:
    whole = write_video(tmp_path / f"a.{suffix}", 30).read_bytes()
    assert len(read_file("video", f"a.{suffix}").frames(30)) == 30
    for share in (0, 0.1, 0.5, 0.8):
        (tmp_path / f"torn.{suffix}").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UnreadableValue, match=r"cannot be decoded|cut short|no video stream|no frames"):
            read_file("video", f"torn.{suffix}").frames(4)


@pytest.mark.parametrize("suffix", CODECS)
def test_flipped_bytes_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    path, draw = write_video(tmp_path / f"a.{suffix}", 6), random.Random(0)
    whole = path.read_bytes()
    for trial in range(20):
        damaged = bytearray(whole)
        for _ in range(5):
            damaged[draw.randrange(300 if trial % 2 else len(whole))] = draw.randrange(256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(UnreadableValue):
            frames = Video(path).frames(4)
            assert 1 <= len(frames) <= 4
            assert {frame.mode for frame in frames} == {"RGB"}


@pytest.mark.parametrize("frames", [1, 3, 4, 5])
def test_a_short_clip_has_a_token_for_each_frame(
    frames: int, tmp_path: Path, read_file: Read, encoder: VideoEncoder, tokens_of: Callable[..., np.ndarray]
) -> None:
    write_video(tmp_path / "a.mp4", frames)
    assert len(tokens_of(encoder, read_file("video", "a.mp4"))) == min(frames, 4)


@pytest.mark.parametrize(
    ("size", "pixels", "codec"), [((34, 18), "yuv420p", ""), ((64, 48), "gray", "ffv1"), ((33, 17), "bgr0", "ffv1")]
)
def test_other_pixels_and_sizes_become_rgb(
    size: tuple[int, int], pixels: str, codec: str, tmp_path: Path, read_file: Read, encoder: VideoEncoder
) -> None:
    write_video(tmp_path / "a.mkv", 3, size, pixels, codec)
    frames = read_file("video", "a.mkv").frames(4)
    assert [(frame.mode, frame.size) for frame in frames] == [("RGB", size)] * 3
    assert encoder.preprocess(read_file("video", "a.mkv"))["frames"].shape == (3, 16, 16, 3)


def test_a_picture_is_a_clip_of_one_frame_and_a_folder_is_none(tmp_path: Path, read_file: Read) -> None:
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "a.png")
    assert len(read_file("video", "a.png").frames(4)) == 1
    (tmp_path / "b.mp4").mkdir()
    with pytest.raises(UnreadableValue, match="file not found"):
        read_file("video", "b.mp4")
