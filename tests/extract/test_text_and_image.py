"""Text and image encoders: what only they have: special tokens, word pieces, random affine changes."""

import numpy as np
import torch
from PIL import Image

from extract.config import ImageSettings, TextSettings
from extract.encoders.image import ImageEncoder
from extract.encoders.text import TextEncoder
from extract.encoders.tokenizer import train_tokenizer

SMALL = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0}
IMAGE = ImageSettings(type="vit", weights="scratch", image_size=16, patch_size=4, channels=1, augment=None, **SMALL)
TEXT = TextSettings(type="bert", weights="scratch", revision=None, max_tokens=12, vocabulary=60, **SMALL)
WORDS = ["no acute opacity", "large opacity in the left lung", "clear lungs", "no effusion, no pneumothorax here"]


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30), dtype=np.uint8))


def test_special_tokens_are_never_maskable_and_long_text_is_cut() -> None:
    encoder = TextEncoder(TEXT, train_tokenizer(WORDS, 60, 12)).eval()
    item = encoder.preprocess("opacity " * 100_000)
    assert len(item["ids"]) == TEXT.max_tokens
    embedded = encoder.embed(encoder.collate([item]))
    assert not embedded.maskable[0, 0]
    assert not embedded.maskable[0, -1]
    assert embedded.maskable[0, 1:-1].all()


def test_the_same_texts_give_the_same_word_pieces() -> None:
    texts = [" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))]
    tokenizers = [train_tokenizer(iter(texts), 60, 12) for _ in range(5)]
    assert len({tokenizer.to_str() for tokenizer in tokenizers}) == 1
    whole = tokenizers[0].encode(texts[0])
    assert (whole.tokens[0], whole.tokens[-1]) == ("[CLS]", "[SEP]")
    assert "[UNK]" not in whole.tokens
    assert tokenizers[0].get_vocab_size() <= 60


def test_image_augmentation_is_seeded_and_moves_pixels() -> None:
    changed = {"rotate_degrees": 20, "translate": 0.1, "scale": 0.1}
    encoder = ImageEncoder(ImageSettings.model_validate({**IMAGE.model_dump(), "augment": changed}))
    inputs = encoder.collate([encoder.preprocess(picture())])
    one = encoder.augment(inputs, torch.Generator().manual_seed(0))["pixels"]
    two = encoder.augment(inputs, torch.Generator().manual_seed(0))["pixels"]
    assert torch.equal(one, two)
    assert not torch.allclose(one, inputs["pixels"])
    assert "augment" not in encoder.spec()["options"]
