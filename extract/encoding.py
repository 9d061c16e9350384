"""One batch through an encoder, without gradients: preprocessed values to the tokens of each sample.

A token's last bits depend on the batch that it was computed in (padding and the shape of the products), so whoever
wants the same bytes twice must form the same batches; `extract.engines.chunks` does.
"""

import numpy as np
import torch

from cache.parts import SampleTokens
from extract.encoders.base import Encoder

Item = tuple[str, str, dict[str, np.ndarray]]
"""Sample id, digest of the raw value, preprocessed value."""


@torch.no_grad()
def encode_items(encoder: Encoder, items: list[Item], precision: str) -> list[SampleTokens]:
    """Encode one batch of preprocessed samples."""
    encoder.eval()
    device = encoder.placeholder.device
    inputs = {name: value.to(device) for name, value in encoder.collate([item[2] for item in items]).items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        tokens, embedded = encoder(inputs)
    native = tokens.float().cpu().numpy()
    valid, maskable = embedded.valid.cpu().numpy(), embedded.maskable.cpu().numpy()
    return [
        SampleTokens(sample_id, digest, native[row][valid[row]], maskable[row][valid[row]])
        for row, (sample_id, digest, _) in enumerate(items)
    ]
