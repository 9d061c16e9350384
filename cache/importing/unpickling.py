"""Reading a pickle without running it: numbers, strings, containers and NumPy arrays of them, nothing else.

A pickle is a program that names functions to call. Here it gets stand-ins for the few that NumPy's own pickles name,
and an error for every other. The stand-ins build arrays from checked bytes in Python, so that no state of a
stranger reaches NumPy's C code. A pickle is read whole: memory is that of the file, twice.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import UserError

KINDS = "biufSU"
DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)
"""What Python's unpickler raises on damaged input."""


def read_pickle(path: Path) -> Any:
    """Return the content: dicts, lists, tuples, strings, bytes, numbers, None, arrays.

    Raises:
        UserError: it holds anything else, whose name is told, or is damaged.
    """
    with path.open("rb") as stream:
        try:
            return _with_arrays(_RestrictedUnpickler(stream, encoding="latin1").load(), {})
        except RecursionError as error:
            raise UserError(f"{path} is nested too deeply for a pickle of features.") from error
        except DAMAGE as error:
            raise UserError(f"{path} is not a readable pickle of arrays ({error}). Check `--format`.") from error


class _DType:
    """Stands for numpy.dtype."""

    def __init__(self, name: str, align: bool = False, copy: bool = True) -> None:
        self.dtype = np.dtype("O") if name in ("O", "O8") else np.dtype(str(name))
        if self.dtype.kind not in KINDS + "O" or self.dtype.fields or self.dtype.subdtype:
            raise ValueError(f"arrays of type {name!r} are not accepted")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # (version, byte order, ...): no other state counts for plain types, and fields are refused
        if len(state) > 4 and (state[3] is not None or state[4] is not None):
            raise ValueError("arrays with fields are not accepted")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray; `value` is there once its state is."""

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _build(content, dtype, shape, "F" if fortran else "C")


def _build(content: Any, dtype: Any, shape: Any, order: str) -> Any:
    """Return an array, or nested lists for one of objects."""
    shape = tuple(int(n) for n in shape)
    if not isinstance(dtype, _DType) or any(n < 0 for n in shape) or order not in ("C", "F"):
        raise ValueError("an array with an odd type or shape")
    if dtype.dtype.kind == "O":
        if not isinstance(content, list) or len(content) != math.prod(shape):
            raise ValueError("an array of objects without its list")
        return content if len(shape) == 1 else _nest(content, shape)
    data = content.encode("latin1") if isinstance(content, str) else bytes(content)
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _nest(values: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return values[0]
    step = math.prod(shape[1:])
    return [_nest(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _Array:
        raise ValueError("an array of another class than numpy.ndarray")
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _build(content, dtype, shape, order)
    return array


def _scalar(dtype: Any, content: Any = b"") -> Any:
    array = _Array()
    array.value = _build(content, dtype, (1,), "C")
    return array.value[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("bytes in another encoding than latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Return empty bytes, which old protocols write as a call."""
    return b""


_STANDINS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the stand-in of a name.

        Raises:
            UserError: any other name.
        """
        try:
            return _STANDINS[module_name, global_name]
        except KeyError:
            raise UserError(
                f"The pickle holds an object of class '{module_name}.{global_name}'; only numbers, strings, lists, "
                "dicts and NumPy arrays are read. Save the arrays as npz or HDF5 where you trust the file."
            ) from None


def _with_arrays(value: Any, done: dict[int, Any]) -> Any:
    """Replace the stand-ins in containers by their arrays; each container once, however often it is referred to."""
    if value is None or isinstance(value, str | bytes | int | float | np.ndarray):
        return value
    if id(value) not in done:
        done[id(value)] = _converted(value, done)
    return done[id(value)]


def _converted(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, _Array):
        return _with_arrays(value.value, done)
    if isinstance(value, dict):
        return {_with_arrays(k, done): _with_arrays(v, done) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_with_arrays(item, done) for item in value]
    raise ValueError(f"an object of type {type(value).__name__}")
