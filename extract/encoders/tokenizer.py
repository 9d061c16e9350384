"""Tokenizers of the text encoders: trained on the training split, or those that belong to published weights.

All are `tokenizers.Tokenizer` objects, kept as their own JSON beside the weights, so that a saved encoder needs neither
the hub nor the library's tokenizer classes. The cache key records a digest of it, never its vocabulary: that was
learned from patients' notes, and keys are printed in error messages.
"""

import hashlib
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from extract.config import TextSettings
from extract.encoders.pretrained import HUB, loading

from transformers import AutoTokenizer, BertTokenizer  # isort: skip

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MASK_TOKENS = ("[MASK]", "<mask>")


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_tokens: int) -> Tokenizer:
    """Train a lower-casing WordPiece tokenizer on the given texts."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return with_limit(tokenizer, max_tokens)


def pretrained_tokenizer(settings: TextSettings) -> Tokenizer:
    """Load the tokenizer that belongs to pretrained weights.

    BERT's class is named, because AutoTokenizer fails where a repository declares a model type of its own (CXR-BERT).

    Raises:
        UserError: it cannot be loaded. A repository that holds only `spm.model` (DeBERTa-v3) needs sentencepiece and
            protobuf: `pip install 'selfmask[deberta]'`.
    """
    kind = BertTokenizer if settings.type == "bert" else AutoTokenizer
    name = settings.weights.removeprefix(HUB)
    extra = " (DeBERTa-v3 needs pip install 'selfmask[deberta]')" if settings.type == "deberta" else ""
    with loading(f"the tokenizer of {settings.weights}{extra}"):
        loaded = kind.from_pretrained(name, revision=settings.revision, trust_remote_code=False)
        return with_limit(Tokenizer.from_str(loaded.backend_tokenizer.to_str()), settings.max_tokens)


def with_limit(tokenizer: Tokenizer, max_tokens: int) -> Tokenizer:
    """Cut longer texts, never pad: padding is `collate`'s."""
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def mask_token(tokenizer: Tokenizer) -> int | None:
    """Id of the token that pretraining put in the place of hidden ones."""
    return next((i for i in map(tokenizer.token_to_id, MASK_TOKENS) if i is not None), None)


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of the tokenizer."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
