"""Pictures of the report: curves over missing modalities, and the masks that SelfMask chose (the paper's figure 3).

Colours are the Okabe-Ito palette, readable with any colour vision; lines also differ by marker, and by dash where there
are more lines than colours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from cache.publish import replacing

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "osD^vP*"
DASHES = ("-", "--", ":")
MASKED = "#D55E00"
LINE_CHARACTERS = 58


def curves(frame: pd.DataFrame, x: str, metric: str, x_label: str, path: Path) -> None:
    """Draw a metric against `x`, one line per method: mean over seeds with a band of one standard deviation."""
    many = frame["method"].nunique() > len(COLOURS)
    figure, axes = plt.subplots(figsize=(8.0 if many else 6.4, 4.2), layout="constrained")
    for number, (method, rows) in enumerate(frame.groupby("method", sort=False)):
        summary = rows.groupby(x)[metric].agg(["mean", "std"])
        colour, lap = COLOURS[number % len(COLOURS)], number // len(COLOURS)
        marker, dash = MARKERS[(number + lap) % len(MARKERS)], DASHES[lap % len(DASHES)]
        axes.plot(summary.index, summary["mean"], color=colour, marker=marker, linestyle=dash, label=method)
        spread = summary["std"].fillna(0)
        axes.fill_between(
            summary.index, summary["mean"] - spread, summary["mean"] + spread, color=colour, alpha=0.15, lw=0
        )
    axes.set(xlabel=x_label, ylabel=metric)
    if (frame[x] % 1 == 0).all():
        axes.set_xticks(sorted(frame[x].unique()))
    axes.grid(alpha=0.3)
    if many:
        figure.legend(frameon=False, loc="outside right center", fontsize="small")
    else:
        axes.legend(frameon=False)
    save(figure, path)


def panels(count: int) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, side by side."""
    figure, axes = plt.subplots(1, count, figsize=(4.6 * count, 3.6), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def masked_image(pixels: np.ndarray, boxes: Sequence[tuple[float, ...]], mask: Sequence[bool], axes: Any) -> None:
    """Draw an image [S, S] or [S, S, 3] with its masked patches covered."""
    axes.imshow(pixels, cmap="gray")
    for (x0, y0, x1, y1), hidden in zip(boxes, mask, strict=True):
        if hidden:
            axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, color=MASKED, alpha=0.6, lw=0))
    axes.set_axis_off()


def film_strip(frames: Sequence[Any], axes: Any) -> None:
    """Show frames (PIL images of one size) side by side, each over its share of [0, 1]."""
    axes.imshow(np.concatenate([np.asarray(frame) for frame in frames], axis=1), extent=(0, 1, 0, 1), aspect="auto")
    axes.set_yticks([])


def masked_spans(spans: Sequence[tuple[float, ...]], mask: Sequence[bool], axes: Any) -> None:
    """Shade the masked (start, end) spans of a series or a recording."""
    for (start, end), hidden in zip(spans, mask, strict=True):
        if hidden:
            axes.axvspan(start, end, color=MASKED, alpha=0.3, lw=0)


def masked_text(text: str, spans: Sequence[tuple[float, ...]], mask: Sequence[bool], axes: Any) -> None:
    """Write the tokens in lines, masked ones on a coloured ground; a long text gets smaller lines."""
    axes.set_axis_off()
    placed: list[tuple[int, int, str, bool]] = []
    place, line = 0, 0
    for (start, end), hidden in zip(spans, mask, strict=True):
        word = text[int(start) : int(end)]  # empty for special tokens
        if place + len(word) > LINE_CHARACTERS:
            place, line = 0, line + 1
        if word:
            placed.append((place, line, word, hidden))
            place += len(word) + 1
    step = min(0.12, 1 / (line + 1))
    size = 7.5 * min(1.0, step / 0.05)
    for place, line, word, hidden in placed:
        ground = {"facecolor": MASKED, "alpha": 0.4, "edgecolor": "none", "pad": 1.0} if hidden else None
        where = (place / (LINE_CHARACTERS + 6), 1 - line * step)  # room for the last word's own width
        axes.text(*where, word, family="monospace", fontsize=size, va="top", bbox=ground)


def save(figure: Any, path: Path) -> None:
    """Write a PNG and close the figure."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
