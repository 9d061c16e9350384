"""Encoders in the place of the cache: tokens computed on demand, and inputs masked as eq. 5 is written.

`EncodedBank` has the interface of `cache.bank.TokenBank`, so that evaluation and prediction run unchanged on fresh
tokens. `EncodedSource` is the joint stage's `TokenSource`: the mask replaces token *inputs* of the encoder, so that
gradients reach the encoder, its placeholder V and the mask predictor. Only the rows that have a modality are encoded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cache.bank import TokenBank, TokenBatch
from cache.parts import SampleTokens
from extract.encoders.base import Embedded, Encoder
from extract.encoders.registry import load_encoder
from extract.encoding import encode_items
from extract.inputs import InputBank, InputBatch
from extract.samples import SamplesTable
from train.methods.base import Projections, Tokens


def scatter(values: Tensor, rows: Tensor, batch: int) -> Tensor:
    """Put `values` [R, ...] at the batch rows `rows`; zeros (False) elsewhere, [B, ...]."""
    return values.new_zeros(batch, *values.shape[1:]).index_copy(0, rows, values)


def to_token_batch(encoders: Mapping[str, Encoder], batch: InputBatch, embedded: Mapping[str, Embedded]) -> TokenBatch:
    """Encode the embedded inputs, unmasked, into native tokens of the whole batch."""
    size, device = len(batch.observed), batch.observed.device
    tokens, valid, maskable = {}, {}, {}
    for name in encoders:
        encoder = encoders[name]
        if name not in embedded:
            tokens[name] = torch.zeros(size, 1, encoder.width, device=device)
            valid[name] = maskable[name] = torch.zeros(size, 1, dtype=torch.bool, device=device)
            continue
        rows = batch.rows[name]
        native = encoder.encode(embedded[name]) * embedded[name].valid[:, :, None]
        tokens[name] = scatter(native, rows, size)
        valid[name] = scatter(embedded[name].valid, rows, size)
        maskable[name] = scatter(embedded[name].maskable, rows, size)
    return TokenBatch(tokens, valid, maskable, batch.observed, batch.labels)


def embed(encoders: Mapping[str, Encoder], batch: InputBatch) -> dict[str, Embedded]:
    """Token inputs of every modality that a row of the batch has."""
    return {name: encoders[name].embed(inputs) for name, inputs in batch.inputs.items()}


@dataclass(frozen=True)
class EncodedSource:
    """Joint stage: Z~^(m) = P(E^(m)(X (1 - M) + V M)), eq. 5 as written."""

    encoders: Mapping[str, Encoder]
    project: Projections
    embedded: Mapping[str, Embedded]
    batch: InputBatch
    tokens: Tokens

    @classmethod
    def build(cls, encoders: Mapping[str, Encoder], project: Projections, batch: InputBatch) -> "EncodedSource":
        """Embed and encode the batch, unmasked."""
        embedded = embed(encoders, batch)
        tokens = project(to_token_batch(encoders, batch, embedded))
        return cls(encoders, project, embedded, batch, tokens)

    def masked(self, modality: str, mask: Tensor) -> Tensor:
        """Encode with the input tokens under `mask` [B, L_m] replaced by V; [B, L_m, D]."""
        if modality not in self.embedded:
            return self.tokens.values[modality]
        embedded, rows = self.embedded[modality], self.batch.rows[modality]
        own = mask[rows, : embedded.valid.shape[1]]
        native = self.encoders[modality].encode_masked(embedded, own) * embedded.valid[:, :, None]
        return self.project.project(modality, scatter(native, rows, len(mask)))


def encoded_bank(checkpoint: Path, table: SamplesTable, batch_size: int, split: str = "test") -> TokenBank:
    """Encode a split once, with a joint checkpoint's own encoders, into a resident bank in the order of the table."""
    config = json.loads((checkpoint / "config.json").read_text())
    encoders = {m: load_encoder(checkpoint / config["encoders"][m]) for m in config["spec"]["modalities"]}
    inputs = InputBank.load(table, split, encoders)
    sequences: dict[str, list[SampleTokens | None]] = {}
    for name, encoder in encoders.items():
        encoder.to("cuda" if torch.cuda.is_available() else "cpu")
        items = [(str(row), "", item) for row, item in enumerate(inputs.items[name]) if item is not None]
        sequences[name] = [None] * len(inputs)
        for start in range(0, len(items), batch_size):
            for sample in encode_items(encoder, items[start : start + batch_size], "float32"):
                sequences[name][int(sample.sample_id)] = sample
    return TokenBank.of(sequences, {m: encoder.width for m, encoder in encoders.items()}, inputs.labels)


class EncodedBank:
    """A token bank whose tokens come from encoders at each call; same interface as `TokenBank`."""

    def __init__(self, encoders: Mapping[str, Encoder], inputs: InputBank, device: torch.device | str = "cpu") -> None:
        self.encoders = encoders
        self.inputs = inputs
        self.device = device
        self.modalities = inputs.modalities
        self.observed = inputs.observed
        self.labels = inputs.labels

    def __len__(self) -> int:
        return len(self.inputs)

    @torch.no_grad()
    def batch(self, rows: Tensor) -> TokenBatch:
        """Encode the given rows, int64 [B]."""
        batch = self.inputs.batch(rows.cpu()).to(self.device)
        return to_token_batch(self.encoders, batch, embed(self.encoders, batch))
