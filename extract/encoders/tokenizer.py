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
