"""The resident form of token caches: minibatches by index arithmetic and one gather per modality.

All tokens of a split lie in one flat tensor per modality, [tokens + 1, width] in the stored type, whose last row is
zero and serves as padding. A batch is one gather on the device: no Python loop over samples, no workers. Memory is
that of the stored tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError
from cache.parts import SampleTokens, stored_dtype
from cache.store import Place, TokenStore


@dataclass(frozen=True)
class TokenBatch:
    """One minibatch; dicts by modality in the order of `observed`'s columns.

    tokens: float32 [B, T_m, width_m], zero at padding; valid, maskable: bool [B, T_m]; observed: bool [B, M];
    labels: float32 [B] or [B, L], or None.
    """

    tokens: dict[str, Tensor]
    valid: dict[str, Tensor]
    maskable: dict[str, Tensor]
    observed: Tensor
    labels: Tensor | None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in the order of `observed`'s columns."""
        return tuple(self.tokens)

    def to(self, device: torch.device | str) -> "TokenBatch":
        """Return the batch on another device."""
        tokens, valid, maskable = (
            {name: value.to(device) for name, value in values.items()}
            for values in (self.tokens, self.valid, self.maskable)
        )
        labels = None if self.labels is None else self.labels.to(device)
        return TokenBatch(tokens, valid, maskable, self.observed.to(device), labels)

    def with_observed(self, observed: Tensor) -> "TokenBatch":
        """Return the batch with another observed mask [B, M]."""
        return replace(self, observed=observed.to(self.observed.device))


@dataclass(frozen=True)
class _Flat:
    tokens: Tensor  # [tokens + 1, width]
    maskable: Tensor  # bool [tokens + 1]
    starts: Tensor  # int64 [N]
    lengths: Tensor  # int64 [N]
    scales: Tensor | None = None  # float32 [tokens + 1], of int8 tokens


class TokenBank:
    """Aligned tokens of N samples over M modalities."""

    def __init__(self, flats: Mapping[str, _Flat], labels: Tensor | None, device: torch.device | str) -> None:
        self.modalities = tuple(flats)
        self.widths = {m: int(flat.tokens.shape[1]) for m, flat in flats.items()}
        self.lengths = {m: flat.lengths.cpu() for m, flat in flats.items()}
        self.observed = torch.stack([flat.lengths > 0 for flat in flats.values()], dim=-1).cpu()
        self.labels = labels
        self.device = torch.device(device)
        self._flats = dict(flats)

    @classmethod
    def load(
        cls,
        stores: Mapping[str, TokenStore],
        sample_ids: Sequence[str],
        labels: np.ndarray | None,
        device: torch.device | str = "cpu",
    ) -> "TokenBank":
        """Load the tokens of `sample_ids` from each modality's complete cache.

        A sample that a cache's view lacks, or that failed, has observed = False there.

        Raises:
            UserError: a cache is incomplete, no cache is given, or the labels are not one a sample.
            CorruptCacheError: tokens that a view promises are gone.
        """
        if not stores:
            raise UserError("A token bank needs the cache of at least one modality. Run `selfmask extract`.")
        if labels is not None and len(labels) != len(sample_ids):
            raise UserError(f"{len(labels)} labels were given for {len(sample_ids)} samples; there must be one each.")
        flats = {m: _load_flat(store, sample_ids, device) for m, store in stores.items()}
        known = None if labels is None else torch.tensor(labels, dtype=torch.float32)
        return cls(flats, known, device)

    @classmethod
    def of(
        cls,
        sequences: Mapping[str, Sequence[SampleTokens | None]],
        widths: Mapping[str, int],
        labels: Tensor | None,
        device: torch.device | str = "cpu",
    ) -> "TokenBank":
        """Build a bank of float32 tokens that are in memory already; None where a sample lacks a modality."""
        flats = {m: _flat_of(samples, widths[m], device) for m, samples in sequences.items()}
        return cls(flats, labels, device)

    def __len__(self) -> int:
        return len(self.observed)

    def batch(self, rows: Tensor) -> TokenBatch:
        """Gather the given samples, int64 [B], padded to the longest of them."""
        tokens, valid, maskable = {}, {}, {}
        host_rows, device_rows = rows.cpu(), rows.to(self.device)
        for name, flat in self._flats.items():
            lengths = flat.lengths[device_rows]
            longest = int(self.lengths[name][host_rows].max()) if len(rows) else 0  # on the host: no device sync
            place = torch.arange(max(1, longest), device=self.device)
            valid[name] = place[None] < lengths[:, None]
            index = torch.where(valid[name], flat.starts[device_rows, None] + place, len(flat.tokens) - 1)
            tokens[name] = flat.tokens[index].float()
            if flat.scales is not None:
                tokens[name] *= flat.scales[index][..., None]
            maskable[name] = flat.maskable[index]
        labels = None if self.labels is None else self.labels[host_rows].to(self.device)
        return TokenBatch(tokens, valid, maskable, self.observed[host_rows].to(self.device), labels)


def _flat_of(samples: Sequence[SampleTokens | None], width: int, device: torch.device | str) -> _Flat:
    lengths = np.array([0 if sample is None else len(sample.tokens) for sample in samples], np.int64)
    present = [sample for sample in samples if sample is not None]
    tokens = [*(sample.tokens for sample in present), np.zeros((1, width), np.float32)]
    maskable = [*(sample.maskable for sample in present), np.zeros(1, bool)]
    return _Flat(
        torch.from_numpy(np.concatenate(tokens)).to(device),
        torch.from_numpy(np.concatenate(maskable)).to(device),
        torch.from_numpy(np.cumsum(lengths) - lengths).to(device),
        torch.from_numpy(lengths).to(device),
    )


def _load_flat(store: TokenStore, sample_ids: Sequence[str], device: torch.device | str) -> _Flat:
    found = store.locate(sample_ids)
    starts, lengths = np.zeros(len(found), np.int64), np.zeros(len(found), np.int64)
    tokens, flags, scales, total = [], [], [np.zeros(0, np.float32)], 0
    by_part: dict[str, list[tuple[int, Place]]] = {}
    for row, place in enumerate(found):
        if place is not None:
            by_part.setdefault(place.part, []).append((row, place))
    for entry in store.entries():
        if entry["part"] not in by_part:
            continue
        part = store.read_part(entry)
        for row, place in sorted(by_part[entry["part"]], key=lambda pair: pair[1].row):
            start, end = int(part.offsets[place.row]), int(part.offsets[place.row + 1])
            starts[row], lengths[row] = total, end - start
            tokens.append(np.asarray(part.tokens[start:end]))  # a view of the mapped file: copied once, below
            flags.append(part.maskable[start:end])
            if part.scales is not None:
                scales.append(part.scales[start:end])
            total += end - start
    return _Flat(
        _as_tensor([*tokens, np.zeros((1, store.width), stored_dtype(store.dtype))], store.dtype).to(device),
        torch.from_numpy(np.concatenate([*flags, np.zeros(1, bool)])).to(device),
        torch.from_numpy(starts).to(device),
        torch.from_numpy(lengths).to(device),
        torch.from_numpy(np.concatenate([*scales, np.zeros(1, np.float32)])).to(device)
        if store.dtype == "int8"
        else None,
    )


def _as_tensor(pieces: list[np.ndarray], dtype: str) -> Tensor:
    flat = np.concatenate(pieces)
    if dtype == "bfloat16":
        return torch.from_numpy(flat.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(flat)
