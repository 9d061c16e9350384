"""Preprocessed encoder inputs of one split, held in memory, for training encoders (fit and the joint stage).

Every value is read and preprocessed once; a value that cannot be read counts as missing and is counted by reason.
Memory is that of the preprocessed inputs; a batch collates only the rows that have a modality. A batch that is too
large for a device is computed in parts, padded as the whole batch is.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from extract.encoders.base import Encoder
from extract.ranks import Ranks, Share
from extract.samples import SamplesTable
from extract.values import UnreadableValue, read_value

Inputs = dict[str, np.ndarray]
EXAMPLES = 2


@dataclass(frozen=True)
class InputBatch:
    """Collated inputs of the rows that have each modality.

    `inputs[m]` is what `Encoder.collate` returns for the batch rows `rows[m]` (int64); both lack a modality that no
    row of the batch has. `observed` is bool [B, M], `labels` float32 [B] or [B, L].
    """

    inputs: dict[str, dict[str, Tensor]]
    rows: dict[str, Tensor]
    observed: Tensor
    labels: Tensor | None

    def to(self, device: torch.device | str) -> "InputBatch":
        """Move every tensor to `device`."""
        return InputBatch(
            {m: {key: value.to(device) for key, value in inputs.items()} for m, inputs in self.inputs.items()},
            {m: rows.to(device) for m, rows in self.rows.items()},
            self.observed.to(device),
            None if self.labels is None else self.labels.to(device),
        )

    def augmented(self, encoders: Mapping[str, Encoder], generator: torch.Generator) -> "InputBatch":
        """Return the batch with each encoder's random changes of training inputs."""
        changed = {name: encoders[name].augment(inputs, generator) for name, inputs in self.inputs.items()}
        return replace(self, inputs=changed)

    def parts(self, count: int) -> "list[InputPart]":
        """Split into at most `count` parts of consecutive rows, none of them empty."""
        total = len(self.observed)
        count = min(count, total)
        return [self._part(Ranks(number, count).share(total)) for number in range(count)]

    def _part(self, share: Share) -> "InputPart":
        here = slice(share.first, share.last)
        inputs, rows = {}, {}
        for name, places in self.rows.items():
            mine = ((places >= share.first) & (places < share.last)).nonzero().flatten()
            if len(mine):
                rows[name] = places[mine] - share.first
                inputs[name] = {key: value[mine] for key, value in self.inputs[name].items()}
        labels = None if self.labels is None else self.labels[here]
        weight = share.weight
        if self.labels is not None and labels is not None:
            weight = float(torch.isfinite(labels).sum() / torch.isfinite(self.labels).sum().clamp(min=1))
        return InputPart(InputBatch(inputs, rows, self.observed[here], labels), share, weight)


@dataclass(frozen=True)
class InputPart:
    """Rows of a batch, and what their means count in those of the batch: over samples, and over labelled entries."""

    batch: InputBatch
    share: Share
    label_weight: float


@dataclass(frozen=True)
class InputBank:
    """Preprocessed inputs of N samples; `items[m][row]` is None where the modality is missing."""

    encoders: Mapping[str, Encoder]
    items: dict[str, list[Inputs | None]]
    labels: Tensor | None
    sample_ids: tuple[str, ...]
    unreadable: dict[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, table: SamplesTable, split: str, encoders: Mapping[str, Encoder]) -> "InputBank":
        """Read and preprocess every value of a split of the table."""
        rows = [row for _, row in table.split(split).iterrows()]
        items: dict[str, list[Inputs | None]] = {}
        unreadable: dict[str, Counter[str]] = {}
        for name, encoder in encoders.items():
            unreadable[name] = Counter()
            items[name] = [_prepared(table, row, name, encoder, unreadable[name]) for row in rows]
        labels = torch.tensor(table.labels(split), dtype=torch.float32)
        return cls(encoders, items, labels, tuple(table.ids(split)), unreadable)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in the order of `observed`'s columns."""
        return tuple(self.items)

    @property
    def observed(self) -> Tensor:
        """What each sample has; bool [N, M]."""
        columns = [[item is not None for item in items] for items in self.items.values()]
        return torch.tensor(columns, dtype=torch.bool).T.contiguous()

    def __len__(self) -> int:
        return len(self.sample_ids)

    def batch(self, rows: Tensor) -> InputBatch:
        """Collate the given rows, int64 [B]."""
        chosen = rows.tolist()
        inputs, present = {}, {}
        observed = torch.zeros(len(chosen), len(self.items), dtype=torch.bool)
        for column, (name, items) in enumerate(self.items.items()):
            have = [(place, item) for place, row in enumerate(chosen) if (item := items[row]) is not None]
            if have:
                present[name] = torch.tensor([place for place, _ in have])
                inputs[name] = self.encoders[name].collate([item for _, item in have])
                observed[present[name], column] = True
        return InputBatch(inputs, present, observed, None if self.labels is None else self.labels[rows])

    def epoch(self, batch_size: int, generator: torch.Generator, device: torch.device | str) -> Iterator[InputBatch]:
        """Augmented training batches in random order, on `device`."""
        for rows in torch.randperm(len(self), generator=generator).split(batch_size):
            yield self.batch(rows).to(device).augmented(self.encoders, generator)

    def example(self, modality: str, device: torch.device | str) -> dict[str, Tensor]:
        """Return collated inputs of one modality, of the first rows that have it, on `device`."""
        have = [item for item in self.items[modality] if item is not None][:EXAMPLES]
        return {key: value.to(device) for key, value in self.encoders[modality].collate(have).items()}

    def without_empty(self) -> "InputBank":
        """Drop samples that have no readable modality: nothing can be learned from them."""
        keep = self.observed.any(-1).nonzero().flatten().tolist()
        return self.subset(keep)

    def subset(self, rows: Sequence[int]) -> "InputBank":
        """Return the bank of the given rows."""
        return InputBank(
            self.encoders,
            {m: [items[row] for row in rows] for m, items in self.items.items()},
            None if self.labels is None else self.labels[list(rows)],
            tuple(self.sample_ids[row] for row in rows),
            self.unreadable,
        )


def _prepared(table: SamplesTable, row: object, name: str, encoder: Encoder, reasons: Counter[str]) -> Inputs | None:
    try:
        value = read_value(table, row, name)
        return None if value is None else encoder.preprocess(value)
    except UnreadableValue as error:
        reasons[str(error)] += 1
        return None
