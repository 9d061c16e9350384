"""A cache at a URL reads as the local one, finds damage, and is never written."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from cache.bank import TokenBank
from cache.errors import CorruptCacheError, UserError
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore
from cache.upload import upload

Maker = Callable[..., list[SampleTokens]]
ROWS = torch.tensor([3, 0, 2])
IDS = ["a", "b", "c", "é"]


@pytest.fixture
def memory(filled: TokenStore) -> str:
    """URL of the filled store in fsspec's memory filesystem."""
    url = f"memory://{uuid.uuid4().hex}/m.zarr"
    upload(filled, url)
    return url


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """Endpoint of an S3 server in a thread of this process."""
    pytest.importorskip("s3fs", reason="needs the extra `s3`")
    server = pytest.importorskip("moto.server", reason="needs moto[server], of the extra `dev`")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(s3_server: str, filled: TokenStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of the filled store in a bucket."""
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    bucket = uuid.uuid4().hex
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    filesystem.mkdir(bucket)
    upload(filled, f"s3://{bucket}/data/m.zarr")
    return f"s3://{bucket}/data/m.zarr"


@pytest.mark.parametrize("kind", ["memory", pytest.param("s3", marks=pytest.mark.slow)])
def test_a_url_reads_as_the_folder(request: pytest.FixtureRequest, filled: TokenStore, kind: str) -> None:
    url = request.getfixturevalue(kind)
    remote = TokenStore.open(url)
    assert {**remote.info(), "path": ""} == {**filled.info(), "path": ""}
    assert remote.info()["path"].replace("///", "//") == url
    assert remote.content_digest() == filled.content_digest()
    assert remote.failures() == filled.failures()
    for one, two in zip(remote.read(IDS), filled.read(IDS), strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        np.testing.assert_array_equal(one.maskable, two.maskable)
    batches = [TokenBank.load({"m": store}, IDS, None).batch(ROWS) for store in (remote, filled)]
    assert torch.equal(batches[0].tokens["m"], batches[1].tokens["m"])
    report = remote.verify()
    assert (report.problems, report.parts, report.samples) == ([], 2, 5)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_every_type_and_compressed_parts_read_at_a_url(
    tmp_path: Path, make_key: Callable[..., CacheKey], make_samples: Maker, dtype: str
) -> None:
    store = TokenStore.create(tmp_path / "m.zarr", make_key(), 3, dtype, "zstd")
    store.append(make_samples(["a", "b"]))
    store.publish_view({"a": "digest-a", "b": "digest-b"})
    url = f"memory://{uuid.uuid4().hex}"
    upload(store, url)
    for one, two in zip(TokenStore.open(url).read(["b", "a"]), store.read(["b", "a"]), strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)


def test_large_files_come_in_ranges(filled: TokenStore, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.location.RANGE_BYTES", 7)
    for one, two in zip(TokenStore.open(memory).read(IDS), filled.read(IDS), strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)


@pytest.mark.parametrize("damage", ["remove", "truncate", "grow", "flip"])
def test_damage_at_a_url_is_found_and_never_read(filled: TokenStore, memory: str, damage: str) -> None:
    filesystem, root = fsspec.core.url_to_fs(memory)
    opened = TokenStore.open(memory)
    for entry in filled.entries():
        path = f"{root}/parts/{entry['part']}/tokens/c/0/0"
        good = filesystem.cat_file(path)
        changed = {"truncate": good[:-1], "grow": good + b"\0", "flip": bytes([good[0] ^ 1]) + good[1:]}
        filesystem.rm_file(path)
        if damage in changed:
            filesystem.pipe_file(path, changed[damage])
        report = TokenStore.open(memory, check=False).verify()
        assert any("tokens/c/0/0" in problem for problem in report.problems)
        if damage != "grow":
            with pytest.raises(CorruptCacheError):
                opened.read(IDS)
        if damage != "flip":
            with pytest.raises(CorruptCacheError, match="tokens/c/0/0"):
                TokenStore.open(memory)
        filesystem.pipe_file(path, good)
    assert TokenStore.open(memory).verify().problems == []


def test_a_url_is_read_only(memory: str, make_samples: Maker) -> None:
    store = TokenStore.open(memory)
    for write in (
        lambda: store.append(make_samples(["n"])),
        lambda: store.record_failures({"n": ("d", "torn")}),
        lambda: store.publish_view({}),
        lambda: store.verify(clean=True),
        lambda: store.verify(repair=True),
    ):
        with pytest.raises(UserError, match="read-only"):
            write()


def test_an_address_that_leads_nowhere_is_one_line(tmp_path: Path) -> None:
    for url, message in (
        ("memory://nobody/none.zarr", "no token cache at memory://"),
        ("nosuch://x/y.zarr", "cannot be read"),
        (f"file://{tmp_path}/none.zarr", "no token cache"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            TokenStore.open(url)
        assert "\n" not in str(caught.value)


def test_a_file_url_is_mapped(filled: TokenStore) -> None:
    store = TokenStore.open(f"file://{filled.path}")
    assert store.path == filled.path
    assert isinstance(store.read_part(store.entries()[0]).tokens, np.memmap)


def test_a_stopped_upload_shows_the_old_cache_or_none_and_goes_on(
    filled: TokenStore, make_samples: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, sent, allowed = fsspec.filesystem("memory"), [], [0]
    put = type(filesystem).put_file

    def put_file(self: object, local: str, remote: str, **options: object) -> None:
        if len(sent) >= allowed[0]:
            raise OSError("connection lost")
        sent.append(remote)
        put(self, local, remote, **options)

    def stopped_upload(url: str, after: int) -> None:
        sent.clear()
        allowed[0] = after
        with pytest.raises(UserError, match="connection lost"):
            upload(filled, url)

    monkeypatch.setattr(type(filesystem), "put_file", put_file)
    monkeypatch.setattr("cache.location.CONNECTIONS", 1)
    total = sum(path.is_file() for path in filled.path.rglob("*"))
    for after in (1, 15, total - 1):
        url = f"memory://{uuid.uuid4().hex}/m.zarr"
        stopped_upload(url, after)
        with pytest.raises(UserError, match="no token cache"):
            TokenStore.open(url)
    allowed[0] = total
    sent.clear()
    upload(filled, url)
    assert len(sent) == 3, "a failure's record, the view and the root: parts travel once"
    filled.append(make_samples(["new"]))
    for after in (1, 11):
        stopped_upload(url, after)
        assert TokenStore.open(url).verify().problems == []
        assert TokenStore.open(url).missing_from({"new": "digest-new"}) == ["new"]
    allowed[0] = total
    upload(filled, url)
    assert TokenStore.open(url).missing_from({"new": "digest-new"}) == []
    assert TokenStore.open(url).verify().problems == []
