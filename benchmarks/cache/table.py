"""What a run says: the table of forms, the ratios of the project's bars, and the section of the page."""

import os
import platform
import sys

import torch

from benchmarks.cache.bench import LOOP, OURS, RAW, RESIDENT, STREAMED, Bench
from benchmarks.cache.forms import FORMS
from benchmarks.cache.ragged import WIDTH

SECTION = "## Token cache"
COLUMNS = ("write", "load", "random 16", "random 256", "epoch", "training epoch")


def table(bench: Bench) -> str:
    """Return the Markdown table, one line a form."""
    names = [OURS, STREAMED, RAW, RESIDENT, LOOP, *(form.name for form in FORMS)]
    lines = ["| form | " + " | ".join(COLUMNS) + " | files |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in names:
        values = [bench.rounds.median(name, what) for what in COLUMNS]
        if any(values):
            cells = ["–" if value is None else f"{value:.2f}" for value in values]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {bench.files.get(name, '–')} |")
    return "\n".join(lines)


def bars(bench: Bench) -> str:
    """Return the ratios of the project's bars, from the same rounds."""
    rounds, lines = bench.rounds, []
    lines.append(f"- load, ours / raw file: {rounds.ratio(OURS, RAW, 'load'):.2f} (bar 0.9)")
    for what in ("random 16", "random 256"):
        for other in (RESIDENT, LOOP):
            lines.append(f"- {what}, ours / {other}: {rounds.ratio(OURS, other, what):.2f} (bar 0.8)")
        peers = [form.name for form in FORMS if form.package and rounds.median(form.name, what)]
        ratios = {name: rounds.ratio(OURS, name, what) for name in peers}
        for name, ratio in sorted(ratios.items(), key=lambda pair: pair[1]):
            lines.append(f"- {what}, ours / {name}: {ratio:.2f} (bar 5)")
    lines.append(f"- write, ours / raw file with fsync: {rounds.ratio(OURS, RAW, 'write'):.2f} (bar 0.5)")
    for what in ("epoch", "training epoch"):
        lines.append(
            f"- {what}, streaming / resident: {rounds.ratio(STREAMED, OURS, what):.2f} (bar 0.7, with training)"
        )
    lines.append(f"- files: {bench.files[OURS]} (bar 60 for 2 GB)")
    return "\n".join(lines)


def section(bench: Bench, skipped: list[str]) -> str:
    """Return the section for docs/benchmarks.md."""
    size, command = bench.data.tokens.nbytes / 1e9, "python -m benchmarks.cache " + " ".join(sys.argv[1:])
    machine = f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} torch threads"
    settings = "\n".join(f"- {form.name}: {form.settings}" for form in FORMS if form.name not in skipped)
    left_out = f"\nNot asked for or not installed: {', '.join(skipped)}.\n" if skipped else ""
    return (
        f"{SECTION}\n\n`{command}`: {len(bench.data)} samples of 20 to 179 tokens, width {WIDTH}, float16, "
        f"{size:.2f} GB; {machine}, load average {os.getloadavg()[0]:.1f}; {bench.count} rounds. GB/s of stored "
        f"tokens, warm page cache, median; minibatches are padded float32.\n\n{table(bench)}\n\n{bars(bench)}\n\n"
        f"{bench.shuffling()}\n{left_out}\nSettings:\n\n{settings}\n"
    )
