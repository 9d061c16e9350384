"""Compressed parts hold the same tokens, beside uncompressed ones, and are as hard to corrupt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from cache.bank import TokenBank
from cache.chunks import Chunk, write_chunk
from cache.errors import CorruptCacheError, UserError
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore

Maker = Callable[..., list[SampleTokens]]
DTYPES = ["float16", "bfloat16", "float32", "int8"]


@pytest.fixture
def mixed(tmp_path: Path, make_key: Callable[..., CacheKey], make_samples: Maker) -> Callable[[str], TokenStore]:
    """Return a maker of stores with one plain and one compressed part."""

    def make(dtype: str = "float16") -> TokenStore:
        path = tmp_path / f"{dtype}.zarr"
        TokenStore.create(path, make_key(), 3, dtype).append(make_samples(["a", "b"], longest=40))
        store = TokenStore.create(path, make_key(), 3, dtype, "zstd")
        store.append(make_samples(["c", "d"], seed=1, longest=40))
        store.publish_view({i: f"digest-{i}" for i in "abcd"})
        return TokenStore.open(path)

    return make


def compressed(store: TokenStore) -> dict[str, Any]:
    return next(e for e in store.entries() if e["arrays"]["tokens"].get("compression") == "zstd")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_store_of_both_kinds_equals_a_plain_one(
    mixed: Callable[[str], TokenStore],
    tmp_path: Path,
    make_key: Callable[..., CacheKey],
    make_samples: Maker,
    dtype: str,
) -> None:
    store, plain = mixed(dtype), TokenStore.create(tmp_path / "plain.zarr", make_key(), 3, dtype)
    assert plain.identity == store.identity
    plain.append([*make_samples(["a", "b"], longest=40), *make_samples(["c", "d"], seed=1, longest=40)])
    plain.publish_view(store.view())
    for one, two in zip(store.read(list("dacb")), plain.read(list("dacb")), strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
    banks = [TokenBank.load({"m": s}, list("abcd"), None).batch(torch.arange(4)) for s in (store, plain)]
    assert torch.equal(banks[0].tokens["m"], banks[1].tokens["m"])
    assert store.verify().problems == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_decodes_a_compressed_part(mixed: Callable[[str], TokenStore], dtype: str) -> None:
    store = mixed(dtype)
    entry = compressed(store)
    array = zarr.open_array(store.path / "parts" / entry["part"] / "tokens", mode="r")
    assert [type(codec).__name__ for codec in array.compressors] == ["ZstdCodec", "Crc32cCodec"]
    np.testing.assert_array_equal(np.asarray(array[:]), store.read_part(entry).tokens)


def test_every_flipped_bit_of_a_compressed_chunk_is_found_when_it_is_read(mixed: Callable[[str], TokenStore]) -> None:
    store = mixed("float16")
    entry = compressed(store)
    path = store.path / "parts" / entry["part"] / "tokens/c/0/0"
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), 7):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(CorruptCacheError, match="checksum"):
            store.read_part(entry)
    for bad in (good[:-1], good + b"\0"):
        path.write_bytes(bad)
        with pytest.raises(CorruptCacheError, match="size"):
            store.read_part(entry)
    path.unlink()
    with pytest.raises(CorruptCacheError, match="absent"):
        store.read_part(entry)


def test_a_forged_frame_cannot_ask_for_memory(tmp_path: Path) -> None:
    """A frame of another size than the manifest's, with a right checksum."""
    for forged in (np.zeros(10_000_000, np.uint8), np.zeros(300, np.uint8), np.zeros(3, np.uint8)):
        write_chunk(tmp_path / "c", [forged], "zstd")
        size = (tmp_path / "c").stat().st_size
        with pytest.raises(CorruptCacheError, match="another size"):
            Chunk(tmp_path / "c", (4, 2), np.dtype("float16"), "zstd", size).read()


def test_an_unknown_compression_names_the_setting(tmp_path: Path, make_key: Callable[..., CacheKey]) -> None:
    with pytest.raises(UserError, match=r"extract\.compression"):
        TokenStore.create(tmp_path / "m.zarr", make_key(), 3, "float16", "lzma")
