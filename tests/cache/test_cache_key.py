"""Keys: what makes two caches the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cache.errors import StaleCacheError, UserError
from cache.key import CacheKey
from cache.store import TokenStore

CHANGES: list[tuple[str, Any]] = [
    ("encoder", "other"),
    ("options", {"depth": 3}),
    ("weights_sha256", "1" * 64),
    ("preprocessing", {}),
    ("precision", "bfloat16"),
    ("libraries", {"torch": "3"}),
    ("layout", {"grid": [1, 4]}),
    ("pretrained_or_fitted", False),
]


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_every_field_changes_the_digest_and_is_named_when_it_differs(
    tmp_path: Path, make_key: Callable[..., CacheKey], field: str, value: Any
) -> None:
    key, other = make_key(), make_key(**{field: value})
    assert key.digest() != other.digest()
    assert list(key.difference(other)) == [field]
    TokenStore.create(tmp_path / "m.zarr", key, 3)
    with pytest.raises(StaleCacheError, match=f"{field}: cached .*selfmask extract"):
        TokenStore.create(tmp_path / "m.zarr", other, 3)


def test_every_field_is_tried() -> None:
    assert {field for field, _ in CHANGES} == set(CacheKey.model_fields)


def test_digest_ignores_the_order_of_options_and_tuples_are_lists(make_key: Callable[..., CacheKey]) -> None:
    forward, backward = make_key(options={"a": 1, "b": (2, 3)}), make_key(options={"b": [2, 3], "a": 1})
    assert forward.digest() == backward.digest()
    assert forward.difference(backward) == {}


def test_key_survives_the_store(store: TokenStore, make_key: Callable[..., CacheKey]) -> None:
    assert TokenStore.open(store.path).key.difference(make_key()) == {}
    assert TokenStore.create(store.path, make_key(), 3).identity == store.identity


@pytest.mark.parametrize(("width", "dtype", "named"), [(4, "float16", "width"), (3, "float32", "dtype")])
def test_another_width_or_dtype_is_stale(
    store: TokenStore, make_key: Callable[..., CacheKey], width: int, dtype: str, named: str
) -> None:
    with pytest.raises(StaleCacheError, match=named):
        TokenStore.create(store.path, make_key(), width, dtype)


def test_unknown_dtype_names_the_known_ones(tmp_path: Path, make_key: Callable[..., CacheKey]) -> None:
    with pytest.raises(UserError, match="float16, bfloat16, float32"):
        TokenStore.create(tmp_path / "m.zarr", make_key(), 3, "float8")


def test_keys_are_frozen_and_refuse_unknown_fields(make_key: Callable[..., CacheKey]) -> None:
    with pytest.raises(ValidationError):
        make_key(colour="red")
    with pytest.raises(ValidationError):
        make_key().encoder = "other"
