"""Run a fitted encoder over every sample of a table and keep the tokens in a cache.

Only samples that the cache lacks, by (id, digest of the raw content), are encoded; batches hold samples of similar
length, so that little is spent on padding. A value that cannot be read is recorded with its reason and counts as
missing. The view is published last: a killed extraction goes on where it stopped, and nobody reads it before. Any
number of processes may extract into one cache at the same time; they share the work.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from cache.errors import CorruptCacheError, StaleCacheError, UserError
from cache.key import CacheKey
from cache.lock import in_turn
from cache.publish import file_sha256
from cache.store import TokenStore
from extract.config import ExtractSettings
from extract.encoders.base import Encoder
from extract.encoders.registry import has_learned, load_encoder
from extract.engines.chunks import WorkQueue, chunk_samples, cut
from extract.engines.claims import Claims, require_no_writer
from extract.engines.local import run_local
from extract.engines.progress import Progress
from extract.engines.ray import import_ray, run_ray
from extract.engines.worker import Job, Worker
from extract.samples import SamplesTable
from extract.values import value_digest


@dataclass(frozen=True)
class Engine:
    """Where an extraction runs: in this process, or on a Ray cluster (its address, its number of actors)."""

    name: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: int | None = None


LOCAL = Engine()


def choose_engine(name: str, address: str | None, workers: int | None) -> Engine:
    """Return the engine of these options.

    Raises:
        UserError: an unknown name, options that the engine lacks, or Ray is not installed.
    """
    if name == "ray":
        import_ray()
        return Engine("ray", address, workers)
    if name != "local":
        raise UserError(f"--engine '{name}' is unknown. Known: local, ray.")
    if address is not None or workers is not None:
        raise UserError("--address and --workers belong to --engine ray. Add it, or leave them out.")
    return LOCAL


def cache_key(encoder: Encoder, folder: Path, precision: str, *, fitted: bool = True) -> CacheKey:
    """Return the key of the tokens that this encoder gives."""
    spec = encoder.spec()
    return CacheKey(
        encoder=spec["name"],
        options=spec["options"],
        weights_sha256=file_sha256(folder / "model.safetensors"),
        preprocessing=spec["preprocessing"],
        precision=precision,
        libraries={name: version(name) for name in ("torch", "transformers", "timm")},
        layout=spec["layout"],
        pretrained_or_fitted=fitted,
    )


def extract_modality(
    table: SamplesTable,
    modality: str,
    encoder_folder: Path,
    extract: ExtractSettings,
    out: Path,
    *,
    replace: bool = False,
    retry_failed: bool = False,
    engine: Engine = LOCAL,
) -> dict[str, Any]:
    """Bring the cache at `out` up to date with the table; returns its counts.

    Args:
        table: samples table.
        modality: which one.
        encoder_folder: fitted encoder.
        extract: batch size, precisions, compression, part size.
        out: `<modality>.zarr`.
        replace: remove a cache of another key instead of refusing it (the pipeline's own output).
        retry_failed: also try samples again whose failure is recorded.
        engine: where it runs; the bytes of a sample are the same.

    Raises:
        StaleCacheError: the cache has another key and `replace` is false.
        CorruptCacheError: the cache's root is damaged; other damage is moved aside and encoded again.
        UserError: another process is writing to the cache that is to be replaced, or Ray cannot be used.
    """
    encoder = load_encoder(encoder_folder)
    learned = has_learned(encoder_folder)
    if not learned:
        _warn(f"WARNING: the encoder in {encoder_folder} has random weights; its tokens are only good for tests.")
    precision = f"{extract.precision}, compiled" if extract.compile else extract.precision
    key = cache_key(encoder, encoder_folder, precision, fitted=learned)
    wanted = _wanted(table, modality)
    with _claimed(out, key, encoder.width, extract, replace) as (store, claims):
        todo = store.missing_from(wanted, retry_failed=retry_failed)
        progress = Progress(modality, len(todo))
        chunks = cut({i: wanted[i] for i in todo}, chunk_samples(extract))
        queue = WorkQueue(store, chunks, claims, retry_failed=retry_failed)
        job = Job(table.root, modality, encoder_folder, extract, out)
        if engine.name == "ray":
            if todo:
                run_ray(job, queue, progress, engine.address, engine.workers)
        else:
            run_local(Worker(job, table, encoder, store), queue, progress.update)
        store.publish_view(wanted)
    have = store.places()
    reasons = Counter(store.failures().values())
    return {
        "modality": modality,
        "encoded": sum((i, wanted[i]) in have for i in todo),
        "samples": len(wanted),
        "unreadable": reasons.total(),
        "reasons": dict(reasons.most_common()),
    }


def _wanted(table: SamplesTable, modality: str) -> dict[str, str]:
    """Id to digest of every sample that has the modality."""
    digests = {str(row["sample_id"]): value_digest(table, row, modality) for _, row in table.frame.iterrows()}
    return {i: digest for i, digest in digests.items() if digest is not None}


@contextmanager
def _claimed(
    out: Path, key: CacheKey, width: int, extract: ExtractSettings, replace: bool
) -> Iterator[tuple[TokenStore, Claims]]:
    """Open the cache, new or again, and hold the claim that keeps others from replacing it."""
    with ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out.parent}: cannot write ({error}). Make it writable, or run elsewhere.") from error
        with in_turn(out.parent):  # or two processes that replace a cache would each remove the other's
            store = _open(out, key, width, extract, replace)
            claims = stack.enter_context(Claims(out))
        yield store, claims


def _open(out: Path, key: CacheKey, width: int, extract: ExtractSettings, replace: bool) -> TokenStore:
    try:
        return TokenStore.create(out, key, width, extract.dtype, extract.compression)
    except StaleCacheError:
        if not replace or not _is_token_cache(out):  # never delete a folder of something else
            raise
        require_no_writer(out)
        shutil.rmtree(out)
    except CorruptCacheError:
        for line in TokenStore.open(out, check=False).verify(repair=True).repaired:
            _warn(line)
    return TokenStore.create(out, key, width, extract.dtype, extract.compression)


def _warn(line: str) -> None:
    Console(stderr=True).print(line, highlight=False, soft_wrap=True, markup=False)


def _is_token_cache(path: Path) -> bool:
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        return False
    return "selfmask" in attributes
