"""Operations per second of real-size encoders in extraction, against the matrix rate of the same device.

    python -m benchmarks.throughput --out docs/benchmarks.md

SigLIP2-B (224 pixels), BERT-base (512 tokens) and wav2vec 2.0 base (7 seconds) with random weights: batches of ready
values go to the device, through the encoder in autocast, and back as tokens, as an extraction does it. Operations are
counted by torch on one batch; the rate of large square products in the same precision is the limit. On a GPU the
batches are large; on a CPU a few samples tell as much.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.output import write_section
from extract.config import HubImageSettings, SpeechSettings, TextSettings
from extract.encoders.base import Encoder
from extract.encoding import Item, encode_items
from extract.precision import Precision

SECTION = "## Operations per second of extraction"
BASE = {"width": 768, "heads": 12, "dropout": 0.0}
MATRIX = {"cuda": 8192, "cpu": 2048}
BATCH = {"cuda": 128, "cpu": 4}
SECONDS = 2.0


def image(layers: int) -> tuple[Encoder, dict[str, np.ndarray]]:
    """Return SigLIP2-B's vision tower and an image."""
    from extract.encoders.hf_image import HubImageEncoder

    grid = {"image_size": 224, "patch_size": 16, "channels": 3, "augment": None}
    settings = HubImageSettings(type="hf_image", weights="scratch", revision=None, layers=layers, **grid, **BASE)
    return HubImageEncoder(settings), {"pixels": np.zeros((3, 224, 224), np.float32)}


def text(layers: int) -> tuple[Encoder, dict[str, np.ndarray]]:
    """Return BERT-base and a text of 512 tokens."""
    from extract.encoders.text import TextEncoder
    from extract.encoders.tokenizer import train_tokenizer

    settings = TextSettings(
        type="bert", weights="scratch", revision=None, layers=layers, max_tokens=512, vocabulary=30522, **BASE
    )
    item = {"ids": np.full(512, 5, np.int64), "special": np.zeros(512, bool)}
    return TextEncoder(settings, train_tokenizer(["one two three"], 100, 512)), item


def speech(layers: int) -> tuple[Encoder, dict[str, np.ndarray]]:
    """Return wav2vec 2.0 base and a clip of 7 seconds."""
    from extract.encoders.wav2vec2 import Wav2Vec2Encoder

    settings = SpeechSettings(
        type="wav2vec2", weights="scratch", revision=None, layers=layers, sample_rate_hz=16000, max_seconds=7.0, **BASE
    )
    clip = np.random.default_rng(0).normal(size=7 * 16000).astype(np.float32)
    return Wav2Vec2Encoder(settings), {"samples": clip}


CASES: dict[str, Callable[[int], tuple[Encoder, dict[str, np.ndarray]]]] = {
    "SigLIP2-B, 224 pixels": image,
    "BERT-base, 512 tokens": text,
    "wav2vec 2.0 base, 7 s": speech,
}


def rate(device: torch.device, action: Callable[[], Any], amount: float) -> float:
    """Return `amount` per second of `action`, over some seconds after one run that is not counted."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    action()
    wait()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        action()
        wait()
        count += 1
    return amount * count / (time.perf_counter() - started)


def matrix_rate(device: torch.device, precision: Precision) -> float:
    """Return operations per second of square products in a precision."""
    size = MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    return rate(device, lambda: a @ b, 2.0 * size**3)


def operations(encoder: Encoder, items: list[Item], precision: Precision) -> float:
    """Return the operations of one batch, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        encode_items(encoder, items, precision)
    return float(counter.get_total_flops())


def measure(device: torch.device, layers: int, batch: int) -> list[str]:
    """Return the lines of the table."""
    lines = ["| encoder | precision | samples/s | operations/s | matrix rate | share |", "|---|---|---|---|---|---|"]
    for precision in ("float32", "bfloat16"):
        limit = matrix_rate(device, precision)  # type: ignore[arg-type]
        for name, make in CASES.items():
            encoder, item = make(layers)
            items: list[Item] = [(str(n), "d", item) for n in range(batch)]
            encoder.eval().to(device)
            count = operations(encoder, items, precision)  # type: ignore[arg-type]
            speed = rate(device, lambda e=encoder, i=items, p=precision: encode_items(e, i, p), batch)  # type: ignore[misc]
            done = speed / batch * count
            cells = f"{precision} | {speed:.1f} | {done / 1e12:.3f} T | {limit / 1e12:.3f} T | {done / limit:.2f}"
            lines.append(f"| {name} | {cells} |")
    return lines


def main() -> None:
    """Measure, print, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, help="samples; default by device")
    parser.add_argument("--out", type=Path, help="page whose section is replaced")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines = measure(device, arguments.layers, arguments.batch or BATCH[device.type])
    text = "\n".join(
        [SECTION, "", f"`python -m benchmarks.throughput`: {name}, torch {torch.__version__}.", "", *lines, ""]
    )
    print(text)
    if arguments.out:
        write_section(arguments.out, text)


if __name__ == "__main__":
    main()
