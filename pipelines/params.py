"""Parameters: one frozen schema, read from params.yaml, the only home of a value.

Precedence: sections < `datasets.<name>.settings` < `presets.<preset>` < `--set section.key=value`. Unknown keys fail,
naming the section and the keys that are known, also in the data sets and presets that are not chosen. A preset is
about the method: it changes stage two and the joint stage only, so that encoders and tokens are shared by all presets.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from cache.errors import UserError
from extract.config import EncoderSettings, ExtractSettings, FitSettings, Settings
from pipelines.settings_file import explain, read_yaml
from train.config import (
    ComparedSettings,
    EvaluateSettings,
    JointSettings,
    ModelSettings,
    SelfMaskSettings,
    TrainSettings,
)

SECTIONS: dict[str, type[Settings]] = {
    "fit": FitSettings,
    "extract": ExtractSettings,
    "model": ModelSettings,
    "selfmask": SelfMaskSettings,
    "compared": ComparedSettings,
    "train": TrainSettings,
    "joint": JointSettings,
    "evaluate": EvaluateSettings,
}
IMPORTED = "imported"
"""In place of an encoder's name: the modality's tokens are made elsewhere and come by `selfmask cache import`."""
PRESET_SECTIONS = ("model", "selfmask", "compared", "train", "joint")
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
    """Modality to the name of an encoder, or `imported`."""
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
    compared: ComparedSettings
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
        name = self.source.encoders[modality]
        if name == IMPORTED:
            raise UserError(
                f"'{modality}' of {self.dataset.name} has no encoder: its tokens are imported. Run `selfmask cache "
                f"import ... --into {self.tokens}/{modality}.zarr`, then `selfmask train`."
            )
        return self.encoders[name]

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

    def method_settings(self, method: str) -> Settings | None:
        """Own settings of a method, None if it has none."""
        own: Settings | None = self.selfmask if method == "selfmask" else getattr(self.compared, method, None)
        return own

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
    raw = read_yaml(path, f"There is no parameter file {path}. Run from the project's root, or give --params.")
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold the sections {', '.join(sorted(Params.model_fields))}.")
    changes = [_parse(text) for text in overrides]
    for keys, value in changes:  # first: which data set and preset
        _assign(raw, keys, value)
    merged = dict(raw)
    for extra in _layers(raw, path):
        for section, values in extra.items():
            merged[section] = _merge(merged.get(section), values)
    for keys, value in changes:  # last: they win
        _assign(merged, keys, value)
    try:
        params = Params.model_validate(merged)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Params)}") from error
    _cross_check(params, path)
    return params


def _layers(raw: Mapping[str, Any], path: Path) -> list[Overrides]:
    """Return the changes of the chosen data set and preset, after checking those of all of them."""
    try:
        name, preset = raw["dataset"]["name"], raw["preset"]
        layers = {f"datasets.{key}.settings": value["settings"] for key, value in raw["datasets"].items()}
        layers |= {f"presets.{key}": value for key, value in raw["presets"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        known = ", ".join(sorted(Params.model_fields))
        raise UserError(
            f"{path}: a section is missing or is no mapping ({error}). A file holds {known}; dataset has a name, and "
            "each of datasets has options, encoders and settings."
        ) from error
    for where, layer in layers.items():
        _check_layer(where, layer, PRESET_SECTIONS if where.startswith("presets.") else tuple(SECTIONS), path)
    chosen = {"dataset.name": ("datasets", name), "preset": ("presets", preset)}
    for key, (section, value) in chosen.items():
        if value not in raw[section]:
            raise UserError(f"{path}: {key} '{value}' is unknown. Known: {', '.join(sorted(raw[section]))}.")
    return [layers[f"datasets.{name}.settings"] or {}, layers[f"presets.{preset}"] or {}]


def _check_layer(where: str, layer: Any, allowed: Sequence[str], path: Path) -> None:
    for section, values in (layer or {}).items():
        if section not in allowed:
            raise UserError(f"{path}: unknown section '{section}' in '{where}'. Known: {', '.join(allowed)}.")
        known = SECTIONS[section].model_fields
        unknown = [key for key in values or {} if key not in known]
        if unknown:
            raise UserError(
                f"{path}: unknown keys {unknown} in section '{where}.{section}'. Known: {', '.join(sorted(known))}."
            )


def _merge(base: Any, change: Any) -> Any:
    """Merge mappings key by key, at any depth; anything else is replaced."""
    if not isinstance(base, Mapping):
        return change
    if change is None:  # an empty section in YAML
        return base
    if not isinstance(change, Mapping):
        return change
    return {**base, **{key: _merge(base.get(key), value) for key, value in change.items()}}


def _parse(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set '{text}' must be section.key=value, for example train.batch_size=32.")
    try:
        return key.split("."), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set '{text}': the value is not valid YAML. Quote it, or see params.yaml.") from error


def _assign(target: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a nested value on copies of the dictionaries on the way."""
    *path, last = keys
    for key in path:
        inner = target.get(key)
        if not isinstance(inner, dict):
            raise UserError(f"--set {'.'.join(keys)}: there is no section '{key}'. Known: {', '.join(sorted(target))}.")
        target[key] = dict(inner)
        target = target[key]
    if last not in target and (not path or keys[0] in SECTIONS):
        where = f"section '{keys[0]}'" if path else "the file"
        raise UserError(f"--set: unknown key '{last}' in {where}. Known: {', '.join(sorted(target))}.")
    target[last] = value


def _cross_check(params: Params, path: Path) -> None:
    known = params.source.encoders
    unknown = [m for m in params.dataset.modalities if m not in known]
    if unknown:
        raise UserError(
            f"{path}: dataset.modalities {unknown} are not modalities of {params.dataset.name}; "
            f"it has {', '.join(known)}. Change dataset.modalities together with dataset.name."
        )
    for name, dataset in params.datasets.items():
        for modality, encoder in dataset.encoders.items():
            if encoder not in (*params.encoders, IMPORTED):
                known_names = ", ".join([*params.encoders, IMPORTED])
                raise UserError(f"{path}: datasets.{name}.encoders.{modality} is '{encoder}'. Known: {known_names}.")
    sized = {"model": params.model, **{f"encoders.{name}": value for name, value in params.encoders.items()}}
    for section, sizes in sized.items():
        heads = getattr(sizes, "heads", 1)  # convolutional encoders have none
        if sizes.width % heads:
            raise UserError(f"{path}: {section}.width={sizes.width} must be a multiple of {section}.heads={heads}.")
    lists = {
        "dataset.modalities": params.dataset.modalities,
        "seeds": params.seeds,
        "train.methods": params.train.methods,
    }
    for key, values in lists.items():
        if len(set(values)) != len(values) or not values:
            raise UserError(f"{path}: {key} is {list(values)}; it must name at least one, and each once.")
