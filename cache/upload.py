"""Copy a cache to an fsspec URL, in the order in which it was published.

Parts first, then their manifest entries, failures, the view and the root last: a reader never sees an entry whose part
is not there yet, and a stopped upload goes on where it was, because parts are immutable and published ones are skipped.
"""

from collections.abc import Iterator
from pathlib import Path

from cache.errors import UserError
from cache.location import RemotePath, locate, map_all, reaching, sizes
from cache.manifest import entry_paths, failure_paths
from cache.metadata import GROUP_FILE
from cache.progress import tracked
from cache.store import TokenStore


def upload(store: TokenStore, url: str) -> int:
    """Copy a local cache to a URL; returns how many files travelled.

    Raises:
        UserError: `url` is no URL, holds a cache of another key, or cannot be written.
    """
    target = locate(url)
    if isinstance(target, Path):
        raise UserError(f"{url} is a local folder. Copy the cache there, or give a URL such as s3://bucket/ehr.zarr.")
    if (target / GROUP_FILE).is_file():
        store.key.require_same(TokenStore.open(url, check=False).key, url)
    present, sent = sizes(target), 0
    for names in tracked(list(_steps(store)), "parts and documents sent"):
        new = [name for name in names if not _is_there(store.path, name, present)]
        map_all(lambda name: _put(store.path / name, target / name), new, parallel=True)
        sent += len(new)
    return sent


def _is_there(root: Path, name: str, present: dict[str, int]) -> bool:
    """Parts and their entries never change once they are whole; the other documents always travel."""
    immutable = name.startswith(("parts/", "manifest/"))
    return immutable and present.get(name) == (root / name).stat().st_size


def _steps(store: TokenStore) -> Iterator[list[str]]:
    """Return the names of the files, in groups that must follow each other."""
    root = store.path
    for entry in store.entries():
        yield [f"parts/{entry['part']}/{name}" for name in entry["files"]]
    documents = (entry_paths(root), failure_paths(root), [root / "parts" / GROUP_FILE])
    yield from ([path.relative_to(root).as_posix() for path in paths] for paths in documents)
    yield ["view.json"] if (root / "view.json").exists() else []
    yield [GROUP_FILE]


def _put(source: Path, target: RemotePath) -> None:
    with reaching(target):
        target.filesystem.put_file(str(source), target.path)
