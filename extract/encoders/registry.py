"""Encoders by settings: build, save, load.

A saved encoder is a folder with `model.safetensors` and `config.json` (settings, modality, assets such as the
tokenizer); nothing is pickled, and a fitted encoder never needs the hub again.
"""

import importlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cache.errors import UserError
from cache.publish import replacing, write_json
from extract.config import EncoderSettings
from extract.encoders.base import Encoder
from extract.samples import ModalitySpec


class Member(NamedTuple):
    """Where an encoder type is: the kind of modality that it reads, its module in this package, its class."""

    kind: str
    module: str
    name: str


MEMBERS = {
    "timeseries": Member("timeseries", "timeseries", "TimeSeriesEncoder"),
    "vit": Member("image", "image", "ImageEncoder"),
    "hf_image": Member("image", "hf_image", "HubImageEncoder"),
    "bert": Member("text", "text", "TextEncoder"),
    "deberta": Member("text", "text", "TextEncoder"),
    "hf_text": Member("text", "text", "TextEncoder"),
    "logmel": Member("audio", "audio", "AudioEncoder"),
    "wav2vec2": Member("audio", "wav2vec2", "Wav2Vec2Encoder"),
    "wav2vec": Member("audio", "wav2vec", "Wav2VecEncoder"),
    "manet": Member("video", "manet", "VideoEncoder"),
}
"""Encoder type of params.yaml to its class, which is imported when it is used: libraries take seconds to load."""
SETTINGS: TypeAdapter[Any] = TypeAdapter(EncoderSettings)


def build_encoder(
    settings: EncoderSettings, modality: ModalitySpec, train_values: Callable[[], Iterable[Any]]
) -> Encoder:
    """Build an encoder for a modality.

    Args:
        settings: from params.yaml.
        modality: its declaration in the samples table.
        train_values: raw values of the training split, for a tokenizer trained from scratch.

    Raises:
        UserError: the encoder does not read this kind of modality.
    """
    kind = MEMBERS[settings.type].kind
    if kind != modality.kind:
        raise UserError(f"Encoder '{settings.type}' reads {kind}; modality '{modality.name}' is {modality.kind}.")
    fitted = fitted_folder(settings)
    if fitted is not None:
        return _from_fitted(settings, fitted)
    member = _class(settings.type)
    return member.assemble(settings, member.prepare(settings, modality, train_values), load_weights=True)


def fitted_folder(settings: EncoderSettings) -> Path | None:
    """Return the folder of the fitted encoder that `weights` names, None where it names something else."""
    folder = Path(getattr(settings, "weights", "scratch"))
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return folder if isinstance(config, dict) and {"settings", "assets"} <= config.keys() else None


def _from_fitted(settings: EncoderSettings, folder: Path) -> Encoder:
    """Start from a fitted encoder of ours, with its tokenizer; what may differ is how it is trained from here."""
    encoder = load_encoder(folder)
    mine, theirs = settings.model_dump(), encoder.settings.model_dump()  # type: ignore[operator,union-attr]
    free = ("weights", "revision", "dropout", "augment", "heads")
    differing = [f"{k} {theirs.get(k)!r}" for k, v in mine.items() if k not in free and theirs.get(k) != v]
    if differing:
        raise UserError(f"The encoder in {folder} has {', '.join(differing)}. Set encoders.<name> to the same.")
    encoder.settings = settings  # type: ignore[assignment]
    return encoder.train()


def save_encoder(encoder: Encoder, folder: Path, extra: dict[str, Any]) -> None:
    """Write weights, then `config.json`; `extra` is kept in it (what fitted it; `fitted: false` if nothing did)."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, temporary)
    settings = encoder.settings.model_dump(mode="json")  # type: ignore[operator,union-attr]
    write_json(folder / "config.json", {"settings": settings, "assets": encoder.assets(), "extra": extra})


def load_encoder(folder: Path) -> Encoder:
    """Rebuild a saved encoder, in evaluation mode.

    Raises:
        UserError: the folder holds no complete encoder.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        settings = SETTINGS.validate_python(config["settings"])
        encoder = _class(settings.type).assemble(settings, config["assets"], load_weights=False)
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
    except FileNotFoundError as error:
        raise UserError(f"There is no fitted encoder in {folder}. Run `selfmask fit`.") from error
    except (KeyError, ValueError, ValidationError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The encoder in {folder} cannot be loaded: {error}. Run `selfmask fit` again.") from error
    return encoder.eval()


def has_learned(folder: Path) -> bool:
    """Whether a saved encoder was fitted or started from published weights; false says that its weights are random."""
    config = json.loads((folder / "config.json").read_text())
    fitted: bool = config["extra"].get("fitted", True)
    return fitted or config["settings"].get("weights", "scratch") != "scratch"


def _class(kind: str) -> type[Encoder]:
    member = MEMBERS[kind]
    found: type[Encoder] = getattr(importlib.import_module(f"extract.encoders.{member.module}"), member.name)
    return found
