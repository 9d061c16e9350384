"""Extraction: only what is missing is encoded, failures keep a reason, a stale cache is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import extract.encoding as encoding
import extract.extraction as extraction
from cache.errors import CorruptCacheError, StaleCacheError, UserError
from cache.store import TokenStore
from extract.config import ExtractSettings, ImageSettings, TextSettings
from extract.encoders.image import ImageEncoder
from extract.encoders.registry import save_encoder
from extract.encoders.text import TextEncoder
from extract.encoders.tokenizer import train_tokenizer
from extract.extraction import extract_modality
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec

SMALL = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.1}
SETTINGS = ExtractSettings(
    batch_size=2,
    batch_tokens=1000,
    workers=0,
    compile=False,
    dtype="float32",
    compression="none",
    precision="float32",
    sorted_batches=1,
    part_megabytes=1,
    part_minutes=1e-9,
)
NOTES = ["no effusion", "large opacity in the left lung today", "clear", "mild oedema, unchanged", "normal heart size"]


def table(root: Path, notes: list[str | None]) -> SamplesTable:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number in range(len(notes)):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        path = root / "images" / f"{number}.png"
        if not path.exists():
            Image.fromarray(pixels).save(path)
    frame = pd.DataFrame(
        {
            "sample_id": [f"s{n}" for n in range(len(notes))],
            "group_id": [f"g{n}" for n in range(len(notes))],
            "split": ["train", "valid", "test"] * 2 + ["train"] * (len(notes) - 6),
            "label": [float(n % 2) for n in range(len(notes))],
            "txt_text": notes,
            "cxr_path": [f"images/{n}.png" for n in range(len(notes))],
        }
    )
    info = DatasetInfo(
        name="toy",
        label=LabelSpec(kind="binary", names=("label",)),
        modalities=(
            ModalitySpec(name="txt", kind="text", column="txt_text"),
            ModalitySpec(name="cxr", kind="image", column="cxr_path"),
        ),
    )
    return SamplesTable.write(root, info, frame, pd.DataFrame({"source_id": [], "step": [], "reason": []}))


def text_encoder(folder: Path, seed: int = 0) -> TextEncoder:
    torch.manual_seed(seed)
    settings = TextSettings(type="bert", weights="scratch", revision=None, max_tokens=8, vocabulary=60, **SMALL)
    encoder = TextEncoder(settings, train_tokenizer(NOTES, 60, 8)).eval()
    save_encoder(encoder, folder, {"stage": "test"})
    return encoder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids in the order in which they are encoded."""
    seen: list[str] = []
    encode = encoding.encode_items

    def counting(encoder: Any, items: Any, precision: Any) -> Any:
        seen.extend(item[0] for item in items)
        return encode(encoder, items, precision)

    monkeypatch.setattr(encoding, "encode_items", counting)
    return seen


def test_tokens_are_the_encoders_and_missing_values_have_none(tmp_path: Path) -> None:
    encoder = text_encoder(tmp_path / "encoder")
    data = table(tmp_path / "samples", [*NOTES, None])
    result = extract_modality(data, "txt", tmp_path / "encoder", SETTINGS, tmp_path / "txt.zarr")
    assert result == {"modality": "txt", "encoded": 5, "samples": 5, "unreadable": 0, "reasons": {}}
    store = TokenStore.open(tmp_path / "txt.zarr")
    assert len(store.entries()) == 3  # a part is published after every batch
    for sample, note in zip(store.read([f"s{n}" for n in range(5)]), NOTES, strict=True):
        with torch.no_grad():
            tokens, embedded = encoder(encoder.collate([encoder.preprocess(note)]))
        assert np.allclose(sample.tokens, tokens[0].numpy(), atol=1e-5)
        assert sample.maskable.tolist() == embedded.maskable[0].tolist()
    with pytest.raises(UserError):
        store.read(["s5"])


def test_a_killed_extraction_goes_on_and_has_no_view_until_it_is_complete(
    tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text_encoder(tmp_path / "encoder")
    data, out = table(tmp_path / "samples", [*NOTES, "last one"]), tmp_path / "txt.zarr"
    append, parts = TokenStore.append, [0]

    def killed(store: TokenStore, samples: Any) -> Any:
        parts[0] += 1
        if parts[0] == 2:
            raise KeyboardInterrupt
        return append(store, samples)

    with monkeypatch.context() as patched:
        patched.setattr(TokenStore, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            extract_modality(data, "txt", tmp_path / "encoder", SETTINGS, out)
    with pytest.raises(UserError, match="not complete"):
        TokenStore.open(out).read(["s0"])
    lost = {f"s{n}" for n in range(6)} - set(encoded[:2])
    encoded.clear()
    extract_modality(data, "txt", tmp_path / "encoder", SETTINGS, out)
    assert sorted(encoded) == sorted(lost)
    assert len(TokenStore.open(out).read([f"s{n}" for n in range(6)])) == 6
    encoded.clear()
    again = extract_modality(data, "txt", tmp_path / "encoder", SETTINGS, out)
    assert (encoded, again["encoded"]) == ([], 0)


def test_new_and_changed_samples_alone_are_encoded(tmp_path: Path, encoded: list[str]) -> None:
    text_encoder(tmp_path / "encoder")
    out, notes = tmp_path / "txt.zarr", [*NOTES, "last one"]
    extract_modality(table(tmp_path / "a", notes), "txt", tmp_path / "encoder", SETTINGS, out)
    before = TokenStore.open(out).read(["s1"])[0].tokens
    encoded.clear()
    changed = ["no effusion", "clear", *notes[2:], "a new note"]
    extract_modality(table(tmp_path / "b", changed), "txt", tmp_path / "encoder", SETTINGS, out)
    assert sorted(encoded) == ["s1", "s6"]
    after = TokenStore.open(out).read(["s1"])[0].tokens
    assert after.shape != before.shape


def test_an_unreadable_value_has_a_reason_and_counts_until_it_is_repaired(tmp_path: Path, encoded: list[str]) -> None:
    settings = ImageSettings(
        type="vit", weights="scratch", image_size=8, patch_size=4, channels=1, augment=None, **SMALL
    )
    save_encoder(ImageEncoder(settings), tmp_path / "encoder", {})
    data, out = table(tmp_path / "samples", [*NOTES, "last one"]), tmp_path / "cxr.zarr"
    broken, whole = data.root / "images" / "2.png", (data.root / "images" / "2.png").read_bytes()
    broken.write_bytes(whole[:40])
    first = extract_modality(data, "cxr", tmp_path / "encoder", SETTINGS, out)
    assert (first["encoded"], first["unreadable"]) == (5, 1)
    assert "decoded" in TokenStore.open(out).failures()["s2"]
    encoded.clear()
    assert extract_modality(data, "cxr", tmp_path / "encoder", SETTINGS, out)["encoded"] == 0
    broken.write_bytes(whole)
    repaired = extract_modality(data, "cxr", tmp_path / "encoder", SETTINGS, out)
    assert (encoded, repaired["unreadable"]) == (["s2"], 0)


def test_a_stale_cache_is_refused_or_replaced_without_showing_the_vocabulary(tmp_path: Path) -> None:
    data, out = table(tmp_path / "samples", [*NOTES, "last one"]), tmp_path / "txt.zarr"
    text_encoder(tmp_path / "one")
    extract_modality(data, "txt", tmp_path / "one", SETTINGS, out)
    two = text_encoder(tmp_path / "two", seed=1)
    two.tokenizer = train_tokenizer(["zebra zebra"], 60, 8)
    with pytest.raises(StaleCacheError, match="weights_sha256"):
        extract_modality(data, "txt", tmp_path / "two", SETTINGS, out)
    key = extraction.cache_key(two, tmp_path / "two", "float32")
    with pytest.raises(StaleCacheError, match="tokenizer_sha256") as refused:
        TokenStore.create(out, key, 8, "float32")
    assert "opacity" not in str(refused.value)
    stated = json.dumps(key.model_dump(mode="json"))
    assert "zebra" in two.tokenizer.get_vocab()
    assert "zebra" not in stated + str(refused.value)
    assert extract_modality(data, "txt", tmp_path / "two", SETTINGS, out, replace=True)["encoded"] == 6
    assert extract_modality(data, "txt", tmp_path / "two", SETTINGS, out)["encoded"] == 0


def test_a_damaged_part_is_moved_aside_and_its_samples_alone_are_encoded(tmp_path: Path, encoded: list[str]) -> None:
    text_encoder(tmp_path / "encoder")
    data, out = table(tmp_path / "samples", [*NOTES, "last one"]), tmp_path / "txt.zarr"
    extract_modality(data, "txt", tmp_path / "encoder", SETTINGS, out)
    store = TokenStore.open(out)
    ids, place = [f"s{n}" for n in range(6)], store.locate(["s0"])[0]
    assert place is not None
    expected = {sample.sample_id: sample.tokens for sample in store.read(ids)}
    lost = sorted(i for i, other in zip(ids, store.locate(ids), strict=True) if other and other.part == place.part)
    chunk = out / "parts" / place.part / "tokens/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    encoded.clear()
    extract_modality(data, "txt", tmp_path / "encoder", SETTINGS, out, replace=True)
    assert sorted(encoded) == lost
    assert list((out / "quarantine").glob(f"*-{place.part}/tokens"))
    assert TokenStore.open(out).verify().problems == []
    for sample in TokenStore.open(out).read(ids):
        assert np.allclose(sample.tokens, expected[sample.sample_id], atol=1e-5)


def test_compression_and_type_are_settings(tmp_path: Path) -> None:
    text_encoder(tmp_path / "encoder")
    data = table(tmp_path / "samples", [*NOTES, "last one"])
    for dtype, compression in (("int8", "none"), ("float32", "zstd")):
        chosen = SETTINGS.model_copy(update={"dtype": dtype, "compression": compression})
        out = tmp_path / f"{dtype}.zarr"
        extract_modality(data, "txt", tmp_path / "encoder", chosen, out)
        store = TokenStore.open(out)
        assert store.dtype == dtype
        assert {e["arrays"]["tokens"].get("compression", "none") for e in store.entries()} == {compression}


def test_replace_never_deletes_a_folder_that_is_no_token_cache(tmp_path: Path) -> None:
    text_encoder(tmp_path / "encoder")
    data, out = table(tmp_path / "samples", [*NOTES, "last one"]), tmp_path / "other.zarr"
    out.mkdir()
    (out / "zarr.json").write_text(json.dumps({"zarr_format": 3, "attributes": {"owner": "someone else"}}))
    with pytest.raises(CorruptCacheError):
        extract_modality(data, "txt", tmp_path / "encoder", SETTINGS, out, replace=True)
    assert (out / "zarr.json").exists()


@pytest.mark.parametrize("fitted", [True, False])
def test_tokens_of_random_weights_warn_and_are_recorded(
    fitted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = table(tmp_path / "table", [*NOTES, "last one"])
    encoder = text_encoder(tmp_path / "encoder")
    save_encoder(encoder, tmp_path / "encoder", {"fitted": fitted})
    extract_modality(samples, "txt", tmp_path / "encoder", SETTINGS, tmp_path / "txt.zarr")
    assert TokenStore.open(tmp_path / "txt.zarr").key.pretrained_or_fitted == fitted
    assert ("WARNING" in capsys.readouterr().err) != fitted
