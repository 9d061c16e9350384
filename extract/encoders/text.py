"""BERT, DeBERTa and other text encoders of transformers: word-piece tokens; special tokens are never maskable.

Word embeddings are the mask point; type and position embeddings and the LayerNorm come after it inside the model.
DeBERTa has no absolute positions: attention knows the distance between any two tokens, so a placeholder keeps its place
relative to what is not masked, and the special tokens, never masked, are its anchors. No remote code runs: a repository
with code of its own (CXR-BERT) is loaded into a stock BERT. The trunk's state is named `bert`, whatever it is, so that
encoders that were saved before there were others still load.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn

from cache.errors import UserError
from extract.config import TextSettings
from extract.encoders import pretrained
from extract.encoders.base import Embedded, Encoder, pad
from extract.encoders.tokenizer import mask_token, pretrained_tokenizer, tokenizer_digest, train_tokenizer
from extract.samples import ModalitySpec
from extract.values import UnreadableValue

from transformers import AutoModel, BertConfig, BertModel, DebertaModel, DebertaV2Config, DebertaV2Model  # isort: skip

CHARACTERS_PER_TOKEN = 64
"""Of a text, so many characters a token are looked at: a document of a million words is cut before it is tokenized."""
DEBERTA = {"deberta": DebertaModel, "deberta-v2": DebertaV2Model}
"""Model type to class; DeBERTa-v3 declares itself `deberta-v2`."""


class TextEncoder(Encoder):
    """Word-piece tokens of a text trunk."""

    def __init__(self, settings: TextSettings, tokenizer: Tokenizer, saved: dict[str, Any] | None = None) -> None:
        """Build from scratch or pretrained weights; with `saved` (a saved encoder's assets) none are looked for."""
        if saved is None:
            trunk, origin = _build(settings, tokenizer)
        else:
            trunk, origin = _rebuild(saved["config"]), saved.get("origin", {})
        word_width = trunk.get_input_embeddings().weight.shape[1]  # ELECTRA's is narrower than its layers
        super().__init__(trunk.config.hidden_size, word_width)
        self.settings, self.bert, self.tokenizer, self.origin = settings, trunk, tokenizer, origin
        mask = mask_token(tokenizer)
        if mask is not None and settings.weights != "scratch":  # what pretraining used at exactly this point
            self.placeholder.data.copy_(trunk.get_input_embeddings().weight[mask].detach())

    @classmethod
    def prepare(
        cls, settings: TextSettings, modality: ModalitySpec, train_values: Callable[[], Iterable[Any]]
    ) -> dict[str, Any]:
        """The tokenizer of pretrained weights, or one trained on the training split."""
        if settings.weights == "scratch":
            return {"tokenizer": train_tokenizer(train_values(), settings.vocabulary, settings.max_tokens).to_str()}
        return {"tokenizer": pretrained_tokenizer(settings).to_str()}

    @classmethod
    def assemble(cls, settings: TextSettings, assets: dict[str, Any], *, load_weights: bool) -> "TextEncoder":
        """Build from settings and tokenizer."""
        return cls(settings, Tokenizer.from_str(assets["tokenizer"]), None if load_weights else assets)

    def preprocess(self, value: str) -> dict[str, np.ndarray]:
        """Return token ids and which of them are special; at most `max_tokens`."""
        encoding = self._tokenize(value)
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
        """The trunk on word embeddings."""
        device = embedded.tokens.device.type
        plain = self.bert.config.model_type == "deberta"  # its attention overflows under autocast
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device) and not plain):
            tokens = embedded.tokens.float() if plain else embedded.tokens
            output = self.bert(inputs_embeds=tokens, attention_mask=embedded.valid.long())
        result: Tensor = output.last_hidden_state.float()
        return result

    def spec(self) -> dict[str, Any]:
        """Name, options, preprocessing, layout."""
        digest, cut = tokenizer_digest(self.tokenizer), {"characters_per_token": CHARACTERS_PER_TOKEN}
        return {
            "name": self.settings.type,
            "options": self.settings.model_dump(mode="json"),
            "preprocessing": {"max_tokens": self.settings.max_tokens, "tokenizer_sha256": digest, **cut},
            "layout": {"kind": "word pieces"},
        }

    def blocks(self) -> list[nn.Module]:
        """Transformer blocks."""
        return pretrained.transformer_blocks(self.bert)

    def token_spans(self, value: str) -> list[tuple[float, ...]]:
        """Character spans; (0, 0) for special tokens."""
        return [(float(a), float(b)) for a, b in self._tokenize(value).offsets]

    def assets(self) -> dict[str, Any]:
        """The tokenizer, as its own JSON, the trunk's sizes, and where its weights came from."""
        config = pretrained.saved_config(self.bert)
        return {"tokenizer": self.tokenizer.to_str(), "config": config, "origin": self.origin}

    def _tokenize(self, value: str) -> Encoding:
        return self.tokenizer.encode(value[: CHARACTERS_PER_TOKEN * self.settings.max_tokens])


def _rebuild(config: dict[str, Any]) -> Any:
    kind = config.get("model_type", "bert")  # encoders of earlier versions are BERT and do not say so
    if kind == "bert":
        return BertModel(BertConfig.from_dict(config), add_pooling_layer=False)
    return pretrained.rebuild(config)


def _build(settings: TextSettings, tokenizer: Tokenizer) -> tuple[Any, dict[str, Any]]:
    if settings.weights == "scratch":
        return _scratch(settings, tokenizer), {}
    trunk, origin = _pretrained(settings)
    pretrained.require_sizes(trunk, settings.weights, settings.width, settings.layers)
    positions = getattr(trunk.config, "max_position_embeddings", settings.max_tokens)
    if settings.max_tokens > positions:
        raise UserError(
            f"max_tokens {settings.max_tokens} is more than the {positions} positions of {settings.weights}. "
            "Lower max_tokens."
        )
    if settings.type == "hf_text":
        _require_split(trunk.eval(), settings)
    return trunk, origin


def _scratch(settings: TextSettings, tokenizer: Tokenizer) -> Any:
    if settings.type == "hf_text":
        raise UserError("Encoder 'hf_text' has no from-scratch form. Name its weights, or use type bert or deberta.")
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        **pretrained.sizes(settings),
        "max_position_embeddings": max(settings.max_tokens, 512),
        "hidden_dropout_prob": settings.dropout,
        "attention_probs_dropout_prob": settings.dropout,
    }
    if settings.type == "bert":
        return BertModel(BertConfig(**sizes), add_pooling_layer=False)
    relative = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
    v3 = {"position_buckets": 256, "share_att_key": True, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0}
    return DebertaV2Model(DebertaV2Config(**sizes, **relative, **v3))


def _pretrained(settings: TextSettings) -> tuple[Any, dict[str, Any]]:
    if settings.type == "bert":
        return pretrained.load_trunk(BertModel, settings.weights, settings.revision, add_pooling_layer=False)
    declared = pretrained.declared(settings.weights, settings.revision)
    if settings.type == "hf_text":
        if declared.get("is_encoder_decoder"):
            raise UserError(f"{settings.weights} is an encoder with a decoder. Choose a text model without a decoder.")
        trunk, origin = pretrained.load_trunk(AutoModel, settings.weights, settings.revision)
        return pretrained.without_pooler(trunk), origin
    kind = DEBERTA.get(declared.get("model_type", ""))
    if kind is None:
        raise UserError(
            f"{settings.weights} is of type '{declared.get('model_type')}', no DeBERTa ({', '.join(DEBERTA)}). Use "
            "encoder type bert or hf_text."
        )
    return pretrained.load_trunk(kind, settings.weights, settings.revision)


@torch.no_grad()
def _require_split(trunk: Any, settings: TextSettings) -> None:
    """Raise UserError unless word embeddings can be given to this model, one output token each."""
    padding = trunk.config.pad_token_id or 0  # RoBERTa does not count it as a position
    ids = (padding + 1 + torch.arange(settings.max_tokens)[None] % (trunk.config.vocab_size - padding - 1)).long()
    try:
        stock = trunk(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        words = trunk.get_input_embeddings()(ids)
        split = trunk(inputs_embeds=words, attention_mask=torch.ones_like(ids)).last_hidden_state
    except (TypeError, ValueError, IndexError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{settings.weights} ({type(trunk).__name__}) does not run on {settings.max_tokens} word embeddings: "
            f"{error}. Lower max_tokens, or choose another model."
        ) from error
    if stock.shape[:2] != ids.shape or not torch.allclose(stock, split, atol=1e-4):
        raise UserError(
            f"{settings.weights} ({type(trunk).__name__}) cannot be masked at its word embeddings: its output differs "
            "when they are given instead of ids. Choose another model, or see docs/adding-an-encoder.md."
        )
