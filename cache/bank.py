"""The resident form of token caches: all tokens in memory, minibatches by one gather per modality.

Parts are read in parallel straight into one buffer per modality (pinned if the target is a GPU), in the stored type.
Then nothing is read any more: no workers, no Python loop over samples. Memory is that of the stored tokens;
`cache.streaming` is for those that do not fit.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError
from cache.gather import FlatTokens, TokenBatch, padded_length
from cache.parts import SampleTokens
from cache.reading import StoredSamples
from cache.store import TokenStore

__all__ = ["TokenBank", "TokenBatch"]


class TokenBank:
    """Aligned tokens of N samples over M modalities."""

    def __init__(
        self,
        flats: Mapping[str, FlatTokens],
        labels: Tensor | None,
        device: torch.device | str,
        buckets: Sequence[int] = (),
    ) -> None:
        self.modalities = tuple(flats)
        self.widths = {m: int(flat.tokens.shape[1]) for m, flat in flats.items()}
        self.lengths = {m: flat.lengths.cpu() for m, flat in flats.items()}
        self.observed = torch.stack([flat.lengths > 0 for flat in flats.values()], dim=-1).cpu()
        self.labels = labels
        self.device = torch.device(device)
        self.buckets = tuple(buckets)
        self._flats = {m: flat.to(device) for m, flat in flats.items()}

    @classmethod
    def load(
        cls,
        stores: Mapping[str, TokenStore],
        sample_ids: Sequence[str],
        labels: np.ndarray | None,
        device: torch.device | str = "cpu",
        buckets: Sequence[int] = (),
    ) -> "TokenBank":
        """Load the tokens of `sample_ids` from each modality's complete cache.

        A sample that a cache's view lacks, or that failed, has observed = False there.

        Args:
            stores: by modality.
            sample_ids: N ids, in the order of the bank's rows.
            labels: float [N] or [N, L], or None.
            device: where the tokens stay.
            buckets: lengths that batches are padded to where they fit, for compiled models that want few shapes;
                by default a batch is padded to its longest sample.

        Raises:
            UserError: a cache is incomplete, no cache is given, or the labels are not one a sample.
            CorruptCacheError: tokens that a view promises are gone.
        """
        known = check_samples(stores, sample_ids, labels)
        return cls.read({m: StoredSamples.locate(s, sample_ids) for m, s in stores.items()}, known, device, buckets)

    @classmethod
    def read(
        cls,
        located: Mapping[str, StoredSamples],
        labels: Tensor | None,
        device: torch.device | str = "cpu",
        buckets: Sequence[int] = (),
    ) -> "TokenBank":
        """Load samples that are located already; arguments and errors as of `load`."""
        pin, flats = torch.device(device).type == "cuda", {}
        for name, own in located.items():  # one after the other: pinned memory is released once it is copied
            flats[name] = own.read(np.arange(len(own.length)), pin=pin).to(device)
        return cls(flats, labels, device, buckets)

    @classmethod
    def of(
        cls,
        sequences: Mapping[str, Sequence[SampleTokens | None]],
        widths: Mapping[str, int],
        labels: Tensor | None,
        device: torch.device | str = "cpu",
    ) -> "TokenBank":
        """Build a bank of float32 tokens that are in memory already; None where a sample lacks a modality."""
        return cls({m: _flat_of(samples, widths[m]) for m, samples in sequences.items()}, labels, device)

    def __len__(self) -> int:
        return len(self.observed)

    def batch(self, rows: Tensor) -> TokenBatch:
        """Gather the given samples, int64 [B], padded to the longest of them or to a bucket."""
        lengths = {m: own[rows.cpu()] for m, own in self.lengths.items()}  # on the host: no device sync
        labels = None if self.labels is None else self.labels[rows.cpu()].to(self.device)
        observed = self.observed[rows.cpu()].to(self.device)
        return padded_batch(self._flats, rows.to(self.device), lengths, observed, labels, self.buckets)


def padded_batch(
    flats: Mapping[str, FlatTokens],
    rows: Tensor,
    lengths: Mapping[str, Tensor],
    observed: Tensor,
    labels: Tensor | None,
    buckets: Sequence[int],
) -> TokenBatch:
    """Gather one minibatch.

    Args:
        flats: tokens by modality.
        rows: samples of `flats`, int64 [B], on their device.
        lengths: those of the samples by modality, int64 [B], on the host.
        observed: bool [B, M].
        labels: float32 [B] or [B, L], or None.
        buckets: as of `TokenBank.load`.
    """
    tokens, valid, maskable = {}, {}, {}
    for name, flat in flats.items():
        longest = int(lengths[name].max()) if len(rows) else 0
        tokens[name], valid[name], maskable[name] = flat.pad(rows, padded_length(longest, buckets))
    return TokenBatch(tokens, valid, maskable, observed, labels)


def check_samples(
    stores: Mapping[str, TokenStore], sample_ids: Sequence[str], labels: np.ndarray | None
) -> Tensor | None:
    """Return the labels as float32; UserError if there is no store, or not one label a sample."""
    if not stores:
        raise UserError("A token bank needs the cache of at least one modality. Run `selfmask extract`.")
    if labels is not None and len(labels) != len(sample_ids):
        raise UserError(f"{len(labels)} labels were given for {len(sample_ids)} samples; there must be one each.")
    return None if labels is None else torch.tensor(labels, dtype=torch.float32)


def _flat_of(samples: Sequence[SampleTokens | None], width: int) -> FlatTokens:
    lengths = np.array([0 if sample is None else len(sample.tokens) for sample in samples], np.int64)
    present = [sample for sample in samples if sample is not None]
    tokens = [*(sample.tokens for sample in present), np.zeros((1, width), np.float32)]
    maskable = [*(sample.maskable for sample in present), np.zeros(1, bool)]
    return FlatTokens(
        torch.from_numpy(np.concatenate(tokens)),
        torch.from_numpy(np.concatenate(maskable)),
        torch.from_numpy(np.cumsum(lengths) - lengths),
        torch.from_numpy(lengths),
    )
