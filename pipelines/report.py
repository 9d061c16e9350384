"""The report of a data set: what was measured, in one page and three pictures.

Holds no sample ids; the words of a text are shown for the simulated cohort only, unless asked for.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cache.errors import UserError
from cache.publish import write_bytes
from extract.encoders.base import Encoder
from extract.encoders.registry import load_encoder
from extract.metrics import monitor_name
from extract.samples import SamplesTable
from extract.values import TimeSeries, Waveform, read_value
from pipelines import figures
from pipelines.params import Params
from train.checkpoint import load_checkpoint
from train.explain import learned_masks
from train.methods.selfmask import SelfMask

SHOWN = ("auroc", "auprc", "accuracy", "f1_weighted", "nll", "ece", "mae", "pearson")
SIMULATED = ("icu",)


def write_report(params: Params, table: SamplesTable, *, with_text: bool = False) -> str:
    """Write `reports/<data set>/`; returns the line to print.

    Raises:
        UserError: the evaluation has not run.
    """
    source, out = params.metrics, params.reports
    if not (source / "metrics.json").exists():
        raise UserError(f"There is no {source}/metrics.json. Run `selfmask evaluate`.")
    metrics = json.loads((source / "metrics.json").read_text())
    metric = monitor_name(table.info.label).removeprefix("neg_")
    pictures = []
    for name, x, label in (
        ("observed_count", "observed_modalities", "observed modalities"),
        ("curves", "missing_rate", "missing rate"),
    ):
        frame = pd.read_csv(source / f"{name}.csv")
        if metric in frame.columns:
            figures.curves(frame.dropna(subset=[metric]), x, metric, label, out / f"{name}.png")
            pictures.append(f"{name}.png")
    pictures += _mask_picture(params, table, out, with_text or params.dataset.name in SIMULATED)
    write_bytes(out / "report.md", _page(params, table, metrics, pictures).encode())
    return f"wrote {out}/report.md and {', '.join(pictures)}"


def _page(params: Params, table: SamplesTable, metrics: dict[str, Any], pictures: list[str]) -> str:
    lines = [f"# {params.dataset.name}: test split, {len(table.ids('test'))} samples", ""]
    lines += [
        f"Modalities: {', '.join(table.modalities)}. Preset `{params.preset}`, {len(params.seeds)} training seeds."
    ]
    for scenario, title in (
        ("natural", "Natural missingness"),
        ("protocol", "Protocol: one or two modalities dropped"),
    ):
        lines += ["", f"## {title}", "", *_table(metrics, scenario)]
    comparisons = params.metrics / "comparisons.json"
    if comparisons.exists():
        lines += ["", "## SelfMask minus the other method, paired bootstrap", ""]
        lines += _comparisons(json.loads(comparisons.read_text()), monitor_name(table.info.label))
    lines += ["", *(f"![{name}]({name})" for name in pictures), ""]
    return "\n".join(lines)


def _table(metrics: dict[str, Any], scenario: str) -> list[str]:
    first = next(iter(metrics.values()))[scenario]
    names = [name for name in SHOWN if name in first]
    lines = [f"| method | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for method, scenarios in metrics.items():
        cells = [_cell(scenarios[scenario].get(name)) for name in names]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def _cell(value: dict[str, float | None] | None) -> str:
    if value is None or value["mean"] is None:
        return "–"
    return f"{value['mean']:.3f}" + ("" if value.get("sd") is None else f" ± {value['sd']:.3f}")


def _comparisons(comparisons: dict[str, Any], metric: str) -> list[str]:
    metric = metric.removeprefix("neg_")
    lines = [f"| method | scenario | {metric} difference | 95 % interval | p |", "|---|---|---|---|---|"]
    for method, scenarios in comparisons.items():
        for scenario, values in scenarios.items():
            if metric in values:
                v = values[metric]
                interval = f"[{v['low']:+.4f}, {v['high']:+.4f}]"
                lines.append(f"| {method} | {scenario} | {v['difference']:+.4f} | {interval} | {v['p']:.3f} |")
    return lines


def _mask_picture(params: Params, table: SamplesTable, out: Path, show_text: bool) -> list[str]:
    """Masks over one test sample that has the most modalities."""
    checkpoint = params.models / "selfmask" / f"seed{params.seeds[0]}"
    if not checkpoint.is_dir():
        return []
    method, _ = load_checkpoint(checkpoint)
    if not isinstance(method, SelfMask):
        return []
    encoders = {m: load_encoder(params.encoder_folder(m)) for m in table.modalities}
    row = int(table.observed("test").sum(1).argmax())
    masks = learned_masks(method, encoders, table, "test", [row], params.selfmask.ratio_observed)[0]
    sample = table.split("test").iloc[row]
    shown = [m for m in masks if show_text or table.modality(m).kind != "text"]
    figure, axes = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), 3.6), layout="constrained", squeeze=False)
    for place, name in zip(axes[0], shown, strict=True):
        _draw(table, sample, name, encoders[name], masks[name], place)
        place.set_title(f"{name}: {sum(masks[name])} of {len(masks[name])} tokens masked", fontsize=9)
    figures.save(figure, out / "masks.png")
    return ["masks.png"]


def _draw(table: SamplesTable, sample: Any, name: str, encoder: Encoder, mask: list[bool], axes: Any) -> None:
    value = read_value(table, sample, name)
    spans = encoder.token_spans(value)
    if isinstance(value, str):
        figures.masked_text(value, spans, mask, axes)
    elif isinstance(value, TimeSeries):
        figures.masked_spans(spans, mask, axes)
        _draw_series(value.values, table.modality(name).channels, axes)
    elif isinstance(value, Waveform):
        figures.masked_spans(spans, mask, axes)
        axes.plot(np.arange(len(value.samples)) / value.rate_hz, value.samples, color=figures.COLOURS[0], lw=0.5)
        axes.set(xlabel="seconds")
    else:
        pixels = encoder.preprocess(value)["pixels"].transpose(1, 2, 0)
        figures.masked_image((pixels.squeeze() + 1) / 2, spans, mask, axes)


def _draw_series(values: np.ndarray, channels: tuple[str, ...], axes: Any) -> None:
    """The five most often measured channels, each scaled to its own range."""
    often = np.argsort(-np.isfinite(values).sum(0), kind="stable")[:5]
    for number, channel in enumerate(often):
        seen = np.isfinite(values[:, channel])
        series = values[seen, channel]
        spread = max(float(np.ptp(series)), 1e-6)
        scaled = number + 0.8 * (series - series.min()) / spread
        label = channels[channel] if channels else str(channel)
        axes.plot(np.flatnonzero(seen) + 0.5, scaled, marker=".", color=figures.COLOURS[number], lw=1, label=label)
    axes.set(xlabel="bin", yticks=[])
    axes.legend(fontsize=6, loc="upper right")
