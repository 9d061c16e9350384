"""Preprocessed encoder inputs of one split, held in memory, for training encoders (fit and the joint stage).

Every value is read and preprocessed once; a value that cannot be read counts as missing and is counted by reason.
Memory is that of the preprocessed inputs; a batch collates only the rows that have a modality.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from extract.encoders.base import Encoder
from extract.samples import SamplesTable
from extract.values import UnreadableValue, read_value

Inputs = dict[str, np.ndarray]


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
