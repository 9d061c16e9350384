"""Run a fitted encoder over every sample of a table and keep the tokens in a cache.

Only samples that the cache lacks, by (id, digest of the raw content), are encoded; batches hold samples of similar
length, so that little is spent on padding. A value that cannot be read is recorded with its reason and counts as
missing. The view is published last: a killed extraction goes on where it stopped, and nobody reads it before.
"""

import json
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cache.errors import CorruptCacheError, StaleCacheError
from cache.key import CacheKey
from cache.parts import SampleTokens
from cache.pending import PendingPart
from cache.publish import file_sha256
from cache.store import TokenStore
from extract.config import ExtractSettings
from extract.encoders.base import Encoder
from extract.encoders.registry import load_encoder
from extract.samples import SamplesTable
from extract.values import UnreadableValue, read_value, value_digest

Item = tuple[str, str, dict[str, np.ndarray]]


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
) -> dict[str, Any]:
    """Bring the cache at `out` up to date with the table; returns its counts.

    Args:
        table: samples table.
        modality: which one.
        encoder_folder: fitted encoder.
        extract: batch size, precisions, compression, part size.
        out: `<modality>.zarr`.
        replace: remove a cache of another key instead of refusing it (the pipeline's own output).

    Raises:
        StaleCacheError: the cache has another key and `replace` is false.
        CorruptCacheError: the cache's root is damaged; other damage is moved aside and encoded again.
    """
    encoder = load_encoder(encoder_folder)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    store = _open(out, cache_key(encoder, encoder_folder, extract.precision), encoder.width, extract, replace)
    rows = {str(row["sample_id"]): row for _, row in table.frame.iterrows()}
    digests = {i: value_digest(table, row, modality) for i, row in rows.items()}
    wanted = {i: digest for i, digest in digests.items() if digest is not None}
    todo = store.missing_from(wanted)
    progress = _Progress(modality, len(todo))
    pending = PendingPart(store, int(extract.part_megabytes * 1e6), extract.part_minutes * 60)
    block = extract.batch_size * extract.sorted_batches
    for start in range(0, len(todo), block):
        samples = {i: (rows[i], wanted[i]) for i in todo[start : start + block]}
        _extract_block(table, modality, encoder, extract, samples, pending, progress)
    pending.publish()
    store.publish_view(wanted)
    have = store.places()  # a recorded failure may belong to content that has been repaired since
    unreadable = sum((i, digest) not in have for i, digest in wanted.items())
    fresh = sum((i, wanted[i]) in have for i in todo)
    return {"modality": modality, "encoded": fresh, "samples": len(wanted), "unreadable": unreadable}


def _open(out: Path, key: CacheKey, width: int, extract: ExtractSettings, replace: bool) -> TokenStore:
    try:
        return TokenStore.create(out, key, width, extract.dtype, extract.compression)
    except StaleCacheError:
        if not replace or not _is_token_cache(out):  # never delete a folder of something else
            raise
        shutil.rmtree(out)
    except CorruptCacheError:
        for line in TokenStore.open(out, check=False).verify(repair=True).repaired:
            Console(stderr=True).print(line, highlight=False, soft_wrap=True, markup=False)
    return TokenStore.create(out, key, width, extract.dtype, extract.compression)


def _is_token_cache(path: Path) -> bool:
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        return False
    return "selfmask" in attributes


def _extract_block(
    table: SamplesTable,
    modality: str,
    encoder: Encoder,
    extract: ExtractSettings,
    samples: Mapping[str, tuple[Any, str]],
    pending: PendingPart,
    progress: "_Progress",
) -> None:
    items: list[Item] = []
    for sample_id, (row, digest) in samples.items():
        try:
            items.append((sample_id, digest, encoder.preprocess(read_value(table, row, modality))))
        except UnreadableValue as error:
            pending.failures[sample_id] = (digest, str(error))
    items.sort(key=lambda item: len(next(iter(item[2].values()))))
    for start in range(0, len(items), extract.batch_size):
        batch = items[start : start + extract.batch_size]
        pending.add(encode_items(encoder, batch, extract.precision))
        progress.update(len(batch))


@torch.no_grad()
def encode_items(encoder: Encoder, items: list[Item], precision: str) -> list[SampleTokens]:
    """Encode one batch of preprocessed samples."""
    encoder.eval()
    device = encoder.placeholder.device
    inputs = {name: value.to(device) for name, value in encoder.collate([item[2] for item in items]).items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        tokens, embedded = encoder(inputs)
    native = tokens.float().cpu().numpy()
    valid, maskable = embedded.valid.cpu().numpy(), embedded.maskable.cpu().numpy()
    return [
        SampleTokens(sample_id, digest, native[row][valid[row]], maskable[row][valid[row]])
        for row, (sample_id, digest, _) in enumerate(items)
    ]


class _Progress:
    """A line every few seconds: samples, rate, time left."""

    EVERY_S = 5.0

    def __init__(self, modality: str, total: int) -> None:
        self.modality, self.total, self.done = modality, total, 0
        self.started = self.last = time.monotonic()
        self.console = Console(stderr=True)

    def update(self, count: int) -> None:
        """Count samples and print when it is time, or at the end."""
        self.done += count
        now = time.monotonic()
        if now - self.last < self.EVERY_S and self.done < self.total:
            return
        self.last = now
        rate = self.done / max(now - self.started, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        self.console.print(
            f"extract {self.modality}: {self.done}/{self.total} samples, {rate:.0f}/s, about {left:.0f} s left",
            highlight=False,
            soft_wrap=True,
        )
