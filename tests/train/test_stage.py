"""Stage two: it learns, resumes exactly, returns at once when finished, and never reads the test split."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache.errors import StaleCacheError, UserError
from cache.key import CacheKey
from cache.reading import StoredSamples
from cache.store import TokenStore
from cache.streaming import StreamingBank
from train.checkpoint import load_checkpoint
from train.scoring import predict_bank, score, selection_metrics
from train.stage import require_current, train_method


@pytest.fixture(scope="module")
def banks(make_bank):
    nan = np.full(20, np.nan, np.float32)
    return {"train": make_bank(96, 1), "valid": make_bank(48, 2), "test": make_bank(20, 3, nan)}


def run(banks, settings, label, out, seed=0, name="selfmask", **changes):
    train = settings.train_settings.model_copy(update=changes)
    keys = {"ehr": {"content": "a"}}
    options = settings.selfmask if name == "selfmask" else getattr(settings.compared, name, None)
    return train_method(name, seed, banks, label, settings.model_settings, options, train, out, keys)


@pytest.mark.parametrize("name", ["selfmask", "modality_dropout", "zero_fill", "random_fill"])
def test_learns_separable_tokens_although_test_labels_are_absent(banks, settings, binary, tmp_path, name):
    config = run(banks, settings, binary, tmp_path / name / "seed0", name=name)
    assert config["validation"]["natural/auroc"] > 0.9
    assert config["validation"]["protocol/auroc"] > 0.75
    method, _ = load_checkpoint(tmp_path / name / "seed0")
    assert score(method, banks["valid"], None, 7)["auroc"] == pytest.approx(config["validation"]["natural/auroc"])


def test_same_seed_same_weights_other_seed_other_weights(banks, settings, binary, tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(banks, settings, binary, tmp_path / folder, seed=seed, max_epochs=1)
    a, b, c = (load_file(tmp_path / f / "model.safetensors") for f in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


# SMIL carries a dictionary and M3Care a memory beside the weights.
@pytest.mark.parametrize("name", ["selfmask", "m3care", pytest.param("smil", marks=pytest.mark.slow)])
def test_resumes_bit_for_bit(banks, settings, binary, tmp_path, interrupted, name):
    run(banks, settings, binary, tmp_path / "whole", name=name)
    with interrupted(3):
        run(banks, settings, binary, tmp_path / "cut", name=name)
    assert not (tmp_path / "cut" / "config.json").exists()
    run(banks, settings, binary, tmp_path / "cut", name=name)
    whole, cut = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "cut"))
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def test_finished_returns_at_once_and_a_change_restarts(banks, settings, binary, tmp_path, monkeypatch):
    first = run(banks, settings, binary, tmp_path, max_epochs=1)
    monkeypatch.setattr("train.stage.run_epochs", lambda *a, **k: pytest.fail("trained again"))
    assert run(banks, settings, binary, tmp_path, max_epochs=1) == first
    monkeypatch.undo()
    second = run(banks, settings, binary, tmp_path, max_epochs=1, learning_rate=0.001)
    assert second["fingerprint"] != first["fingerprint"]
    assert second["weights_sha256"] != first["weights_sha256"]


def test_the_test_split_is_not_even_needed(banks, settings, binary, tmp_path):
    chosen = {k: v for k, v in banks.items() if k != "test"}
    a = run(banks, settings, binary, tmp_path / "a", max_epochs=1)
    b = run(chosen, settings, binary, tmp_path / "b", max_epochs=1)
    assert a["weights_sha256"] == b["weights_sha256"]


def test_selection_rules(banks, settings, binary, tmp_path):
    run(banks, settings, binary, tmp_path, max_epochs=1)
    method, bank = load_checkpoint(tmp_path)[0], banks["valid"]
    ids = [str(i) for i in range(len(bank))]
    each = {rule: selection_metrics(method, bank, ids, rule, 16)["monitor"] for rule in ("natural", "protocol", "both")}
    assert each["natural"] == pytest.approx(score(method, bank, None, 16)["auroc"])
    assert each["both"] == pytest.approx((each["natural"] + each["protocol"]) / 2)


def test_one_class_in_validation_is_a_clear_error(banks, make_bank, settings, binary, tmp_path):
    broken = {**banks, "valid": make_bank(8, 4, np.zeros(8, np.float32))}
    with pytest.raises(UserError, match="auroc"):
        run(broken, settings, binary, tmp_path)


class Disguised:
    """The same bank with other and longer tokens in the dropped modality."""

    def __init__(self, bank):
        self.bank, self.observed, self.labels, self.modalities = bank, bank.observed, bank.labels, bank.modalities

    def __len__(self):
        return len(self.bank)

    def batch(self, rows):
        batch = self.bank.batch(rows)
        width = batch.tokens["cxr"].shape[-1]
        full = torch.ones(len(rows), 11, dtype=torch.bool)
        tokens = {**batch.tokens, "cxr": 100 * torch.randn(len(rows), 11, width)}
        return replace(
            batch, tokens=tokens, valid={**batch.valid, "cxr": full}, maskable={**batch.maskable, "cxr": full}
        )


def test_predictions_do_not_depend_on_batch_size_or_hidden_content(banks, settings, binary, tmp_path):
    run(banks, settings, binary, tmp_path, max_epochs=1)
    method, bank = load_checkpoint(tmp_path)[0], banks["valid"]
    kept = bank.observed.numpy() & np.array([True, False, True])
    a, b = predict_bank(method, bank, kept, 1), predict_bank(method, bank, kept, 48)
    np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(predict_bank(method, Disguised(bank), kept, 48), b, atol=1e-5)
    assert np.isnan(a[~kept.any(1)]).all()
    assert np.isfinite(a[kept.any(1)]).all()


def streamed(bank, memory_bytes):
    """The same samples, streamed."""
    located = {m: StoredSamples.locate(store, bank.sample_ids) for m, store in bank.stores.items()}
    return StreamingBank(located, bank.labels, memory_bytes)


def test_streams_what_exceeds_the_memory_and_resumes_bit_for_bit(make_bank, settings, binary, tmp_path, interrupted):
    resident = {"train": make_bank(96, 1), "valid": make_bank(48, 2)}
    banks = {split: streamed(bank, 1500) for split, bank in resident.items()}
    whole = run(banks, settings, binary, tmp_path / "whole", name="modality_dropout")
    assert whole["validation"]["natural/auroc"] > 0.9
    method = load_checkpoint(tmp_path / "whole")[0]
    for scenario in ("natural/auroc", "protocol/auroc"):
        ids = [str(i) for i in range(48)]
        metrics = [selection_metrics(method, own["valid"], ids, "both", 64)[scenario] for own in (banks, resident)]
        assert metrics[0] == metrics[1] == whole["validation"][scenario]

    with interrupted(3):
        run(banks, settings, binary, tmp_path / "cut", name="modality_dropout")
    cut = run(banks, settings, binary, tmp_path / "cut", name="modality_dropout")
    assert cut["weights_sha256"] == whole["weights_sha256"]


def test_a_budget_that_is_not_used_changes_nothing(banks, settings, binary, tmp_path, monkeypatch):
    first = run(banks, settings, binary, tmp_path, max_epochs=1)
    monkeypatch.setattr("train.stage.run_epochs", lambda *a, **k: pytest.fail("trained again"))
    assert run(banks, settings, binary, tmp_path, max_epochs=1, memory_gb=10.0) == first


def test_tokens_of_another_encoder_are_refused_where_the_encoder_is_known(tmp_path):
    weights = tmp_path / "encoder" / "model.safetensors"
    key = CacheKey.imported("toy", hashlib.sha256(b"fitted").hexdigest())
    stores, encoders = {"ehr": TokenStore.create(tmp_path / "ehr.zarr", key, 4)}, {"ehr": weights.parent}
    require_current(stores, encoders)  # a checkout without encoders
    weights.parent.mkdir()
    weights.write_bytes(b"fitted")
    require_current(stores, encoders)
    weights.write_bytes(b"fitted again")
    with pytest.raises(StaleCacheError, match="selfmask extract ehr"):
        require_current(stores, encoders)
