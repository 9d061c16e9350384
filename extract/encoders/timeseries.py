"""EHR-style time-series Transformer: binned channels with a mask per cell.

Channels are standardised with mean and deviation of the observed training cells; an unobserved cell takes the last
observed value before it, else the mean; the network also sees which cells were observed. A token is `bins_per_token`
consecutive bins; a token without an observed cell cannot be masked, since there is nothing to predict. Filling forward
makes masking imperfect: the last value of a masked token shows in later tokens until the channel is measured again.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from extract.config import TimeSeriesSettings
from extract.encoders.base import Embedded, Encoder, pad
from extract.encoders.transformer import SequenceTransformer
from extract.samples import ModalitySpec
from extract.values import TimeSeries, UnreadableValue

CLIP = 10.0  # standard deviations; keeps a recording error from dominating


class TimeSeriesEncoder(Encoder):
    """Tokens of `bins_per_token` bins from a [T, C] series."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: TimeSeriesSettings, channels: Sequence[str]) -> None:
        super().__init__(settings.width, settings.width)
        self.settings, self.channels = settings, tuple(channels)
        count = len(self.channels)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.embedding = nn.Linear(2 * count * settings.bins_per_token, settings.width)
        self.transformer = SequenceTransformer(settings)

    @classmethod
    def prepare(
        cls, settings: Any, modality: ModalitySpec, train_values: Callable[[], Iterable[Any]]
    ) -> dict[str, Any]:
        """Channel names of the modality."""
        return {"channels": list(modality.channels)}

    @classmethod
    def assemble(
        cls, settings: TimeSeriesSettings, assets: dict[str, Any], *, load_weights: bool
    ) -> "TimeSeriesEncoder":
        """Build from settings and channel names."""
        return cls(settings, assets["channels"])

    def preprocess(self, value: TimeSeries) -> dict[str, np.ndarray]:
        """Return the last `max_bins` bins, [T, C] with NaN where unobserved."""
        series = value.values[-self.settings.max_bins :]
        if series.shape[1] != len(self.channels):
            raise UnreadableValue(f"series has {series.shape[1]} channels, the encoder {len(self.channels)}")
        if not np.isfinite(series).any():
            raise UnreadableValue("series has no observed cell in the window")
        return {"values": np.ascontiguousarray(series, np.float32)}

    def fit_statistics(self, values: Sequence[dict[str, np.ndarray]]) -> None:
        """Mean and standard deviation per channel over observed training cells."""
        cells = np.concatenate([item["values"] for item in values]).astype(np.float64)
        seen = np.isfinite(cells)
        count = np.maximum(seen.sum(0), 1)
        mean = np.where(seen, cells, 0).sum(0) / count
        variance = (np.where(seen, cells - mean, 0) ** 2).sum(0) / count
        self.mean.copy_(torch.from_numpy(mean))
        self.deviation.copy_(torch.from_numpy(np.maximum(np.sqrt(variance), 1e-3)))

    def collate(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """Pad to the longest series; `values` [B, T, C], `valid` [B, T]."""
        values, valid = pad([item["values"] for item in items])
        return {"values": values, "valid": valid}

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Hide a random share of the cells, so that the encoder does not lean on single measurements."""
        if not self.settings.drop_cells:
            return inputs
        values = inputs["values"]
        hidden = torch.rand(values.shape, generator=generator).to(values.device) < self.settings.drop_cells
        return {**inputs, "values": values.masked_fill(hidden, float("nan"))}

    def embed(self, inputs: dict[str, Tensor]) -> Embedded:
        """One token per `bins_per_token` bins."""
        values, valid = inputs["values"], inputs["valid"]
        seen = torch.isfinite(values) & valid[:, :, None]
        filled = self._fill((values - self.mean) / self.deviation, seen)
        features = torch.cat([filled, seen.to(filled.dtype)], dim=-1) * valid[:, :, None]
        size = self.settings.bins_per_token
        features = nn.functional.pad(features, (0, 0, 0, -features.shape[1] % size))
        tokens = self.embedding(features.unflatten(1, (-1, size)).flatten(2))
        return Embedded(tokens, self._any(valid, size), self._any(seen.any(-1), size))

    def encode(self, embedded: Embedded) -> Tensor:
        """Transformer with temporal positions."""
        result: Tensor = self.transformer(embedded.tokens, embedded.valid)
        return result

    def spec(self) -> dict[str, Any]:
        """Name, options, preprocessing, layout."""
        return {
            "name": "timeseries",
            "options": self.settings.model_dump(mode="json", exclude={"drop_cells"}),
            "preprocessing": {"channels": list(self.channels), "fill": "last, else mean", "clip": CLIP},
            "layout": {"kind": "bins", "bins_per_token": self.settings.bins_per_token},
        }

    def blocks(self) -> list[nn.Module]:
        """Transformer blocks."""
        return list(self.transformer.blocks)

    def length(self, item: dict[str, np.ndarray]) -> int:
        """Return the number of groups of bins."""
        return -(-len(item["values"]) // self.settings.bins_per_token)

    def token_spans(self, value: TimeSeries) -> list[tuple[float, ...]]:
        """(first bin, last bin + 1) of each token, counted from the start of the whole series."""
        bins, size = len(value.values), self.settings.bins_per_token
        first = max(0, bins - self.settings.max_bins)
        return [(float(start), float(min(start + size, bins))) for start in range(first, bins, size)]

    def assets(self) -> dict[str, Any]:
        """Channel names."""
        return {"channels": list(self.channels)}

    @staticmethod
    def _fill(values: Tensor, seen: Tensor) -> Tensor:
        """Carry the last observed value forward; 0, the training mean, before the first one."""
        place = torch.arange(values.shape[1], device=values.device)[None, :, None]
        last = torch.where(seen, place, -1).cummax(dim=1).values
        carried = values.gather(1, last.clamp(min=0))
        return torch.where(last >= 0, carried.nan_to_num(), 0.0).clamp(-CLIP, CLIP)

    @staticmethod
    def _any(flags: Tensor, size: int) -> Tensor:
        padded = nn.functional.pad(flags, (0, -flags.shape[1] % size))
        result: Tensor = padded.unflatten(1, (-1, size)).any(-1)
        return result
