"""Fit one encoder as a unimodal model: encoder, masked mean, head; frozen first if pretrained, then everything.

These are also the unimodal rows of a comparison. Samples that lack the modality take no part; selection is on the
validation split, and the test split is scored once with the chosen weights.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cache.errors import UserError
from cache.publish import file_sha256, fingerprint, replacing, write_json
from extract.config import EncoderSettings, FitSettings
from extract.encoders.base import Encoder, masked_mean
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.inputs import InputBank, InputBatch
from extract.metrics import compute_metrics, monitor_name
from extract.samples import SamplesTable
from extract.task import LabelSpec, outputs, probabilities, task_loss
from extract.training import LoopSettings, run_epochs
from extract.values import UnreadableValue, read_value

SPLITS = ("train", "valid", "test")


class UnimodalModel(nn.Module):
    """Encoder, masked mean over tokens, LayerNorm and a linear head."""

    def __init__(self, encoder: Encoder, label: LabelSpec) -> None:
        super().__init__()
        self.encoder, self.label = encoder, label
        self.norm = nn.LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, outputs(label))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits [B, C] of collated inputs."""
        tokens, embedded = self.encoder(inputs)
        logits: Tensor = self.head(self.norm(masked_mean(tokens, embedded.valid)))
        return logits


def fit_encoder(
    table: SamplesTable, modality: str, settings: EncoderSettings, fit: FitSettings, out: Path, seed: int
) -> dict[str, Any]:
    """Fit the encoder of one modality and write it to `out`; returns the unimodal metrics.

    Raises:
        UserError: a split has no readable value of the modality, or settings and modality do not match.
    """
    identity = fingerprint(
        [
            table.digest(),
            modality,
            settings.model_dump(mode="json"),
            _weights_digest(settings),
            fit.model_dump(mode="json"),
            seed,
        ]
    )
    done = _finished(out, identity)
    if done is not None:
        return done
    torch.manual_seed(seed)
    encoder = build_encoder(settings, table.modality(modality), lambda: train_values(table, modality))
    banks = {s: _bank(table, s, modality, encoder) for s in SPLITS}
    encoder.fit_statistics([item for item in banks["train"].items[modality] if item is not None])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = UnimodalModel(encoder, table.info.label).to(device)
    if getattr(settings, "weights", "scratch") != "scratch" and fit.frozen_epochs:
        encoder.requires_grad_(False)
        _train(model, banks, fit, fit.frozen_epochs, fit.head_learning_rate, out / "frozen", identity, seed)
        encoder.requires_grad_(True)
    _train(model, banks, fit, fit.max_epochs, fit.learning_rate, out, identity, seed)
    return _write(model, banks, modality, identity, out)


def train_values(table: SamplesTable, modality: str) -> Iterable[Any]:
    """Readable raw values of the training split."""
    for _, row in table.split("train").iterrows():
        try:
            value = read_value(table, row, modality)
        except UnreadableValue:  # counted when the bank is loaded
            continue
        if value is not None:
            yield value


def _weights_digest(settings: EncoderSettings) -> list[str]:
    """Digests of a local weights folder, whose name alone does not say what is in it."""
    folder = Path(getattr(settings, "weights", "scratch").removeprefix("hf:"))
    endings = ("safetensors", "bin", "pt")
    return [file_sha256(path) for ending in endings for path in sorted(folder.glob(f"*.{ending}"))]


def _bank(table: SamplesTable, split: str, modality: str, encoder: Encoder) -> InputBank:
    bank = InputBank.load(table, split, {modality: encoder}).without_empty()
    if not len(bank):
        raise UserError(f"The {split} split has no readable value of '{modality}'. Run `selfmask check {table.root}`.")
    return bank


def _train(
    model: UnimodalModel,
    banks: dict[str, InputBank],
    fit: FitSettings,
    max_epochs: int,
    learning_rate: float,
    folder: Path,
    identity: str,
    seed: int,
) -> None:
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    modality = banks["train"].modalities[0]

    def batches(epoch: int, generator: torch.Generator) -> Iterator[InputBatch]:
        order = torch.randperm(len(banks["train"]), generator=generator)
        for rows in order.split(fit.batch_size):
            yield banks["train"].batch(rows).to(device)

    def step(batch: InputBatch, generator: torch.Generator) -> dict[str, Tensor]:
        inputs = model.encoder.augment(batch.inputs[modality], generator)
        assert batch.labels is not None
        return {"loss": task_loss(model(inputs), batch.labels, model.label)}

    def validate() -> dict[str, float]:
        metrics = _score(model, banks["valid"])
        name = monitor_name(model.label)
        if name not in metrics:
            raise UserError(f"The validation split does not define '{name}': it needs labelled samples of every class.")
        return {**metrics, "monitor": metrics[name]}

    run_epochs(
        model,
        torch.optim.AdamW(trained, lr=learning_rate, weight_decay=fit.weight_decay),
        batches=batches,
        step=step,
        validate=validate,
        settings=LoopSettings(max_epochs, fit.patience_epochs, fit.clip_norm, seed, fit.schedule),
        folder=folder,
        fingerprint=identity,
        describe=f"fit {modality}",
    )


@torch.no_grad()
def _score(model: UnimodalModel, bank: InputBank, batch_size: int = 128) -> dict[str, float]:
    model.eval()
    device, modality = next(model.parameters()).device, bank.modalities[0]
    scores = [
        probabilities(model(bank.batch(rows).to(device).inputs[modality]), model.label).cpu()
        for rows in torch.arange(len(bank)).split(batch_size)
    ]
    assert bank.labels is not None
    return compute_metrics(torch.cat(scores).numpy(), bank.labels.numpy(), model.label)


def _write(
    model: UnimodalModel, banks: dict[str, InputBank], modality: str, identity: str, out: Path
) -> dict[str, Any]:
    splits = {split: _score(model, banks[split]) for split in ("valid", "test")}
    counts = {split: len(bank) for split, bank in banks.items()}
    unreadable = {split: dict(bank.unreadable[modality]) for split, bank in banks.items()}
    (out / "config.json").unlink(missing_ok=True)  # the mark of a finished fit: it must never vouch for other weights
    with replacing(out / "head.safetensors") as temporary:
        head = {**model.norm.state_dict(prefix="norm."), **model.head.state_dict(prefix="head.")}
        save_file({name: value.contiguous() for name, value in head.items()}, temporary)
    metrics = {**splits, "samples": counts, "unreadable": unreadable}
    write_json(out / "metrics.json", metrics)
    save_encoder(model.encoder, out, {"stage": "fit", "fingerprint": identity, "fitted": True})
    return metrics


def _finished(out: Path, identity: str) -> dict[str, Any] | None:
    if not (out / "config.json").exists() or not (out / "metrics.json").exists():
        return None
    if json.loads((out / "config.json").read_text())["extra"].get("fingerprint") != identity:
        return None
    load_encoder(out)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics
