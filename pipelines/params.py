"""Parameters: one frozen schema, read from params.yaml, the only home of a value.

Precedence: sections < `datasets.<name>.settings` < `presets.<preset>` < `--set section.key=value`. Unknown keys fail,
naming the section and the keys that are known.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from cache.errors import UserError
from extract.config import EncoderSettings, ExtractSettings, FitSettings, Settings
from train.config import EvaluateSettings, JointSettings, ModelSettings, SelfMaskSettings, TrainSettings

SECTIONS = ("fit", "extract", "model", "selfmask", "train", "joint", "evaluate")
Overrides = dict[str, dict[str, Any]]


class DatasetChoice(Settings):
    """Which data set runs, and which of its modalities."""

    name: str
    raw: str
    """Folder of its raw files."""
    modalities: tuple[str, ...] = Field(min_length=1)


class DatasetSettings(Settings):
    """One data set: options of its preparation, encoders, and its own settings."""

    options: dict[str, Any]
    encoders: dict[str, str]
    """Modality to the name of an encoder."""
    settings: Overrides


class Params(Settings):
    """Everything in params.yaml, resolved for the chosen data set and preset."""

    dataset: DatasetChoice
    seeds: tuple[int, ...] = Field(min_length=1)
    preset: str
    datasets: dict[str, DatasetSettings]
    encoders: dict[str, EncoderSettings]
    fit: FitSettings
    extract: ExtractSettings
    model: ModelSettings
    selfmask: SelfMaskSettings
    train: TrainSettings
    joint: JointSettings
    evaluate: EvaluateSettings
    presets: dict[str, Overrides]

    @property
    def source(self) -> DatasetSettings:
        """The chosen data set."""
        return self.datasets[self.dataset.name]

    def encoder(self, modality: str) -> EncoderSettings:
        """Return the encoder settings of a modality."""
        if modality not in self.source.encoders:
            raise UserError(
                f"'{modality}' is no modality of {self.dataset.name}; it has {', '.join(self.source.encoders)}."
            )
        return self.encoders[self.source.encoders[modality]]

    @property
    def samples(self) -> Path:
        """Folder of the samples table."""
        return Path("data") / self.dataset.name / "samples"

    @property
    def tokens(self) -> Path:
        """Folder of the token caches."""
        return Path("data") / self.dataset.name / "tokens"

    @property
    def models(self) -> Path:
        """Folder of encoders and methods."""
        return Path("models") / self.dataset.name

    @property
    def metrics(self) -> Path:
        """Folder of metrics."""
        return Path("metrics") / self.dataset.name

    @property
    def reports(self) -> Path:
        """Folder of reports."""
        return Path("reports") / self.dataset.name

    def encoder_folder(self, modality: str) -> Path:
        """Folder of a fitted encoder."""
        return self.models / "encoders" / modality


def load_params(path: Path, overrides: Sequence[str] = ()) -> Params:
    """Read, merge and validate parameters.

    Args:
        path: params.yaml.
        overrides: `section.key=value`, values as YAML.

    Raises:
        UserError: names the file, the key and what is allowed.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"There is no parameter file {path}. Run from the project's root, or give --params.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold sections {sorted(Params.model_fields)}.")
    changes = [_parse(text) for text in overrides]
    for keys, value in changes:  # first: which data set and preset
        _assign(raw, keys, value)
    merged = dict(raw)
    for extra in _layers(raw, path):
        for section, values in extra.items():
            if section not in SECTIONS:
                raise UserError(f"{path}: '{section}' cannot be changed there. Known sections: {', '.join(SECTIONS)}.")
            merged[section] = {**merged.get(section, {}), **values}
    for keys, value in changes:  # last: they win
        _assign(merged, keys, value)
    try:
        params = Params.model_validate(merged)
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(_explain(error, merged))}") from error
    _cross_check(params, path)
    return params


def _layers(raw: Mapping[str, Any], path: Path) -> list[Overrides]:
    try:
        name, preset = raw["dataset"]["name"], raw["preset"]
        datasets, presets = raw["datasets"], raw["presets"]
        if name not in datasets:
            raise UserError(f"{path}: dataset.name '{name}' is unknown. Known: {', '.join(sorted(datasets))}.")
        if preset not in presets:
            raise UserError(f"{path}: preset '{preset}' is unknown. Known: {', '.join(sorted(presets))}.")
        return [datasets[name].get("settings") or {}, presets[preset] or {}]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: section {error} is missing. Known: {', '.join(sorted(Params.model_fields))}."
        ) from error


def _parse(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set '{text}' must be section.key=value, for example train.batch_size=32.")
    return key.split("."), yaml.safe_load(value)


def _assign(target: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a nested value on copies of the dictionaries on the way."""
    *path, last = keys
    for key in path:
        inner = target.get(key)
        if not isinstance(inner, dict):
            raise UserError(f"--set {'.'.join(keys)}: there is no section '{key}'. Known: {', '.join(sorted(target))}.")
        target[key] = dict(inner)
        target = target[key]
    if last not in target and keys[0] in SECTIONS:
        raise UserError(f"--set: unknown key '{last}' in section '{keys[0]}'. Known: {', '.join(sorted(target))}.")
    target[last] = value


def _explain(error: ValidationError, merged: Mapping[str, Any]) -> list[str]:
    messages = []
    for problem in error.errors():
        where = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            section = ".".join(where[:-1]) or "the file"
            messages.append(f"unknown key '{where[-1]}' in section '{section}'. Known: {_known(where[:-1])}")
        else:
            messages.append(f"{'.'.join(where)}: {problem['msg']} (given: {problem.get('input')!r})")
    return messages


def _known(where: Sequence[str]) -> str:
    model: Any = Params
    for part in where:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    is_model = isinstance(model, type) and issubclass(model, BaseModel)
    return ", ".join(sorted(model.model_fields)) if is_model else "see extract/config.py"


def _cross_check(params: Params, path: Path) -> None:
    known = params.source.encoders
    unknown = [m for m in params.dataset.modalities if m not in known]
    if unknown:
        raise UserError(
            f"{path}: dataset.modalities {unknown} are not modalities of {params.dataset.name}; it has {list(known)}."
        )
    for name, dataset in params.datasets.items():
        for modality, encoder in dataset.encoders.items():
            if encoder not in params.encoders:
                raise UserError(
                    f"{path}: datasets.{name}.encoders.{modality} is '{encoder}'. Known: {', '.join(params.encoders)}."
                )
    if params.model.width % params.model.heads:
        raise UserError(
            f"{path}: model.width={params.model.width} must be a multiple of model.heads={params.model.heads}."
        )
