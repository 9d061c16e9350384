"""Memory and time of one training step of an encoder of real size, for each way of `extract.tuning`.

    python -m benchmarks.finetuning --out docs/benchmarks.md

Every way runs in a process of its own, on random weights and random texts. Memory is the peak of the process less
what it had with the model alone, so it holds gradients, optimiser states and activations; time is CPU time of all
threads, the least of the steps, because other load on the machine adds to wall time. All figures are shares of the
plain way in the same run.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from extract.config import TextSettings, TuningSettings
from extract.encoders.base import Encoder
from extract.encoders.text import TextEncoder
from extract.encoders.tokenizer import train_tokenizer
from extract.precision import autocast
from extract.tuning import parameter_groups, tune

SECTION = "## Training an encoder"
PLAIN: dict[str, Any] = {
    "blocks": "all",
    "lora": None,
    "layer_decay": 1.0,
    "warmup_steps": 0,
    "precision": "float32",
    "micro_batches": 1,
    "checkpointing": False,
}
LORA = {"rank": 8, "alpha": 16, "dropout": 0.0}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "blocks: 4": {"blocks": 4},
    "blocks: 0 (probe)": {"blocks": 0},
    "lora of rank 8": {"lora": LORA},
    "lora of rank 8, blocks: 4": {"lora": LORA, "blocks": 4},
    "checkpointing": {"checkpointing": True},
    "micro_batches: 4": {"micro_batches": 4},
    "bfloat16": {"precision": "bfloat16"},
    "lora, checkpointing, micro_batches: 4, bfloat16": {
        "lora": LORA,
        "checkpointing": True,
        "micro_batches": 4,
        "precision": "bfloat16",
    },
}


def main() -> None:
    """Measure every way, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file whose section is replaced.")
    parser.add_argument("--way", choices=WAYS, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way is not None:
        print(json.dumps(measure(arguments)))
        return
    found = {way: _in_a_process(way) for way in WAYS}
    text = _section(arguments, found)
    print(text)
    if arguments.out is not None:
        _replace(arguments.out, text)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Peak memory of a step in bytes, CPU seconds of the fastest, and trained parameters."""
    encoder, inputs = _encoder(arguments)
    settings = TuningSettings.model_validate({**PLAIN, **WAYS[arguments.way]})
    tune(encoder, settings, {key: value[:1] for key, value in inputs.items()})
    optimizer = torch.optim.AdamW(parameter_groups(encoder.train(), 1e-5, 1.0))
    before, seconds = _peak(), []
    for _ in range(arguments.steps):
        start = time.process_time()
        _step(encoder, optimizer, inputs, settings)
        seconds.append(time.process_time() - start)
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    return {"bytes": _peak() - before, "seconds": min(seconds), "trained": trained}


def _encoder(arguments: argparse.Namespace) -> tuple[Encoder, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([f"{word}a {word}b" for word in "cdefgh"], 200, arguments.tokens)
    sizes = {"width": arguments.width, "layers": arguments.layers, "heads": 12, "dropout": 0.0}
    settings = TextSettings(
        type="bert", weights="scratch", revision=None, max_tokens=arguments.tokens, vocabulary=200, **sizes
    )
    ids = torch.randint(5, 20, (arguments.batch, arguments.tokens))
    valid = torch.ones_like(ids, dtype=torch.bool)
    return TextEncoder(settings, tokenizer), {"ids": ids, "valid": valid, "special": ~valid}


def _step(
    encoder: Encoder, optimizer: torch.optim.Optimizer, inputs: dict[str, torch.Tensor], settings: TuningSettings
) -> None:
    optimizer.zero_grad(set_to_none=True)
    for rows in torch.arange(len(inputs["ids"])).tensor_split(settings.micro_batches):
        with autocast(settings.precision, "cpu"):
            embedded = encoder.embed({key: value[rows] for key, value in inputs.items()})
            masked = encoder.encode_masked(embedded, (torch.rand(embedded.valid.shape) < 0.25).float())
        masked.square().mean().backward()
    optimizer.step()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _in_a_process(way: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, *sys.orig_argv[1:], "--way", way], capture_output=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    print(way, found, file=sys.stderr, flush=True)
    return found


def _section(arguments: argparse.Namespace, found: dict[str, dict[str, float]]) -> str:
    plain, threads = found["plain"], torch.get_num_threads()
    lines = [
        SECTION,
        "",
        f"`python -m benchmarks.finetuning {' '.join(sys.argv[1:])}`: BERT of {arguments.layers} layers and width "
        f"{arguments.width}, {arguments.batch} texts of {arguments.tokens} tokens, a quarter of them masked, AdamW, no "
        f"dropout; {platform.machine()}, {threads} torch threads, CPU. Plain: {plain['bytes'] / 1e9:.2f} GB above the "
        f"model's own, {plain['seconds']:.1f} s of CPU time a step.",
        "",
        "| way | trained parameters | memory | CPU time |",
        "|---|---|---|---|",
    ]
    for way, values in found.items():
        memory, seconds = values["bytes"] / plain["bytes"], values["seconds"] / plain["seconds"]
        lines.append(f"| {way} | {values['trained'] / 1e6:.2f} M | {memory:.2f} | {seconds:.2f} |")
    return "\n".join([*lines, ""])


def _replace(path: Path, text: str) -> None:
    """Put the section in the place of the one that is there, or at the end."""
    page = path.read_text()
    head, found, rest = page.partition(SECTION)
    after = rest.partition("\n## ")
    tail = f"\n## {after[2]}" if found and after[1] else ""
    path.write_text(f"{head.rstrip()}\n\n{text}{tail}" if found else f"{page.rstrip()}\n\n{text}")


if __name__ == "__main__":
    main()
