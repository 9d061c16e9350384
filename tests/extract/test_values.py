"""Raw values: what is stored is what is read; whatever is damaged has a reason instead of a traceback."""

import contextlib
import io
import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from extract.samples import DatasetInfo, Kind, ModalitySpec, SamplesTable
from extract.task import LabelSpec
from extract.values import TimeSeries, UnreadableValue, Waveform, read_value, value_digest

BINARY = LabelSpec(kind="binary", names=("death",))


def read(root: Path, kind: Kind, suffix: str, cell: Any, digest: bool = False, **more: Any) -> Any:
    """Read modality m, whose only row holds `cell`."""
    channels = more.pop("channels", ())
    spec = ModalitySpec(name="m", kind=kind, column=f"m_{suffix}", channels=channels)
    table = SamplesTable(root, DatasetInfo(name="x", label=BINARY, modalities=(spec,)), pd.DataFrame())
    row = {f"m_{suffix}": cell, **more}
    return value_digest(table, row, "m") if digest else read_value(table, row, "m")


@pytest.mark.parametrize("null", [None, float("nan"), pd.NA])
def test_null_is_missing(tmp_path: Path, null: Any) -> None:
    for kind, suffix in (("text", "text"), ("image", "path"), ("timeseries", "array")):
        assert read(tmp_path, kind, suffix, null) is None
        assert read(tmp_path, kind, suffix, null, digest=True) is None


def test_text(tmp_path: Path) -> None:
    assert read(tmp_path, "text", "text", " Ödem,\n“none” ") == " Ödem,\n“none” "
    for blank in ("", " \n"):
        with pytest.raises(UnreadableValue, match="empty"):
            read(tmp_path, "text", "text", blank)
    with pytest.raises(UnreadableValue, match="Unicode"):
        read(tmp_path, "text", "text", "half a pair \ud800")
    assert read(tmp_path, "text", "text", "half a pair \ud800", digest=True)


def test_images_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    image = read(tmp_path, "image", "path", "grey.png")
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), pixels)
    Image.fromarray(np.stack([pixels] * 4, -1)).save(tmp_path / "alpha.png")
    assert read(tmp_path, "image", "path", "alpha.png").mode == "RGB"


def test_sixteen_bit_image_is_rescaled_not_saturated(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    image = read(tmp_path, "image", "path", "deep.png")
    assert image.mode == "L"
    np.testing.assert_allclose(np.asarray(image).ravel(), np.arange(256), atol=1)
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / "flat.png")
    assert np.ptp(np.asarray(read(tmp_path, "image", "path", "flat.png"))) == 0


def test_audio_is_mono_at_its_rate(tmp_path: Path) -> None:
    stereo = np.stack([np.full(800, 0.5), np.full(800, -0.25)], 1).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", stereo, 8000)
    wave = read(tmp_path, "audio", "path", "a.wav")
    assert isinstance(wave, Waveform)
    assert (wave.rate_hz, wave.samples.shape, wave.samples.dtype) == (8000, (800,), np.dtype(np.float32))
    np.testing.assert_allclose(wave.samples, 0.125, atol=1e-4)


def test_series_and_features_from_every_container(tmp_path: Path) -> None:
    values = np.array([[1, np.nan], [3, 4], [5, 6]], np.float32)
    np.savez(tmp_path / "a.npz", one=values, values=values + 1)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/one"] = values
    inline = read(tmp_path, "timeseries", "array", values.ravel(), m_shape=[3, 2], channels=("hr", "bp"))
    assert isinstance(inline, TimeSeries)
    for series in (
        inline,
        read(tmp_path, "timeseries", "array", [1, None, 3, 4, 5, 6], m_shape=np.array([3, 2])),
        read(tmp_path, "timeseries", "path", "a.npz#one"),
        read(tmp_path, "timeseries", "path", "a.h5#deep/one"),
    ):
        np.testing.assert_array_equal(series.values, values)
    np.testing.assert_array_equal(read(tmp_path, "timeseries", "path", "a.npz").values, values + 1)
    with pytest.raises(UnreadableValue, match="not finite"):
        read(tmp_path, "features", "path", "a.npz#one")


def make_bad_files(root: Path) -> None:
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(png, "PNG")
    (root / "short.png").write_bytes(png.getvalue()[:400])
    (root / "empty.png").write_bytes(b"")
    Image.fromarray(np.full((3, 3), np.nan, np.float32)).save(root / "nan.tiff")
    soundfile.write(root / "empty.wav", np.zeros(0), 8000)
    soundfile.write(root / "nan.wav", np.array([0.1, np.nan], np.float32), 8000, subtype="FLOAT")
    (root / "noise.wav").write_bytes(b"no audio")
    (root / "noise.raw").write_bytes(b"no audio")
    np.savez(root / "good.npz", text=np.array([["a"]]), complex=np.ones((2, 2), complex), flat=np.ones(3))
    np.savez(root / "object.npz", values=np.array([[{}]], dtype=object))
    (root / "short.npz").write_bytes((root / "good.npz").read_bytes()[:200])


BAD_FILES = [
    ("image", "absent.png", "not found"),
    ("image", "short.png", "cannot be decoded"),
    ("image", "empty.png", "cannot be decoded"),
    ("image", "nan.tiff", "not finite"),
    ("image", "noise.wav", "cannot be decoded"),
    ("image", "a\0b.png", "not a path"),
    ("image", "a" * 5000, "not a path"),
    ("audio", "empty.wav", "empty audio"),
    ("audio", "nan.wav", "not finite"),
    ("audio", "noise.wav", "cannot be decoded"),
    ("audio", "noise.raw", "cannot be decoded"),
    ("features", "object.npz", "cannot be read"),
    ("features", "short.npz#flat", "cannot be read"),
    ("features", "good.npz#absent", "cannot be read"),
    ("features", "good.npz#text", "not numbers"),
    ("features", "good.npz#complex", "not numbers"),
    ("features", "good.npz#flat", "not a non-empty"),
    ("features", "absent.h5#x", "not found"),
]


@pytest.mark.parametrize(("kind", "cell", "reason"), BAD_FILES)
def test_bad_files_have_a_reason_and_a_digest(tmp_path: Path, kind: Kind, cell: str, reason: str) -> None:
    make_bad_files(tmp_path)
    with pytest.raises(UnreadableValue, match=reason) as caught:
        read(tmp_path, kind, "path", cell)
    assert str(tmp_path) not in str(caught.value)
    assert read(tmp_path, kind, "path", cell, digest=True) == read(tmp_path, kind, "path", cell, digest=True)


def test_nothing_outside_the_root_is_read(tmp_path: Path) -> None:
    root = tmp_path / "table"
    root.mkdir()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    for cell in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(UnreadableValue, match="leaves the table's folder"):
            read(root, "image", "path", cell)
    with pytest.raises(UnreadableValue, match=r"not a path|not found"):
        read(root, "image", "path", "loop.png")


def test_hdf5_links_and_outside_storage_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "table"
    root.mkdir()
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["group/x"] = np.ones((2, 2))
    (tmp_path / "secret.bin").write_bytes(np.ones(4).tobytes())
    layout = h5py.VirtualLayout((2, 2), dtype=float)
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "group/x", (2, 2))
    with h5py.File(root / "a.h5", "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "group/x")
        file["folder"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "group")
        file.create_dataset("storage", (2, 2), float, external=[(str(tmp_path / "secret.bin"), 0, 32)])
        file.create_virtual_dataset("virtual", layout)
    for key in ("link", "folder/x", "storage", "virtual"):
        with pytest.raises(UnreadableValue, match="another file"):
            read(root, "features", "path", f"a.h5#{key}")


@pytest.mark.parametrize(
    ("kind", "cell", "shape", "reason"),
    [
        ("timeseries", [1, 2, 3], [2, 2], "does not fill"),
        ("timeseries", [1, 2, 3, 4, 5, 6], [-2, -3], "does not fill"),
        ("timeseries", [1, 2], None, "not made of numbers"),
        ("timeseries", ["a", "b"], [1, 2], "not made of numbers"),
        ("timeseries", [], [0, 2], "not a non-empty"),
        ("timeseries", [1, 2], [2], "not a non-empty"),
        ("timeseries", [np.nan, np.nan], [1, 2], "no observed cell"),
        ("timeseries", [np.nan, np.inf], [1, 2], "infinite"),
        ("timeseries", [1, 2, 3], [1, 3], "3 columns, 2 are declared"),
        ("features", [1, np.nan], [1, 2], "not finite"),
    ],
)
def test_bad_arrays(tmp_path: Path, kind: Kind, cell: Any, shape: Any, reason: str) -> None:
    with pytest.raises(UnreadableValue, match=reason):
        read(tmp_path, kind, "array", cell, m_shape=shape, channels=("a", "b"))
    assert read(tmp_path, kind, "array", cell, m_shape=shape, digest=True)


def test_digest_follows_content_and_shape_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        root.mkdir()
        np.savez(root / "a.npz", x=np.arange(6.0).reshape(2, 3), y=np.arange(6.0).reshape(3, 2))
    digests = [read(root, "features", "path", f"a.npz#{key}", digest=True) for root in (first, second) for key in "xy"]
    assert digests[:2] == digests[2:]
    assert digests[0] != digests[1]
    flat = np.arange(6, dtype=np.float32)
    shaped = {read(first, "timeseries", "array", flat, m_shape=s, digest=True) for s in ([2, 3], [3, 2])}
    assert len(shaped) == 2
    assert read(first, "text", "text", "a", digest=True) != read(first, "text", "text", "b", digest=True)


@pytest.mark.parametrize(("kind", "name"), [("image", "a.png"), ("audio", "a.wav"), ("features", "a.npz#x")])
def test_damage_anywhere_is_read_or_refused(tmp_path: Path, kind: Kind, name: str) -> None:
    """Truncation and flipped bytes: either a value comes back or `UnreadableValue`, nothing else."""
    rng, path = random.Random(0), tmp_path / name.partition("#")[0]
    noise = np.random.default_rng(0)
    if kind == "image":
        Image.fromarray(noise.integers(0, 256, (12, 12), dtype=np.uint8)).save(path)
    elif kind == "audio":
        soundfile.write(path, noise.uniform(-1, 1, 100), 8000)
    else:
        np.savez_compressed(path, x=noise.normal(size=(5, 4)))
    whole = path.read_bytes()
    for trial in range(200):
        damaged = bytearray(whole)
        if trial % 2:
            damaged = damaged[: rng.randrange(len(whole))]
        else:
            for _ in range(3):
                damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(UnreadableValue):
            assert read(tmp_path, kind, "path", name) is not None
