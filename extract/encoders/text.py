"""BERT through transformers: word-piece tokens; [CLS] and [SEP] are never maskable.

Word embeddings are the mask point; type and position embeddings and the LayerNorm come after it inside the model. A
from-scratch encoder trains its own WordPiece tokenizer on the training split. No remote code runs: a repository with
code of its own (CXR-BERT) is loaded into a stock BERT trunk. The cache key records a digest of the tokenizer, never its
vocabulary: that was learned from patients' notes, and keys are printed in error messages.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from cache.errors import UserError
from extract.config import TextSettings
from extract.encoders import torchvision_schema  # noqa: F401  (before transformers)
from extract.encoders.base import Embedded, Encoder, pad
from extract.values import UnreadableValue

from transformers import BertConfig, BertModel, BertTokenizer  # isort: skip

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MASK_TOKEN = "[MASK]"
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "pad_token_id",
)
"""Fields of a BERT configuration that its forward pass depends on; a saved encoder keeps them."""


class TextEncoder(Encoder):
    """Word-piece tokens of a BERT trunk."""

    def __init__(self, settings: TextSettings, tokenizer: Tokenizer, config: dict[str, Any] | None = None) -> None:
        """Build from scratch or pretrained weights; with `config`, a saved trunk's, no weights are looked for."""
        bert = _build(settings, tokenizer) if config is None else _trunk(BertConfig.from_dict(config))
        super().__init__(bert.config.hidden_size, bert.config.hidden_size)
        self.settings, self.bert, self.tokenizer = settings, bert, tokenizer
        mask = tokenizer.token_to_id(MASK_TOKEN)
        if mask is not None and settings.weights != "scratch":  # what pretraining used at exactly this point
            self.placeholder.data.copy_(bert.get_input_embeddings().weight[mask].detach())

    def preprocess(self, value: str) -> dict[str, np.ndarray]:
        """Return token ids and which of them are special; at most `max_tokens`."""
        encoding = self.tokenizer.encode(value)
        if len(encoding.ids) <= sum(encoding.special_tokens_mask):
            raise UnreadableValue("text has no token")
        return {
            "ids": np.asarray(encoding.ids, np.int64),
            "special": np.asarray(encoding.special_tokens_mask, bool),
        }

    def collate(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """`ids` [B, T], `valid` and `special` bool [B, T]."""
        ids, valid = pad([item["ids"] for item in items])
        special, _ = pad([item["special"] for item in items])
        return {"ids": ids, "valid": valid, "special": special}

    def embed(self, inputs: dict[str, Tensor]) -> Embedded:
        """Word embeddings."""
        tokens = self.bert.get_input_embeddings()(inputs["ids"])
        return Embedded(tokens, inputs["valid"], inputs["valid"] & ~inputs["special"])

    def encode(self, embedded: Embedded) -> Tensor:
        """The BERT trunk on word embeddings."""
        output = self.bert(inputs_embeds=embedded.tokens, attention_mask=embedded.valid.long())
        result: Tensor = output.last_hidden_state.float()
        return result

    def spec(self) -> dict[str, Any]:
        """Name, options, preprocessing, layout."""
        return {
            "name": "bert",
            "options": self.settings.model_dump(mode="json"),
            "preprocessing": {"max_tokens": self.settings.max_tokens, "tokenizer_sha256": self._tokenizer_digest()},
            "layout": {"kind": "word pieces"},
        }

    def blocks(self) -> list[nn.Module]:
        """Transformer blocks."""
        return list(self.bert.encoder.layer)

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute blocks in the backward pass."""
        if enabled:
            self.bert.gradient_checkpointing_enable()
        else:
            self.bert.gradient_checkpointing_disable()

    def token_spans(self, value: str) -> list[tuple[float, ...]]:
        """Character spans; (0, 0) for special tokens."""
        return [(float(a), float(b)) for a, b in self.tokenizer.encode(value).offsets]

    def assets(self) -> dict[str, Any]:
        """The tokenizer, as its own JSON, and the trunk's sizes."""
        config = self.bert.config.to_dict()
        return {"tokenizer": self.tokenizer.to_str(), "config": {k: config[k] for k in SIZES}}

    def _tokenizer_digest(self) -> str:
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_tokens: int) -> Tokenizer:
    """Train a lower-casing WordPiece tokenizer on the given texts; the same texts give the same word pieces."""
    kept = list(texts)
    trained = _word_pieces()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL, *_continuations(trained, kept)], show_progress=False
    )
    trained.train_from_iterator(kept, trainer)
    tokenizer = _word_pieces(trained.get_vocab())
    tokenizer.add_special_tokens(SPECIAL)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return with_limit(tokenizer, max_tokens)


def _word_pieces(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _continuations(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """Return the one-letter pieces inside words, in order.

    The trainer numbers them in the order of a hash map, another one in every run, and resolves ties by number. Given as
    special tokens they have their numbers before it starts.
    """
    letters: set[str] = set()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            letters.update(word[1:])
    return [f"##{letter}" for letter in sorted(letters)]


def pretrained_tokenizer(settings: TextSettings) -> Tokenizer:
    """Load the word pieces that belong to pretrained weights.

    The class is named, because AutoTokenizer fails where a repository declares a model type of its own (CXR-BERT).
    """
    name = settings.weights.removeprefix("hf:")
    try:
        loaded = BertTokenizer.from_pretrained(name, revision=settings.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot load the tokenizer of {settings.weights}: {error}") from error
    return with_limit(Tokenizer.from_str(loaded.backend_tokenizer.to_str()), settings.max_tokens)


def with_limit(tokenizer: Tokenizer, max_tokens: int) -> Tokenizer:
    """Cut longer texts, never pad: padding is `collate`'s."""
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def _trunk(config: BertConfig) -> BertModel:
    return BertModel(config, add_pooling_layer=False)


def _build(settings: TextSettings, tokenizer: Tokenizer) -> BertModel:
    return _scratch(settings, tokenizer) if settings.weights == "scratch" else _pretrained(settings)


def _scratch(settings: TextSettings, tokenizer: Tokenizer) -> BertModel:
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.width,
        max_position_embeddings=max(settings.max_tokens, 512),
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
    )
    return _trunk(config)


def _pretrained(settings: TextSettings) -> BertModel:
    name = settings.weights.removeprefix("hf:")
    try:
        bert: BertModel = BertModel.from_pretrained(
            name,
            revision=settings.revision,
            add_pooling_layer=False,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot load {settings.weights}: {error}") from error
    config = bert.config
    if config.hidden_size != settings.width or config.num_hidden_layers != settings.layers:
        raise UserError(
            f"{settings.weights} has width {config.hidden_size} and {config.num_hidden_layers} layers; params.yaml has "
            f"{settings.width} and {settings.layers}. Set encoders.<name>.width and layers to the model's."
        )
    if settings.max_tokens > config.max_position_embeddings:
        raise UserError(
            f"max_tokens {settings.max_tokens} is more than the {config.max_position_embeddings} positions of "
            f"{settings.weights}. Lower max_tokens."
        )
    return bert
