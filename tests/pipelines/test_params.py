"""params.yaml: every data set and preset loads, layers win in the documented order, mistakes are named."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache.errors import UserError
from pipelines.params import IMPORTED, PRESET_SECTIONS, SECTIONS, load_params

ROOT = Path(__file__).parents[2]
FILE = ROOT / "params.yaml"
RAW: dict[str, Any] = yaml.safe_load(FILE.read_text())


def choose(name: str) -> list[str]:
    """Overrides that choose a data set with all its modalities."""
    return [f"dataset.name={name}", f"dataset.modalities={list(RAW['datasets'][name]['encoders'])}"]


@pytest.fixture
def edited(tmp_path: Path) -> Any:
    """Return a writer of an edited params.yaml."""

    def write(edit: Any) -> Path:
        raw = yaml.safe_load(FILE.read_text())
        edit(raw)
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return path

    return write


@pytest.mark.parametrize("preset", RAW["presets"])
@pytest.mark.parametrize("name", RAW["datasets"])
def test_every_data_set_loads_with_every_preset(name: str, preset: str) -> None:
    params = load_params(FILE, [*choose(name), f"preset={preset}"])
    for modality in params.dataset.modalities:
        encoder = RAW["datasets"][name]["encoders"][modality]
        assert encoder == IMPORTED or params.encoder(modality) == params.encoders[encoder]
    for section in PRESET_SECTIONS:
        for key, value in (RAW["presets"][preset].get(section) or {}).items():
            assert getattr(getattr(params, section), key) == value


def test_folders_hold_the_name_of_the_data_set() -> None:
    params = load_params(FILE, choose("avmnist"))
    folders = [params.samples, params.tokens, params.models, params.metrics, params.reports]
    assert [folder.as_posix() for folder in folders] == [
        "data/avmnist/samples",
        "data/avmnist/tokens",
        "models/avmnist",
        "metrics/avmnist",
        "reports/avmnist",
    ]
    assert params.encoder_folder("image") == Path("models/avmnist/encoders/image")


def test_layers_win_in_the_documented_order(edited: Any) -> None:
    def edit(raw: dict[str, Any]) -> None:
        raw["train"].update(batch_size=1, max_epochs=1, patience_epochs=1, clip_norm=1.0)
        layer = {"batch_size": 2, "max_epochs": 2, "patience_epochs": 2}
        raw["datasets"]["icu"]["settings"]["train"] = layer
        raw["presets"]["default"] = {"train": {"max_epochs": 3, "patience_epochs": 3}}

    train = load_params(edited(edit), ["train.patience_epochs=4"]).train
    assert (train.clip_norm, train.batch_size, train.max_epochs, train.patience_epochs) == (1.0, 2, 3, 4)


def test_an_override_can_change_a_layer(edited: Any) -> None:
    path = edited(lambda raw: raw["train"].update(max_epochs=1))
    assert load_params(path, ["datasets.icu.settings.train.max_epochs=7"]).train.max_epochs == 7


@pytest.mark.parametrize(("text", "expected"), [("0.25", 0.25), ("1e-3", 0.001), ("3", 3.0), ("0.1  # a comment", 0.1)])
def test_override_values_are_yaml(text: str, expected: float) -> None:
    assert load_params(FILE, [f"train.learning_rate={text}"]).train.learning_rate == expected


def test_override_lists_and_mappings() -> None:
    params = load_params(FILE, ["seeds=[3, 4]", "encoders.digit_image.augment=null", "evaluate.missing_rates=[0.5]"])
    assert params.seeds == (3, 4)
    assert params.encoders["digit_image"].model_dump()["augment"] is None
    assert params.evaluate.missing_rates == (0.5,)


def test_params_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_params(FILE).train.max_epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_names_section_key_and_known_keys(section: str, edited: Any) -> None:
    path = edited(lambda raw: raw[section].update(no_such_key=1))
    with pytest.raises(UserError) as caught:
        load_params(path)
    message = str(caught.value)
    assert "no_such_key" in message
    assert f"'{section}'" in message
    assert all(known in message for known in SECTIONS[section].model_fields)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.batchsize=3", ["'batchsize'", "'train'", "batch_size"]),
        ("no_section.key=3", ["'no_section'", "selfmask"]),
        ("no_key=3", ["'no_key'", "seeds"]),
        ("dataset.nam=icu", ["'nam'", "'dataset'", "modalities"]),
        ("encoders.image_tiny.no_key=1", ["'no_key'", "encoders.image_tiny", "patch_size"]),
        ("encoders.digit_image.augment.no_key=1", ["'no_key'", "augment", "rotate_degrees"]),
        ("presets.paper.train.no_key=1", ["no_key", "presets.paper.train", "max_epochs"]),
        ("presets.paper.fit={max_epochs: 1}", ["'fit'", "presets.paper", "selfmask"]),
        ("datasets.avmnist.settings.fit.no_key=1", ["no_key", "datasets.avmnist.settings.fit", "max_epochs"]),
        ("dataset.name=nothing", ["'nothing'", "physionet2012"]),
        ("preset=nothing", ["'nothing'", "paper"]),
        ("dataset.modalities=[ehr, smell]", ["smell", "cxr"]),
        ("dataset.modalities=[]", ["dataset.modalities"]),
        ("dataset.modalities=[ehr, ehr]", ["dataset.modalities", "once"]),
        ("datasets.icu.encoders.ehr=nothing", ["datasets.icu.encoders.ehr", "'nothing'", "series_tiny"]),
        ("model.heads=7", ["model.width", "model.heads=7"]),
        ("encoders.series_tiny.heads=5", ["encoders.series_tiny.heads=5"]),
        ("train.methods=[selfmask, nothing]", ["train.methods", "'nothing'", "zero_fill"]),
        ("train.methods=[]", ["train.methods"]),
        ("seeds=[1, 1]", ["seeds"]),
        ("train.learning_rate=fast", ["train.learning_rate", "'fast'"]),
        ("train.learning_rate=-1", ["train.learning_rate", "-1"]),
        ("fit.blocks=-1", ["fit.blocks", "-1"]),
        ("joint.blocks=last", ["joint.blocks", "'all'", "'last'"]),
        ("joint.layer_decay=1.5", ["joint.layer_decay", "1.5"]),
        ("joint.micro_batches=0", ["joint.micro_batches", "greater than 0"]),
        ("fit.precision=int8", ["fit.precision", "'bfloat16'", "'int8'"]),
        ("fit.head=mlp", ["fit.head", "'attention'", "'mlp'"]),
        ("fit.lora={rank: 0, alpha: 8, dropout: 0.1}", ["fit.lora.rank", "greater than 0"]),
        ("joint.lora={rank: 4, alpha: 8, dropout: 0.1, targets: all}", ["'targets'", "joint.lora", "rank"]),
        ("selfmask=3", ["selfmask"]),
        ("train.max_epochs", ["section.key=value"]),
        ("train.=1", ["section.key=value"]),
        ("train.max_epochs={", ["YAML"]),
    ],
)
def test_a_wrong_override_is_explained(override: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_params(FILE, [override])
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_missing_value_is_named(edited: Any) -> None:
    with pytest.raises(UserError, match=r"'train\.batch_size' is missing"):
        load_params(edited(lambda raw: raw["train"].pop("batch_size")))


@pytest.mark.parametrize("section", ["dataset", "datasets", "preset", "presets"])
def test_a_missing_section_is_named(section: str, edited: Any) -> None:
    with pytest.raises(UserError, match=section):
        load_params(edited(lambda raw: raw.pop(section)))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "dataset: 3\npreset: x\n"])
def test_a_broken_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml"):
        load_params(path)


def test_an_absent_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--params"):
        load_params(tmp_path / "params.yaml")


def test_an_unknown_modality_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="ehr"):
        load_params(FILE).encoder("smell")


def test_loading_changes_nothing(tmp_path: Path) -> None:
    path = Path(shutil.copy(FILE, tmp_path))
    assert load_params(path, ["train.max_epochs=3"]) != load_params(path)
    assert path.read_bytes() == FILE.read_bytes()


def test_a_modality_of_imported_tokens_has_no_encoder() -> None:
    changes = ["dataset.name=mosi", "dataset.modalities=[text, audio]"]
    params = load_params(FILE, changes)
    with pytest.raises(UserError, match="cache import"):
        params.encoder("text")
