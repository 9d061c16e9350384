"""Fit one encoder as a unimodal model: encoder, pooling, head; frozen first if pretrained, then as the settings say.

These are also the unimodal rows of a comparison. Samples that lack the modality take no part; selection is on the
validation split, and the test split is scored once with the chosen weights, in float32 and with adapters merged, as
they are saved.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cache.errors import UserError
from cache.publish import file_sha256, fingerprint, replacing, write_json
from extract.config import EncoderSettings, FitSettings
from extract.encoders.base import Encoder, masked_mean
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.inputs import InputBank, InputPart
from extract.metrics import compute_metrics, monitor_name
from extract.precision import autocast
from extract.samples import SamplesTable
from extract.task import LabelSpec, outputs, probabilities, task_loss
from extract.training import LoopSettings, run_epochs
from extract.tuning import gradient_scaler, parameter_groups, tune
from extract.values import UnreadableValue, read_value

SPLITS = ("train", "valid", "test")


class AttentionPooling(nn.Module):
    """Attention of one learned query to the valid tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))  # starts as the mean
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """[B, T, D] and bool [B, T] to [B, D]; zero where no token is valid."""
        scores = (self.key(tokens) @ self.query) * tokens.shape[-1] ** -0.5
        lowest = torch.finfo(scores.dtype).min  # finite: no NaN where no token is valid
        weights = scores.masked_fill(~valid, lowest).softmax(-1).masked_fill(~valid, 0.0)
        pooled: Tensor = (weights[:, None] @ self.value(tokens)).squeeze(1)
        return pooled


class MeanPooling(nn.Module):
    """Mean of the valid tokens."""

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """[B, T, D] and bool [B, T] to [B, D]; zero where no token is valid."""
        return masked_mean(tokens, valid)


class UnimodalModel(nn.Module):
    """Encoder, pooling over tokens, LayerNorm and a linear head."""

    def __init__(self, encoder: Encoder, label: LabelSpec, head: Literal["linear", "attention"]) -> None:
        super().__init__()
        self.encoder, self.label = encoder, label
        self.norm = nn.LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, outputs(label))
        self.pooling = AttentionPooling(encoder.width) if head == "attention" else MeanPooling()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits [B, C] of collated inputs."""
        tokens, embedded = self.encoder(inputs)
        logits: Tensor = self.head(self.norm(self.pooling(tokens, embedded.valid)))
        return logits

    def head_state(self) -> dict[str, Tensor]:
        """Everything but the encoder."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}


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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gradient_scaler(fit.precision, device)  # a precision that this machine lacks is said before anything is read
    torch.manual_seed(seed)
    encoder = build_encoder(settings, table.modality(modality), lambda: train_values(table, modality))
    banks = {s: _bank(table, s, modality, encoder) for s in SPLITS}
    encoder.fit_statistics([item for item in banks["train"].items[modality] if item is not None])
    model = UnimodalModel(encoder, table.info.label, fit.head).to(device)
    if getattr(settings, "weights", "scratch") == "scratch":
        fit = fit.model_copy(update={"blocks": "all", "lora": None, "layer_decay": 1.0, "frozen_epochs": 0})
    _train(model, banks, fit, out, identity, seed)
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
    model: UnimodalModel, banks: dict[str, InputBank], fit: FitSettings, out: Path, identity: str, seed: int
) -> None:
    """Train the head on the frozen encoder, and then both, or for a probe the head alone."""
    encoder = model.encoder
    if fit.frozen_epochs or fit.blocks == 0:
        encoder.requires_grad_(False)
        first = fit if fit.blocks == 0 else fit.model_copy(update={"max_epochs": fit.frozen_epochs})
        folder = out if fit.blocks == 0 else out / "frozen"
        groups = [{"params": list(_trained(model)), "lr": fit.head_learning_rate}]
        _run(model, banks, first, groups, folder, identity, seed)
    if fit.blocks == 0:
        return
    torch.manual_seed(seed)  # adapters start from random numbers, whether or not the first phase has just run
    modality, device = banks["train"].modalities[0], encoder.placeholder.device
    finish = tune(encoder, fit, banks["train"].example(modality, device))
    _run(model, banks, fit, _groups(model, fit), out, identity, seed)
    finish()


def _trained(module: nn.Module) -> Iterable[nn.Parameter]:
    return (p for p in module.parameters() if p.requires_grad)


def _groups(model: UnimodalModel, fit: FitSettings) -> list[dict[str, Any]]:
    if fit.layer_decay == 1:
        return [{"params": list(_trained(model)), "lr": fit.learning_rate}]
    head = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    groups = parameter_groups(model.encoder, fit.learning_rate, fit.layer_decay)
    return [*groups, {"params": head, "lr": fit.learning_rate}]


def _run(
    model: UnimodalModel,
    banks: dict[str, InputBank],
    fit: FitSettings,
    groups: list[dict[str, Any]],
    folder: Path,
    identity: str,
    seed: int,
) -> None:
    device = model.head.weight.device
    modality = banks["train"].modalities[0]

    def step(part: InputPart, generator: torch.Generator) -> dict[str, Tensor]:
        assert part.batch.labels is not None
        with autocast(fit.precision, device):
            loss = task_loss(model(part.batch.inputs[modality]), part.batch.labels, model.label)
        return {"loss": loss * part.label_weight}

    def validate() -> dict[str, float]:
        metrics = _score(model, banks["valid"])
        name = monitor_name(model.label)
        if name not in metrics:
            raise UserError(f"The validation split does not define '{name}': it needs labelled samples of every class.")
        return {**metrics, "monitor": metrics[name]}

    run_epochs(
        model,
        torch.optim.AdamW(groups, weight_decay=fit.weight_decay),
        batches=lambda epoch, generator: banks["train"].epoch(fit.batch_size, generator, device),
        step=step,
        validate=validate,
        settings=LoopSettings(
            fit.max_epochs, fit.patience_epochs, fit.clip_norm, seed, fit.schedule, warmup_steps=fit.warmup_steps
        ),
        folder=folder,
        fingerprint=identity,
        parts=lambda batch: batch.parts(fit.micro_batches),
        describe=f"fit {modality}",
        scaler=gradient_scaler(fit.precision, device),
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
        save_file({name: value.contiguous() for name, value in model.head_state().items()}, temporary)
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
