"""Stores against a dictionary, against zarr and against torch."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.errors import UserError
from cache.key import CacheKey
from cache.parts import read_identities
from cache.precision import from_stored, to_stored
from cache.store import SampleTokens, TokenStore

Maker = Callable[..., list[SampleTokens]]
IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=6)
PARTS = st.lists(st.lists(st.tuples(IDS, st.integers(0, 3), st.sampled_from(["x", "yy"])), max_size=4), max_size=3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS, dtype=st.sampled_from(["float16", "bfloat16", "float32"]))
def test_a_store_behaves_as_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    make_key: Callable[..., CacheKey],
    parts: list[list[tuple[str, int, str]]],
    dtype: str,
) -> None:
    path = tmp_path_factory.mktemp("model") / "m.zarr"
    store = TokenStore.create(path, make_key(), 2, dtype)
    written: dict[str, list[SampleTokens]] = {}
    for number, part in enumerate(parts):
        samples = [
            SampleTokens(i, d, np.full((length, 2), number + 0.5 * row, np.float32), np.arange(length) % 2 == row % 2)
            for row, (i, length, d) in enumerate(part)
        ]
        part_id = store.append(samples)
        assert (part_id is None) == (not samples)
        if part_id:
            written[part_id] = samples
    model: dict[tuple[str, str], SampleTokens] = {}
    for part_id in sorted(written):  # the first by part id
        for sample in written[part_id]:
            model.setdefault((sample.sample_id, sample.digest), sample)
    view = dict(model.keys())  # of one id the last digest
    store.publish_view(view)
    reopened = TokenStore.open(path)
    assert reopened.missing_from(view) == []
    assert reopened.missing_from(dict.fromkeys(view, "other")) == list(view)
    for sample_id, got in zip(view, reopened.read(list(view)), strict=True):
        expected = model[(sample_id, view[sample_id])]
        assert (got.sample_id, got.digest) == (expected.sample_id, expected.digest)
        np.testing.assert_array_equal(got.tokens, expected.tokens)
        np.testing.assert_array_equal(got.maskable, expected.maskable)
        assert got.tokens.dtype == np.float32
    assert reopened.verify().problems == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rounding_is_that_of_torch(dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=5000) * 10.0 ** rng.integers(-8, 4, 5000), [0.0, -0.0, 1.00390625]])
    tensor = torch.tensor(values, dtype=torch.float32)
    expected = tensor.to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(from_stored(to_stored(tensor.numpy(), dtype), dtype), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_zarr_reads_the_same_tokens(
    tmp_path: Path, make_key: Callable[..., CacheKey], make_samples: Maker, dtype: str
) -> None:
    store = TokenStore.create(tmp_path / "m.zarr", make_key(), 3, dtype)
    samples = make_samples(["a", "b", "c"])
    part_id = store.append(samples)
    part = zarr.open_group(store.path, mode="r")[f"parts/{part_id}"]
    assert isinstance(part, zarr.Group)
    assert part.attrs["samples"] == 3
    stored = np.asarray(part["tokens"][:])
    if dtype == "bfloat16":
        values = torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).float().numpy()
    else:
        values = stored.astype(np.float32)
    np.testing.assert_array_equal(values, np.concatenate([s.tokens for s in samples]))
    np.testing.assert_array_equal(np.diff(np.asarray(part["offsets"][:])), [len(s.tokens) for s in samples])
    assert np.asarray(part["samples/ids"][:]).tobytes() == b"abc"
    for name in ("tokens", "offsets", "maskable", "samples/ids", "samples/digests"):
        array = part[name]
        assert isinstance(array, zarr.Array)
        assert array.chunks == array.shape
        assert [type(codec).__name__ for codec in array.compressors] == ["Crc32cCodec"]


def test_the_chunk_file_is_the_array_and_a_checksum(filled: TokenStore) -> None:
    for entry in filled.entries():
        size = (filled.path / "parts" / entry["part"] / "tokens" / "c" / "0" / "0").stat().st_size
        assert size == entry["tokens"] * 3 * 2 + 4


def test_all_zero_tokens_are_on_disk(store: TokenStore) -> None:
    store.append([SampleTokens("z", "d", np.zeros((2, 3), np.float32), np.zeros(2, bool))])
    store.publish_view({"z": "d"})
    np.testing.assert_array_equal(store.read(["z"])[0].tokens, np.zeros((2, 3)))
    assert len(list((store.path / "parts").glob("*/tokens/c/0/0"))) == 1


def test_an_empty_store_works(store: TokenStore) -> None:
    assert store.append([]) is None
    store.publish_view({})
    opened = TokenStore.open(store.path)
    assert (opened.read([]), opened.view(), opened.failures()) == ([], {}, {})
    assert (opened.info()["samples"], opened.info()["complete"]) == (0, True)
    report = opened.verify(clean=True)
    assert (report.problems, report.parts, report.orphans) == ([], 0, 0)


def test_empty_folders_may_be_gone(store: TokenStore) -> None:
    """Git and DVC keep no empty folders."""
    for name in ("manifest", "failures"):
        (store.path / name).rmdir()
    opened = TokenStore.open(store.path)
    assert opened.verify().problems == []
    opened.record_failures({"a": ("d", "blank")})
    opened.append([SampleTokens("b", "d", np.ones((1, 3), np.float32), np.ones(1, bool))])
    assert opened.missing_from({"a": "d", "b": "d"}) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_tokens_are_refused(
    tmp_path: Path, make_key: Callable[..., CacheKey], dtype: str, value: float
) -> None:
    store = TokenStore.create(tmp_path / "m.zarr", make_key(), 3, dtype)
    tokens = np.ones((2, 3), np.float32)
    tokens[1, 2] = value
    with pytest.raises(UserError, match="NaN, infinite"):
        store.append([SampleTokens("a", "d", tokens, np.ones(2, bool))])
    assert store.entries() == []
    assert store.verify().orphans == 0


def test_every_nan_bit_pattern_is_refused_in_bfloat16(tmp_path: Path, make_key: Callable[..., CacheKey]) -> None:
    store = TokenStore.create(tmp_path / "m.zarr", make_key(), 1, "bfloat16")
    for bits in (0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001):
        tokens = np.array([[bits]], np.uint32).view(np.float32)
        with pytest.raises(UserError, match="NaN"):
            store.append([SampleTokens("a", "d", tokens, np.ones(1, bool))])


def test_tokens_beyond_float16_are_refused(store: TokenStore) -> None:
    with pytest.raises(UserError, match=r"extract\.dtype=float32"):
        store.append([SampleTokens("a", "d", np.full((1, 3), 1e6, np.float32), np.ones(1, bool))])


@pytest.mark.parametrize(
    ("sample_id", "digest", "shape", "flags"),
    [
        ("", "d", (1, 3), 1),
        ("a\0", "d", (1, 3), 1),
        ("\ud800", "d", (1, 3), 1),
        ("a", "", (1, 3), 1),
        ("a", "d", (1, 4), 1),
        ("a", "d", (3,), 3),
        ("a", "d", (2, 3), 1),
    ],
)
def test_bad_samples_are_refused(
    store: TokenStore, sample_id: str, digest: str, shape: tuple[int, ...], flags: int
) -> None:
    with pytest.raises(UserError):
        store.append([SampleTokens(sample_id, digest, np.ones(shape, np.float32), np.ones(flags, bool))])
    assert store.entries() == []


def test_failures_count_as_done_until_the_input_changes(store: TokenStore) -> None:
    store.record_failures({"a": ("old", "blank"), "b": ("d", "torn")})
    assert store.missing_from({"a": "old", "b": "d", "c": "d"}) == ["c"]
    assert store.missing_from({"a": "new", "b": "d"}) == ["a"]
    store.append([SampleTokens("a", "new", np.ones((1, 3), np.float32), np.ones(1, bool))])
    store.publish_view({"a": "new", "b": "d"})
    assert store.failures() == {"b": "torn"}


def test_a_changed_sample_is_read_by_its_new_digest(store: TokenStore) -> None:
    for value, digest in ((1.0, "old"), (2.0, "new")):
        store.append([SampleTokens("a", digest, np.full((1, 3), value, np.float32), np.ones(1, bool))])
    for value, digest in ((1.0, "old"), (2.0, "new")):
        store.publish_view({"a": digest})
        assert store.read(["a"])[0].tokens[0, 0] == value


def test_a_view_needs_all_its_samples(filled: TokenStore) -> None:
    before = filled.view()
    with pytest.raises(UserError, match="1 samples are not extracted"):
        filled.publish_view({"a": "digest-a", "new": "d"})
    assert filled.view() == before


def test_reading_needs_a_view_and_tokens(store: TokenStore, filled: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokens"):
        filled.read(["a", "f"])
    with pytest.raises(UserError, match="no tokens"):
        filled.read(["nobody"])
    (filled.path / "view.json").unlink()
    with pytest.raises(UserError, match="selfmask extract"):
        filled.read(["a"])


def test_no_store_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Run `selfmask extract`"):
        TokenStore.open(tmp_path / "none.zarr")


def test_content_digest_follows_parts_and_view(filled: TokenStore, make_samples: Maker) -> None:
    before = filled.content_digest()
    assert TokenStore.open(filled.path).content_digest() == before
    filled.publish_view({"a": "digest-a"})
    viewed = filled.content_digest()
    filled.append(make_samples(["new"]))
    assert len({before, viewed, filled.content_digest()}) == 3


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path, make_key: Callable[..., CacheKey]) -> None:
    def write(writer: int) -> None:
        store = TokenStore.create(tmp_path / "m.zarr", make_key(), 3)
        for number in range(2):
            tokens = np.full((1, 3), writer, np.float32)
            own, shared = f"w{writer}n{number}", f"shared{number}"
            store.append([SampleTokens(i, "d", tokens, np.ones(1, bool)) for i in (own, shared)])
            store.record_failures({f"f{writer}n{number}": ("d", "torn")})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = TokenStore.open(tmp_path / "m.zarr")
    pairs = [(writer, number) for writer in range(3) for number in range(2)]
    wanted = {f"{kind}{w}n{n}": "d" for kind in "wf" for w, n in pairs} | {f"shared{n}": "d" for n in range(2)}
    assert store.missing_from(wanted) == []
    store.publish_view(wanted)
    assert store.verify().problems == []
    owner = {e["part"]: from_stored(np.asarray(store.read_part(e).tokens), "float16")[0, 0] for e in store.entries()}
    for number in range(2):
        holders = sorted(part for (i, _), part in _all_parts(store) if i == f"shared{number}")
        assert len(holders) == 3
        assert store.read([f"shared{number}"])[0].tokens[0, 0] == owner[holders[0]]


def _all_parts(store: TokenStore) -> list[tuple[tuple[str, str], str]]:
    return [(identity, e["part"]) for e in store.entries() for identity in read_identities(store.path, e)]
