"""Checkpoints: equal after a round trip, nothing pickled, damage and unknown keys refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache.errors import UserError
from train.checkpoint import load_checkpoint, save_checkpoint
from train.methods.registry import model_spec


@pytest.fixture
def saved(make_bank, make_selfmask, settings, binary, tmp_path):
    bank = make_bank(12, 5)
    method, config = make_selfmask(model_spec(bank, binary, settings.model_settings))
    config["seed"] = 3
    save_checkpoint(tmp_path / "model", method, config)
    return tmp_path / "model", method, config, bank


def test_round_trip_is_equal(saved):
    folder, method, config, bank = saved
    loaded, read = load_checkpoint(folder)
    assert {k: read[k] for k in config} == config
    assert not loaded.training
    state = method.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    batch = bank.batch(torch.arange(12))
    assert torch.equal(loaded(batch).logits, method.eval()(batch).logits)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_again_is_byte_identical(saved):
    folder, method, config, _ = saved
    before = [p.read_bytes() for p in sorted(folder.iterdir())]
    save_checkpoint(folder, method, config)
    assert [p.read_bytes() for p in sorted(folder.iterdir())] == before


@pytest.mark.parametrize("change", [{"surprise": 1}, {"spec": None}])
def test_unknown_or_missing_configuration_keys(saved, change):
    folder, method, config, _ = saved
    broken = {k: v for k, v in {**config, **change}.items() if v is not None}
    with pytest.raises(UserError, match=r"surprise|spec"):
        save_checkpoint(folder, method, broken)
    stored = json.loads((folder / "config.json").read_text())
    stored = {k: v for k, v in {**stored, **change}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"surprise|spec"):
        load_checkpoint(folder)


def test_weights_of_another_run_are_refused(saved):
    folder, *_ = saved
    weights = load_file(folder / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match="belong"):
        load_checkpoint(folder)


def test_missing_weight_is_named(saved):
    folder, method, config, _ = saved
    name = next(iter(method.state_dict()))

    class Partial(torch.nn.Module):
        def state_dict(self, *args, **kwargs):
            return {k: v for k, v in method.state_dict().items() if k != name}

    save_checkpoint(folder, Partial(), config)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_checkpoint(folder)


def test_setting_of_another_version_is_refused(saved):
    folder, *_ = saved
    stored = json.loads((folder / "config.json").read_text())
    stored["model"]["colour"] = "blue"
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="colour"):
        load_checkpoint(folder)


def test_absent_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(tmp_path / "nowhere")
