"""Stage two: train one method on cached tokens, and select its epoch on the validation split.

Tokens that fit the memory stay there, and a batch is a random slice of a permutation drawn from the epoch's generator;
larger caches are streamed in an order that seed and epoch determine. So a run that was killed goes on bit for bit. The
fingerprint covers everything that determines the weights: a finished stage returns at once, a changed one starts anew.
The test split is loaded with the others but never read here.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.errors import StaleCacheError, UserError
from cache.publish import file_sha256, fingerprint, write_json
from cache.store import TokenStore
from cache.streaming import CachedBank, StreamingBank, open_banks
from extract.config import Settings
from extract.ranks import Ranks, SharedGenerator, alone
from extract.samples import ModalitySpec, SamplesTable
from extract.task import LabelSpec
from extract.training import History, LoopSettings, run_epochs
from train.checkpoint import CONFIG, load_checkpoint, read_config, save_checkpoint
from train.config import MethodName, ModelSettings, TrainSettings
from train.methods.base import Method, ModelSpec
from train.methods.registry import build_method, model_spec
from train.more_vs_fewer import add_ranking
from train.scoring import predict_bank, selection_metrics
from train.shares import SharedBatch, as_share, gather_share

__all__ = ["load_banks", "open_stores", "predict_bank", "selection_metrics", "token_keys", "train_method"]
SECONDS = "seconds.json"
"""Beside the checkpoint, not in it: equal runs make equal checkpoints."""


def open_stores(
    table: SamplesTable, token_root: Path, modalities: Sequence[str] | None = None
) -> dict[str, TokenStore]:
    """Open `<token_root>/<modality>.zarr` of the named modalities (default: all that the table declares)."""
    declared = [modality.name for modality in table.info.modalities]
    names = declared if modalities is None else list(modalities)
    unknown = [name for name in names if name not in declared]
    if unknown:
        raise UserError(f"Unknown modalities {unknown}; the samples table declares {declared}.")
    return {name: TokenStore.open(token_root / f"{name}.zarr") for name in names}


def require_current(stores: Mapping[str, TokenStore], encoders: Mapping[str, Path]) -> None:
    """Compare the tokens with the fitted encoders that are here; a checkout may have none.

    Raises:
        StaleCacheError: a cache holds the tokens of other weights.
    """
    for name, store in stores.items():
        weights = encoders[name] / "model.safetensors"
        if weights.is_file() and file_sha256(weights) != store.key.weights_sha256:
            raise StaleCacheError(
                f"{store.path} holds the tokens of another encoder than {encoders[name]}. "
                f"Run `selfmask extract {name}`, or pull both (`dvc pull`)."
            )


def load_banks(
    table: SamplesTable,
    stores: Mapping[str, TokenStore],
    splits: Sequence[str],
    memory_gb: float | None,
    device: torch.device | str = "cpu",
) -> dict[str, CachedBank]:
    """Open one bank per split, aligned with `table.ids(split)`; streaming if the tokens exceed `memory_gb`."""
    samples = {split: (table.ids(split), table.labels(split)) for split in splits}
    return open_banks(stores, samples, device, None if memory_gb is None else int(memory_gb * 1e9))


def token_keys(stores: Mapping[str, TokenStore]) -> dict[str, Any]:
    """Return, per modality, the cache key and the content digest of its store: the `token_keys` of `train_method`."""
    return {
        name: {"key": store.key.model_dump(mode="json"), "content": store.content_digest()}
        for name, store in stores.items()
    }


def train_method(
    name: MethodName,
    seed: int,
    banks: Mapping[str, CachedBank],
    label: LabelSpec,
    model: ModelSettings,
    options: Settings | None,
    train: TrainSettings,
    out: Path,
    token_keys: Mapping[str, Any],
    *,
    sample_ids: Mapping[str, Sequence[str]] | None = None,
    encoders: Mapping[str, Path | str] | None = None,
    modalities: Sequence[ModalitySpec] = (),
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train one method with one seed and write its checkpoint folder.

    Args:
        name: method.
        seed: of weights, batches, draws and dropout.
        banks: `train` and `valid` are used.
        label: what is predicted.
        model: sizes.
        options: the method's own settings, None if it has none.
        train: the loop.
        out: checkpoint folder; holds `state.pt` for resuming, too.
        token_keys: what `token_keys` returns, stored and part of the fingerprint.
        sample_ids: ids per split in the banks' order; without them, the row number stands for the id.
        encoders: encoder folders relative to the project root; default `<out>/../../encoders/<modality>`.
        modalities: declared modalities of the samples table, stored so that `predict` can read a bare csv.
        ranks: the processes that train together; by default this one alone.

    Returns:
        The checkpoint's configuration; `validation` holds the metrics of the chosen epoch.
    """
    spec = model_spec(banks["train"], label, model)
    ids = {s: tuple((sample_ids or {}).get(s) or map(str, range(len(banks[s])))) for s in ("train", "valid")}
    folders = encoders or {m: out.parent.parent / "encoders" / m for m in spec.modalities}
    config: dict[str, Any] = {
        "stage": "train",
        "method": name,
        "seed": seed,
        "spec": spec.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "options": options.model_dump(mode="json") if options else {},
        "train": train.model_dump(mode="json"),
        "tokens": dict(token_keys),
        "encoders": {m: _relative(Path(folder)) for m, folder in folders.items()},
        "modalities": [modality.model_dump(mode="json") for modality in modalities],
    }
    config["fingerprint"] = _fingerprint(config, banks, ids)
    done = _finished(out, config["fingerprint"])
    ranks = ranks or alone()
    ranks.require_same(int(done is None), "which checkpoints are finished")
    return done or _run(_fresh(name, seed, spec, model, options), banks, ids["valid"], train, config, out, ranks)


def _fresh(name: MethodName, seed: int, spec: ModelSpec, model: ModelSettings, options: Settings | None) -> Method:
    torch.manual_seed(seed)
    return build_method(name, spec, model, options).to("cuda" if torch.cuda.is_available() else "cpu")


def _run(
    method: Method,
    banks: Mapping[str, CachedBank],
    valid_ids: Sequence[str],
    train: TrainSettings,
    config: dict[str, Any],
    out: Path,
    ranks: Ranks,
) -> dict[str, Any]:
    device = next(method.parameters()).device
    bank = banks["train"]
    usable = bank.observed.any(-1).nonzero().flatten()  # a sample whose every value failed teaches nothing
    if not len(usable):
        raise UserError("No training sample has tokens. Run `selfmask extract` and read its failures.")
    if ranks.size > 1 and (not method.shares_batches or train.more_vs_fewer):
        raise UserError(
            f"{config['method']} with more_vs_fewer={train.more_vs_fewer:g} trains in one process: its losses do not "
            "add up over parts of a batch. Leave out torchrun."
        )
    mixed = train.precision == "bfloat16" and device.type == "cuda"

    def batches(epoch: int, generator: SharedGenerator) -> Iterator[SharedBatch]:
        method.start_epoch(epoch)
        for batch in _epoch_batches(bank, usable, train.batch_size, config["seed"], epoch, generator, ranks):
            yield batch.to(device)

    def step(batch: SharedBatch, generator: SharedGenerator) -> dict[str, Tensor]:
        generator.share = batch.share if ranks.size > 1 else None
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            losses = batch.weighted(method(batch.tokens, generator))
            return add_ranking(losses, method, batch.tokens, train.more_vs_fewer, generator)

    history = run_epochs(
        method,
        torch.optim.AdamW(method.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay),
        batches=batches,
        step=step,
        validate=lambda: selection_metrics(method, banks["valid"], valid_ids, train.select_on, 4 * train.batch_size),
        settings=LoopSettings(
            train.max_epochs,
            train.patience_epochs,
            train.clip_norm,
            config["seed"],
            warmup_epochs=method.warmup_epochs,
        ),
        folder=out,
        fingerprint=config["fingerprint"],
        after_step=method.after_step,
        describe=f"{config['method']} seed {config['seed']}",
        ranks=ranks,
    )
    if ranks.first:
        _finish(method, history, banks["valid"], valid_ids, train, config, out)
    ranks.wait()
    return read_config(out)


def _finish(
    method: Method,
    history: History,
    valid: CachedBank,
    valid_ids: Sequence[str],
    train: TrainSettings,
    config: dict[str, Any],
    out: Path,
) -> None:
    chosen = selection_metrics(method, valid, valid_ids, train.select_on, 4 * train.batch_size)
    finished = {**config, "validation": chosen, "epochs": {"best": history.best_epoch, "run": len(history.epochs)}}
    write_json(out / "history.json", history.epochs)
    write_json(out / SECONDS, history.seconds)
    save_checkpoint(out, method, finished)


def _epoch_batches(
    bank: CachedBank,
    usable: Tensor,
    batch_size: int,
    seed: int,
    epoch: int,
    generator: torch.Generator,
    ranks: Ranks,
) -> Iterator[SharedBatch]:
    if isinstance(bank, StreamingBank):
        shares = bank.shares(seed, epoch, batch_size, rows=usable, rank=ranks.rank, world_size=ranks.size)
        return (as_share(bank, rows, batch, ranks) for rows, batch in shares)
    order = usable[torch.randperm(len(usable), generator=generator)]
    return (gather_share(bank, rows, ranks) for rows in order.split(batch_size))


def _finished(out: Path, wanted: str) -> dict[str, Any] | None:
    if not (out / CONFIG).exists():
        return None
    try:
        config = load_checkpoint(out)[1]
    except UserError:  # a torn or older checkpoint is trained again
        return None
    return config if config.get("fingerprint") == wanted else None


def _fingerprint(config: Mapping[str, Any], banks: Mapping[str, CachedBank], ids: Mapping[str, Sequence[str]]) -> str:
    """Digest of all that determines the weights; where the encoders lie does not, nor a budget that is not used."""
    content = {key: value for key, value in config.items() if key not in ("encoders", "modalities")}
    content["train"] = {**config["train"], "memory_gb": getattr(banks["train"], "memory_bytes", None)}
    return fingerprint({**content, "banks": {s: _bank_digest(banks[s], ids[s]) for s in ids}})


def _bank_digest(bank: CachedBank, ids: Sequence[str]) -> str:
    """Digest of ids, labels and lengths; the tokens' content is covered by the stores' digests."""
    if len(ids) != len(bank):
        raise UserError(f"{len(ids)} sample ids for a bank of {len(bank)} samples. Run `selfmask extract` again.")
    digest = hashlib.sha256(json.dumps(list(ids)).encode())
    for values in (*bank.lengths.values(), *([] if bank.labels is None else [bank.labels])):
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _relative(folder: Path) -> str:
    inside = folder.is_absolute() and folder.is_relative_to(Path.cwd())
    return (folder.relative_to(Path.cwd()) if inside else folder).as_posix()
