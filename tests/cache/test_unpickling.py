"""A pickle from elsewhere is read as data: nothing in it is run, and damage is one error."""

import collections
import os
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cache.errors import UserError
from cache.importing.unpickling import read_pickle


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(), r"posix\.system"),
        (Fraction(1, 2), r"fractions\.Fraction"),
        (collections.OrderedDict(), r"collections\.OrderedDict"),
        (pd.DataFrame({"a": [1]}), "pandas"),
        (np.random.default_rng(0), "numpy.random"),
        (print, r"builtins\.print"),
        (pickle.loads, "pickle"),
    ],
)
def test_a_pickle_of_anything_else_is_refused_by_name(
    value: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": np.ones(2), "b": [value]}))
    with pytest.raises(UserError, match=name):
        read_pickle(tmp_path / "x.pkl")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_content_is_read_as_pickle_reads_it(protocol: int, tmp_path: Path) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    content = {
        "c": base,
        "fortran": np.asfortranarray(base),
        "big": base.astype(">f8"),
        "half": base.astype(np.float16),
        "empty": np.zeros((0, 4), np.int64),
        "flags": base > 3,
        "words": np.array(["a", "éé"]),
        "bytes": np.array([b"a", b"bc"]),
        "scalars": [np.float32(1.5), np.int64(3)],
        "plain": [None, True, 1, 2.5, "é", b"\xff\x00", [1, [2]]],
        7: "number",
    }
    content["again"] = content["c"]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_pickle(tmp_path / "x.pkl")
    assert list(found) == list(content)
    for name in ("c", "fortran", "big", "half", "empty", "flags", "words", "bytes", "again"):
        np.testing.assert_array_equal(found[name], content[name])
        assert found[name].dtype == content[name].dtype
    assert found["scalars"] == [1.5, 3]
    assert found["plain"] == content["plain"]


def test_objects_arrays_are_lists_and_other_types_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(
        pickle.dumps({"ids": np.array(["a", "b"], object), "grid": np.array([[1, "x"], [2, "y"]], object)})
    )
    assert read_pickle(path) == {"ids": ["a", "b"], "grid": [[1, "x"], [2, "y"]]}
    for array in (np.zeros(2, [("a", "f4")]), np.zeros(2, "M8[s]"), np.zeros(2, complex)):
        path.write_bytes(pickle.dumps(array))
        with pytest.raises(UserError, match="not a readable pickle"):
            read_pickle(path)


def test_damaged_and_hostile_pickles_are_errors(tmp_path: Path) -> None:
    path, whole = tmp_path / "x.pkl", pickle.dumps({"a": np.arange(20.0), "b": ["x"] * 5})
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole[: int(rng.integers(1, len(whole)))] if rng.random() < 0.3 else whole)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            read_pickle(path)
        except UserError:
            continue
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    path.write_bytes(pickle.dumps(cyclic))
    with pytest.raises(UserError, match="nested too deeply"):
        read_pickle(path)
    bomb: list[Any] = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]
    path.write_bytes(pickle.dumps(bomb))
    found = read_pickle(path)
    assert found[0] is found[1], "each list is converted once, or this would take for ever"
