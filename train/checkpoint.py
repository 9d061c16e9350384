"""Checkpoints: a folder with `model.safetensors` and `config.json`, enough to rebuild a method anywhere.

Nothing is pickled and no module path is stored. The configuration is written last and holds the digest of the
weights, so that a folder that was cut off half-way, or mixes two runs, is refused.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from cache.errors import UserError
from cache.publish import write_bytes, write_json
from train.config import MethodName, ModelSettings
from train.methods.base import Method, ModelSpec
from train.methods.registry import build_method, read_options

SCHEMA_VERSION = 2
WEIGHTS, CONFIG = "model.safetensors", "config.json"
REQUIRED = {"method", "spec", "model", "options"}
ADDED = {"schema_version", "weights_sha256"}
OPTIONAL = {
    "stage",
    "seed",
    "train",
    "joint",
    "tokens",
    "encoders",
    "modalities",
    "validation",
    "epochs",
    "fingerprint",
}


def save_checkpoint(folder: Path, method: Method, config: dict[str, Any]) -> None:
    """Write weights and configuration to `folder`, configuration last.

    Args:
        folder: created when absent; other files in it are kept.
        method: the trained method.
        config: JSON with `method`, `spec`, `model`, `options`, and any of the optional keys.

    Raises:
        UserError: an unknown key or a missing one.
    """
    content = {key: value for key, value in config.items() if key not in ADDED}
    _check_keys(content, REQUIRED, OPTIONAL, folder)
    weights = save({name: value.detach().cpu().contiguous().clone() for name, value in method.state_dict().items()})
    write_bytes(folder / WEIGHTS, weights)
    digest = hashlib.sha256(weights).hexdigest()
    write_json(folder / CONFIG, {**content, "schema_version": SCHEMA_VERSION, "weights_sha256": digest})


def load_checkpoint(folder: Path) -> tuple[Method, dict[str, Any]]:
    """Rebuild a method, in evaluation mode on the CPU, and return it with its configuration.

    Raises:
        UserError: the folder is no complete checkpoint of this version, or keys are unknown or missing.
    """
    config = read_config(folder)
    weights = _read(folder / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != config["weights_sha256"]:
        raise UserError(f"{folder / WEIGHTS} does not belong to its {CONFIG}. Run the stage that writes it again.")
    method = _build(config, folder)
    try:
        state = load(weights)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is not readable ({error}). Run `selfmask train` again.") from error
    _check_keys(state, set(method.state_dict()), set(), folder / WEIGHTS)
    try:
        method.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} has other shapes than {CONFIG}: {error}") from error
    return method.eval(), config


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checked content of a checkpoint's `config.json`."""
    try:
        config = json.loads(_read(folder / CONFIG))
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is not JSON ({error}). Run `selfmask train` again.") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} must hold a JSON object. Run `selfmask train` again.")
    _check_keys(config, REQUIRED | ADDED, OPTIONAL, folder / CONFIG)
    if config["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{folder / CONFIG} has schema version {config['schema_version']}; this version reads {SCHEMA_VERSION}. "
            "Run `selfmask train` again."
        )
    return config


def _build(config: dict[str, Any], folder: Path) -> Method:
    if config["method"] not in get_args(MethodName):
        allowed = ", ".join(get_args(MethodName))
        raise UserError(f"{folder / CONFIG} names the method '{config['method']}'; known are {allowed}.")
    try:
        spec = ModelSpec.model_validate(config["spec"])
        model = ModelSettings.model_validate(config["model"])
        options = read_options(config["method"], config["options"])
    except ValidationError as error:
        raise UserError(f"{folder / CONFIG} does not fit this version: {error}") from error
    return build_method(config["method"], spec, model, options)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path} does not exist. Give a checkpoint folder, or run `selfmask train`.")
    return path.read_bytes()


def _check_keys(given: Iterable[str], required: set[str], optional: set[str], where: Path) -> None:
    unknown, missing = sorted(set(given) - required - optional), sorted(required - set(given))
    if unknown or missing:
        raise UserError(
            f"{where}: unknown keys {unknown}, missing keys {missing}. "
            f"Known are {sorted(required | optional)}. Run the stage that writes it again."
        )
