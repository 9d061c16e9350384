"""The masks that a trained SelfMask chooses for one sample: data of the paper's figure 3."""

from collections.abc import Mapping

import torch

from extract.encoders.base import Encoder
from extract.inputs import InputBank
from extract.samples import SamplesTable
from train.encoded import EncodedBank
from train.methods.selfmask import SelfMask


@torch.no_grad()
def learned_masks(
    method: SelfMask, encoders: Mapping[str, Encoder], table: SamplesTable, split: str, rows: list[int], ratio: float
) -> list[dict[str, list[bool]]]:
    """Return, per row of the split, each observed modality's mask over its tokens.

    Args:
        method: trained SelfMask.
        encoders: by modality.
        table: samples table.
        split: its split.
        rows: row numbers within the split.
        ratio: share of valid tokens to mask.
    """
    method.eval()
    bank = EncodedBank(encoders, InputBank.load(table, split, encoders).subset(rows))
    batch = bank.batch(torch.arange(len(rows)))
    tokens = method.project(batch)
    masks = method.masks(method.scores(tokens, batch.observed), tokens, ratio)
    return [
        {
            m: masks[m][row][tokens.valid[m][row]].tolist()
            for column, m in enumerate(batch.modalities)
            if bool(batch.observed[row, column])
        }
        for row in range(len(rows))
    ]
