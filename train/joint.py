"""The joint stage: encoders and SelfMask trained together on masked inputs (Algorithm 1, eq. 5 as written).

Starts from a stage-two checkpoint and the fitted encoders, which have their own learning rate; what of them is trained
is said as in fit (`extract.tuning`). Adapters are merged at the end, so that evaluation and prediction load plain
encoders. A step runs every encoder three times (unmasked, 25 % and 50 % masked); gradient checkpointing and parts of a
batch trade time for memory.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import UserError
from cache.publish import file_sha256, fingerprint
from extract.encoders.base import Encoder
from extract.encoders.registry import load_encoder, save_encoder
from extract.inputs import InputBank, InputBatch, InputPart
from extract.precision import autocast
from extract.ranks import SharedGenerator
from extract.samples import SamplesTable
from extract.training import History, LoopSettings, run_epochs
from extract.tuning import gradient_scaler, parameter_groups, tune
from train.checkpoint import CONFIG, load_checkpoint, save_checkpoint
from train.config import JointSettings, TrainSettings
from train.encoded import EncodedBank, EncodedSource
from train.methods.base import Output
from train.methods.selfmask import SelfMask
from train.shares import weighted
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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gradient_scaler(joint.precision, device)  # a precision that this machine lacks is said before anything is read
    model, config = _load(encoder_folders, checkpoint)
    wanted = _fingerprint(table, encoder_folders, checkpoint, joint, train, seed)
    done = _finished(out, wanted)
    if done is not None:
        return done
    model.to(device)
    banks = {s: InputBank.load(table, s, model.encoders).without_empty() for s in ("train", "valid")}
    torch.manual_seed(seed)  # adapters start from random numbers
    finish = _tune(model, banks["train"], joint, device)
    history = _train(model, banks, joint, train, seed, wanted, out)
    for merge in finish:
        merge()
    return _save(model, {**config, "fingerprint": wanted}, history.epochs[history.best_epoch], out)


def _finished(out: Path, wanted: str) -> dict[str, Any] | None:
    if not (out / CONFIG).is_file():
        return None
    try:
        config = load_checkpoint(out)[1]
        for folder in config.get("encoders", {}).values():
            load_encoder(out / folder)
    except UserError:  # torn, or of an earlier version: trained again
        return None
    return config if config.get("fingerprint") == wanted else None


def _train(
    model: JointModel,
    banks: Mapping[str, InputBank],
    joint: JointSettings,
    train: TrainSettings,
    seed: int,
    identity: str,
    out: Path,
) -> History:
    device = next(model.method.parameters()).device
    valid_bank = EncodedBank(model.encoders, banks["valid"], device)

    def step(part: InputPart, generator: SharedGenerator) -> dict[str, Tensor]:
        generator.share = part.share if joint.micro_batches > 1 else None
        with autocast(joint.precision, device):
            return weighted(model(part.batch, generator), part.share, part.label_weight)

    def validate() -> dict[str, float]:
        return selection_metrics(model.method, valid_bank, banks["valid"].sample_ids, train.select_on, joint.batch_size)

    return run_epochs(
        model,
        torch.optim.AdamW(_groups(model, joint), weight_decay=joint.weight_decay),
        batches=lambda epoch, generator: banks["train"].epoch(joint.batch_size, generator, device),
        step=step,
        validate=validate,
        settings=LoopSettings(
            joint.max_epochs, joint.patience_epochs, joint.clip_norm, seed, warmup_steps=joint.warmup_steps
        ),
        folder=out,
        fingerprint=identity,
        parts=lambda batch: batch.parts(joint.micro_batches),
        after_step=model.method.after_step,
        describe=f"finetune seed {seed}",
        scaler=gradient_scaler(joint.precision, device),
    )


def _load(folders: Mapping[str, Path], checkpoint: Path) -> tuple[JointModel, dict[str, Any]]:
    method, config = load_checkpoint(checkpoint)
    if not isinstance(method, SelfMask):
        raise UserError(
            f"{checkpoint} holds '{config.get('method')}'; only selfmask is fine-tuned. Run `selfmask train selfmask`."
        )
    absent = [m for m in method.spec.modalities if m not in folders]
    if absent:
        raise UserError(f"No encoder folder for {absent}. Run `selfmask fit {absent[0]}`.")
    return JointModel({m: load_encoder(folders[m]) for m in method.spec.modalities}, method), config


def _tune(
    model: JointModel, bank: InputBank, joint: JointSettings, device: torch.device | str
) -> list[Callable[[], None]]:
    """Prepare every encoder for training; returns what is to be called after it."""
    absent = [m for m in model.encoders if not any(item is not None for item in bank.items[m])]
    if absent:
        raise UserError(
            f"No training sample has a readable value of '{absent[0]}'. Run `selfmask check` on the samples."
        )
    return [tune(encoder, joint, bank.example(name, device)) for name, encoder in model.encoders.items()]


def _groups(model: JointModel, joint: JointSettings) -> list[dict[str, Any]]:
    method = [p for p in model.method.parameters() if p.requires_grad]
    groups = [{"params": method, "lr": joint.learning_rate}]
    for encoder in model.encoders.values():
        groups += parameter_groups(encoder, joint.encoder_learning_rate, joint.layer_decay)
    return groups


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
    (out / CONFIG).unlink(missing_ok=True)  # the mark of a finished stage: it must never vouch for other encoders
    for name, encoder in model.encoders.items():
        save_encoder(encoder, out / "encoders" / name, {"stage": "joint"})
    folders = {name: f"encoders/{name}" for name in model.encoders}
    written = {**config, "stage": "joint", "encoders": folders, "validation": best}
    save_checkpoint(out, model.method, json.loads(json.dumps(written)))
    return written
