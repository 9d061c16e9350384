"""Raw values of a samples table: text, images, series, audio, video and features, read safely.

A value that cannot be used (absent file, corrupt image, empty text, no finite number) raises `UnreadableValue` with a
reason; callers count the sample as missing in that modality. Paths never leave the table's root; nothing is unpickled.
"""

import hashlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from extract.decoding import UnreadableValue, Video, Waveform, decode_audio, decode_image
from extract.samples import ModalitySpec, SamplesTable

__all__ = ["READERS", "TimeSeries", "UnreadableValue", "Video", "Waveform", "read_value", "value_digest"]

DAMAGED = (
    *(OSError, KeyError, ValueError, EOFError, TypeError, RuntimeError, SyntaxError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, struct.error, NotImplementedError),
)
"""What numpy and h5py raise for damaged files: a flipped byte in a header may claim any size, type or key."""


@dataclass(frozen=True)
class TimeSeries:
    """Binned series: float32 [T, C], NaN where a cell was not observed."""

    values: np.ndarray


def read_value(table: SamplesTable, row: Any, modality: str) -> Any | None:
    """Return a sample's raw value, or None where it is missing.

    Returns:
        str, PIL.Image (mode L or RGB), `TimeSeries`, `Waveform`, `Video`, or float32 [T, D] features.

    Raises:
        UnreadableValue: with the reason.
    """
    spec = table.modality(modality)
    cell = row[spec.column]
    if _is_null(cell):
        return None
    return READERS[spec.kind](table, row, spec)


def value_digest(table: SamplesTable, row: Any, modality: str) -> str | None:
    """Return the SHA-256 of a sample's raw content, None where it is missing."""
    spec = table.modality(modality)
    cell = row[spec.column]
    if _is_null(cell):
        return None
    digest = hashlib.sha256(spec.kind.encode())
    if spec.column.endswith("_array"):
        digest.update(_array_bytes(row, spec))
    elif spec.column.endswith("_text"):
        digest.update(str(cell).encode("utf-8", "surrogatepass"))
    else:
        try:
            path, key = _locate(table, str(cell))
            digest.update(path.read_bytes() if key is None else _described(_keyed(path, key)))
        except UnreadableValue as error:
            digest.update(f"unreadable:{error}".encode())
        except OSError as error:  # its text holds this machine's path
            digest.update(f"unreadable:{type(error).__name__}".encode())
    return digest.hexdigest()


def _array_bytes(row: Any, spec: ModalitySpec) -> bytes:
    try:
        shape = [int(n) for n in row[f"{spec.name}_shape"]]
        return repr(shape).encode() + np.asarray(row[spec.column], np.float32).tobytes()
    except (TypeError, ValueError) as error:
        return f"unreadable:{type(error).__name__}".encode()


def _described(values: np.ndarray) -> bytes:
    """Shape and content: the same numbers in another shape are another value."""
    return repr(list(values.shape)).encode() + values.tobytes()


def _is_null(cell: Any) -> bool:
    return cell is None or (not isinstance(cell, (list, np.ndarray)) and bool(pd.isna(cell)))


def _locate(table: SamplesTable, cell: str) -> tuple[Path, str | None]:
    name, _, key = cell.partition("#")
    root = table.root.resolve()
    try:
        path = (root / name).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a loop of links
        raise UnreadableValue("not a path") from error
    if not path.is_relative_to(root):
        raise UnreadableValue("path leaves the table's folder")
    if not found:
        raise UnreadableValue("file not found")
    return path, key or None


def _text(table: SamplesTable, row: Any, spec: ModalitySpec) -> str:
    cell = str(row[spec.column])
    text = _text_file(_locate(table, cell)[0]) if spec.column.endswith("_path") else cell
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UnreadableValue("text is not valid Unicode")
    if not text.replace("\0", "").strip():
        raise UnreadableValue("empty text")
    return text


def _text_file(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableValue("text is not valid UTF-8") from error
    except OSError as error:
        raise UnreadableValue(f"text cannot be read ({type(error).__name__})") from error


def _image(table: SamplesTable, row: Any, spec: ModalitySpec) -> Image.Image:
    return decode_image(_locate(table, str(row[spec.column]))[0])


def _audio(table: SamplesTable, row: Any, spec: ModalitySpec) -> Waveform:
    return decode_audio(_locate(table, str(row[spec.column]))[0])


def _video(table: SamplesTable, row: Any, spec: ModalitySpec) -> Video:
    return Video(_locate(table, str(row[spec.column]))[0])


def _numbers(table: SamplesTable, row: Any, spec: ModalitySpec) -> np.ndarray:
    if spec.column.endswith("_array"):
        values = _shaped(row, spec)
    else:
        path, key = _locate(table, str(row[spec.column]))
        values = _keyed(path, key or "values")
    if values.ndim != 2 or not values.size:
        raise UnreadableValue("array is not a non-empty [T, C]")
    if spec.channels and values.shape[1] != len(spec.channels):
        raise UnreadableValue(f"array has {values.shape[1]} columns, {len(spec.channels)} are declared")
    return values


def _shaped(row: Any, spec: ModalitySpec) -> np.ndarray:
    try:
        shape = tuple(int(n) for n in row[f"{spec.name}_shape"])
        values = np.asarray(row[spec.column], np.float32)
    except (TypeError, ValueError) as error:
        raise UnreadableValue("array or its shape is not made of numbers") from error
    if min(shape, default=0) < 0 or values.size != int(np.prod(shape)):
        raise UnreadableValue("array does not fill its declared shape")
    return values.reshape(shape)


def _keyed(path: Path, key: str) -> np.ndarray:
    try:
        values = _hdf5(path, key) if path.suffix in (".h5", ".hdf5") else _numpy(path, key)
    except DAMAGED as error:
        raise UnreadableValue(f"array file cannot be read ({type(error).__name__})") from error
    if values.dtype.kind not in "fiub":
        raise UnreadableValue(f"array has dtype {values.dtype}, not numbers")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which has a reason of its own
        return values.astype(np.float32)


def _numpy(path: Path, key: str) -> np.ndarray:
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        return np.asarray(file)
    with file:
        return np.asarray(file[key])


def _hdf5(path: Path, key: str) -> np.ndarray:
    with h5py.File(path, "r") as file:
        dataset = file[key]
        if not isinstance(dataset, h5py.Dataset):
            raise KeyError(key)
        # Links and storage of this format can name any other file; those would be read from outside the root.
        if dataset.file.filename != file.filename or dataset.external or dataset.is_virtual:
            raise UnreadableValue("array lies in another file")
        return np.asarray(dataset)


def _series(table: SamplesTable, row: Any, spec: ModalitySpec) -> TimeSeries:
    values = _numbers(table, row, spec)
    if np.isinf(values).any():
        raise UnreadableValue("series holds infinite values")
    if not np.isfinite(values).any():
        raise UnreadableValue("series has no observed cell")
    return TimeSeries(values)


def _features(table: SamplesTable, row: Any, spec: ModalitySpec) -> np.ndarray:
    values = _numbers(table, row, spec)
    if not np.isfinite(values).all():
        raise UnreadableValue("features hold values that are not finite")
    return values


READERS: dict[str, Callable[[SamplesTable, Any, ModalitySpec], Any]] = {
    "text": _text,
    "image": _image,
    "timeseries": _series,
    "audio": _audio,
    "video": _video,
    "features": _features,
}
