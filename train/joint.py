"""The joint stage: encoders and SelfMask trained together on masked inputs (Algorithm 1, eq. 5 as written).

Starts from a stage-two checkpoint and the fitted encoders; encoders have their own learning rate, and only their
last blocks are trained if asked. A step runs every trained encoder three times (unmasked, 25 % and 50 % masked);
gradient checkpointing trades time for memory.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import UserError
from cache.publish import file_sha256, fingerprint
from extract.encoders.base import Encoder
from extract.encoders.registry import load_encoder, save_encoder
from extract.inputs import InputBank, InputBatch
from extract.samples import SamplesTable
from extract.training import LoopSettings, run_epochs
from train.checkpoint import load_checkpoint, save_checkpoint
from train.config import JointSettings, TrainSettings
from train.encoded import EncodedBank, EncodedSource
from train.methods.base import Output
from train.methods.selfmask import SelfMask
from train.stage import selection_metrics


class JointModel(nn.Module):
    """Encoders and SelfMask as one module."""

    def __init__(self, encoders: Mapping[str, Encoder], method: SelfMask) -> None:
        super().__init__()
        self.encoder_modules = nn.ModuleDict(dict(encoders))
        self.encoders = dict(encoders)
        self.method = method

    def forward(self, batch: InputBatch, generator: torch.Generator) -> Output:
        """One training step of Algorithm 1 on encoder inputs."""
        if batch.labels is None:
            raise UserError("The joint stage needs labels. Add a label column to the samples table.")
        source = EncodedSource.build(self.encoders, self.method.project, batch)
        return self.method.learn(source, batch.observed, batch.labels, generator)


def choose_trained(encoder: Encoder, blocks: str | int) -> None:
    """Freeze all but the last `blocks` blocks of an encoder; the placeholder V is always trained."""
    if blocks == "all":
        encoder.requires_grad_(True)
        return
    encoder.requires_grad_(False)
    for block in encoder.blocks()[-int(blocks) :]:
        block.requires_grad_(True)
    encoder.placeholder.requires_grad_(True)


def finetune(
    table: SamplesTable,
    encoder_folders: Mapping[str, Path],
    checkpoint: Path,
    joint: JointSettings,
    train: TrainSettings,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Run the joint stage; writes a checkpoint folder with the encoders under `out/encoders/<modality>`.

    Args:
        table: samples table with train and valid splits.
        encoder_folders: fitted encoders by modality.
        checkpoint: stage-two folder of SelfMask.
        joint: settings of this stage.
        train: gives the selection rule.
        seed: of batches, draws and dropout.
        out: checkpoint folder to write.

    Raises:
        UserError: the checkpoint is not SelfMask's, or a modality has no encoder.
    """
    model, config = _load(encoder_folders, checkpoint, joint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    encoders = model.encoders
    banks = {s: InputBank.load(table, s, encoders).without_empty() for s in ("train", "valid")}
    optimizer = torch.optim.AdamW(_groups(model, joint), weight_decay=joint.weight_decay)
    valid_bank = EncodedBank(encoders, banks["valid"], device)

    def batches(epoch: int, generator: torch.Generator) -> Iterator[InputBatch]:
        order = torch.randperm(len(banks["train"]), generator=generator)
        for rows in order.split(joint.batch_size):
            yield _augmented(banks["train"].batch(rows), encoders, generator).to(device)

    def validate() -> dict[str, float]:
        return selection_metrics(model.method, valid_bank, banks["valid"].sample_ids, train.select_on, joint.batch_size)

    history = run_epochs(
        model,
        optimizer,
        batches=batches,
        step=lambda batch, generator: model(batch, generator).losses,
        validate=validate,
        settings=LoopSettings(joint.max_epochs, joint.patience_epochs, joint.clip_norm, seed),
        folder=out,
        fingerprint=_fingerprint(table, encoder_folders, checkpoint, joint, train, seed),
        after_step=model.method.after_step,
        describe=f"finetune seed {seed}",
    )
    return _save(model, config, history.epochs[history.best_epoch], out)


def _load(folders: Mapping[str, Path], checkpoint: Path, joint: JointSettings) -> tuple[JointModel, dict[str, Any]]:
    method, config = load_checkpoint(checkpoint)
    if not isinstance(method, SelfMask):
        raise UserError(
            f"{checkpoint} holds '{config.get('method')}'; only selfmask is fine-tuned. Run `selfmask train selfmask`."
        )
    absent = [m for m in method.spec.modalities if m not in folders]
    if absent:
        raise UserError(f"No encoder folder for {absent}. Run `selfmask fit {absent[0]}`.")
    encoders = {m: load_encoder(folders[m]) for m in method.spec.modalities}
    for encoder in encoders.values():
        choose_trained(encoder, joint.blocks)
        encoder.set_checkpointing(joint.checkpointing)
    return JointModel(encoders, method), config


def _groups(model: JointModel, joint: JointSettings) -> list[dict[str, Any]]:
    encoder = [p for p in model.encoder_modules.parameters() if p.requires_grad]
    method = [p for p in model.method.parameters() if p.requires_grad]
    return [
        {"params": method, "lr": joint.learning_rate},
        {"params": encoder, "lr": joint.encoder_learning_rate},
    ]


def _augmented(batch: InputBatch, encoders: Mapping[str, Encoder], generator: torch.Generator) -> InputBatch:
    inputs: dict[str, dict[str, Tensor]] = {
        m: encoders[m].augment(values, generator) for m, values in batch.inputs.items()
    }
    return InputBatch(inputs, batch.rows, batch.observed, batch.labels)


def _fingerprint(
    table: SamplesTable,
    folders: Mapping[str, Path],
    checkpoint: Path,
    joint: JointSettings,
    train: TrainSettings,
    seed: int,
) -> str:
    weights = {m: file_sha256(folder / "model.safetensors") for m, folder in folders.items()}
    return fingerprint(
        {
            "table": table.digest(),
            "encoders": weights,
            "checkpoint": file_sha256(checkpoint / "model.safetensors"),
            "joint": joint.model_dump(mode="json"),
            "select_on": train.select_on,
            "seed": seed,
        }
    )


def _save(model: JointModel, config: dict[str, Any], best: dict[str, float], out: Path) -> dict[str, Any]:
    for name, encoder in model.encoders.items():
        save_encoder(encoder, out / "encoders" / name, {"stage": "joint"})
    folders = {name: f"encoders/{name}" for name in model.encoders}
    written = {**config, "stage": "joint", "encoders": folders, "validation": best}
    save_checkpoint(out, model.method, json.loads(json.dumps(written)))
    return written
