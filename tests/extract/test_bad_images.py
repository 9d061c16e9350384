"""Odd and damaged images: each becomes pixels by a stated rule, or has a reason."""

import contextlib
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from extract.config import ImageSettings
from extract.encoders.image import ImageEncoder
from extract.values import UnreadableValue

Read = Callable[[str, str], Any]
FORMATS = ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000", "AVIF"]
NOISE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def encoder(channels: int = 3) -> ImageEncoder:
    sizes = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.0, "image_size": 8, "patch_size": 4}
    fields = {"type": "vit", "weights": "scratch", "channels": channels, "augment": None, **sizes}
    return ImageEncoder(ImageSettings.model_validate(fields))


def file_of(kind: str) -> bytes:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_in_half_or_empty_has_a_reason(kind: str, tmp_path: Path, read_file: Read) -> None:
    whole = file_of(kind)
    for name, content in (("whole", whole), ("half", whole[: len(whole) // 2]), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
    assert read_file("image", "whole").size == (24, 24)
    for name in ("half", "empty"):
        with pytest.raises(UnreadableValue, match="cannot be decoded"):
            read_file("image", name)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_flipped_bytes_are_read_or_refused(kind: str, tmp_path: Path, read_file: Read) -> None:
    whole, draw = file_of(kind), random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[draw.randrange(min(len(whole), 200))] = draw.randrange(256)
        (tmp_path / "a").write_bytes(bytes(damaged))
        with contextlib.suppress(UnreadableValue):
            assert read_file("image", "a").mode in ("L", "RGB")


def test_formats_that_would_start_another_program_are_refused(tmp_path: Path, read_file: Read) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.eps")
    with Image.open(tmp_path / "a.eps") as image:
        assert image.format == "EPS"  # Pillow knows it, and would call Ghostscript
    with pytest.raises(UnreadableValue, match="cannot be decoded"):
        read_file("image", "a.eps")


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4", "<f4"])
def test_deep_pixels_are_rescaled_from_their_own_range(dtype: str, tmp_path: Path, read_file: Read) -> None:
    ramp = np.linspace(100, 30_000, 256).reshape(16, 16).astype(dtype)
    modes = {"<u2": "I;16", ">u2": "I;16B", "<i4": "I", "<f4": "F"}
    Image.frombytes(modes[dtype], (16, 16), ramp.tobytes()).save(tmp_path / "deep.tiff")
    image = read_file("image", "deep.tiff")
    assert image.mode == "L"
    assert np.allclose(np.asarray(image).ravel(), np.arange(256), atol=1)


def test_colours_of_cmyk_and_palettes_are_those_of_the_picture(tmp_path: Path, read_file: Read) -> None:
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[:, 4:, 3] = 255
    Image.fromarray(ink, "CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    pixels = np.asarray(read_file("image", "cmyk.jpg"), int)
    assert pixels[:, :3].min() > 240  # no ink is white
    assert pixels[:, 5:].max() < 15
    flag = Image.new("RGB", (6, 6), (255, 0, 0))
    flag.paste((0, 0, 255), (0, 0, 3, 6))
    flag.quantize(2).save(tmp_path / "palette.png")
    assert np.array_equal(np.asarray(read_file("image", "palette.png")), np.asarray(flag))


def test_alpha_is_dropped_and_one_bit_is_black_and_white(tmp_path: Path, read_file: Read) -> None:
    alpha = np.dstack([NOISE, np.zeros((24, 24), np.uint8)])  # transparent everywhere
    Image.fromarray(alpha).save(tmp_path / "rgba.png")
    assert np.array_equal(np.asarray(read_file("image", "rgba.png")), NOISE)
    Image.fromarray(alpha[:, :, 2:], "LA").save(tmp_path / "la.png")
    assert np.array_equal(np.asarray(read_file("image", "la.png")), NOISE[:, :, 2])
    Image.fromarray(NOISE[:, :, 0] > 127).save(tmp_path / "bit.png")
    assert np.array_equal(np.asarray(read_file("image", "bit.png")), np.where(NOISE[:, :, 0] > 127, 255, 0))


def test_the_first_picture_of_an_animation_and_the_stored_orientation_count(tmp_path: Path, read_file: Read) -> None:
    frames = [Image.new("RGB", (6, 4), (level, 0, 0)) for level in (250, 10, 90)]
    for name in ("a.gif", "a.png", "a.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.asarray(read_file("image", name))[0, 0].tolist() == [250, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees for display
    frames[0].save(tmp_path / "turned.jpg", exif=exif)
    assert read_file("image", "turned.jpg").size == (6, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
def test_any_shape_has_tokens(
    shape: tuple[int, int], tmp_path: Path, read_file: Read, tokens_of: Callable[..., np.ndarray]
) -> None:
    Image.fromarray(np.full(shape, 200, np.uint8)).save(tmp_path / "a.png")
    for channels in (1, 3):
        assert tokens_of(encoder(channels), read_file("image", "a.png")).shape == (4, 8)
    pixels = encoder(1).preprocess(read_file("image", "a.png"))["pixels"]
    assert np.allclose(pixels, 200 / 127.5 - 1)


def test_a_picture_of_too_many_pixels_has_a_reason(
    tmp_path: Path, read_file: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableValue, match="DecompressionBombError"):
        read_file("image", "a.png")
