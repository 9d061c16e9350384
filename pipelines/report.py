"""The report of a data set: what was measured, in one page and three pictures.

Holds no sample ids. The words of a text are shown only where the simulator's own list proves that the samples are
simulated, unless asked for.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import UserError
from cache.publish import write_bytes
from extract.encoders.base import Encoder
from extract.encoders.registry import load_encoder
from extract.metrics import monitor_name
from extract.samples import SamplesTable
from extract.values import TimeSeries, Video, Waveform, read_value
from pipelines import figures
from pipelines.params import Params
from train.checkpoint import load_checkpoint
from train.explain import learned_masks
from train.methods.selfmask import SelfMask

CURVES = (
    ("observed_count.png", "observed_modalities", "observed modalities"),
    ("curves.png", "missing_rate", "missing rate"),
)
CAPTIONS = {
    "observed_count.png": "Test metric against the number of observed modalities, all patterns of that size pooled.",
    "curves.png": "Test metric against the missing rate.",
    "masks.png": "What SelfMask masks in a test sample that has the most modalities (coloured), at the share of L_obs.",
}
CHANNELS_SHOWN = 5
PERSONAL = ("text", "video")  # words and faces are shown on request, or where they are simulated
SHOWN = ("auroc", "auprc", "accuracy", "f1_weighted", "nll", "ece", "mae", "pearson")


def write_report(params: Params, table: SamplesTable, *, with_text: bool = False) -> list[str]:
    """Write `reports/<data set>/report.md` and its pictures; returns the pictures' names.

    Args:
        params: gives the folders and the preset.
        table: samples table.
        with_text: show words and faces that are not known to be simulated.

    Raises:
        UserError: the evaluation has not run.
    """
    source, out = params.metrics, params.reports
    if not (source / "metrics.json").exists():
        raise UserError(f"There is no {source}/metrics.json. Run `selfmask evaluate`.")
    metrics = json.loads((source / "metrics.json").read_text())
    metric = monitor_name(table.info.label).removeprefix("neg_")
    pictures = [name for name, x, label in CURVES if _curve(source, name, x, label, metric, out)]
    pictures += _mask_picture(params, table, out, with_text or is_simulated(params, table))
    write_bytes(out / "report.md", _page(params, table, metrics, pictures).encode())
    return pictures


def is_simulated(params: Params, table: SamplesTable) -> bool:
    """Whether every sample is one of those that the simulator says it made."""
    path = Path(params.dataset.raw) / "expected.json"
    if not path.is_file():
        return False
    made = json.loads(path.read_text()).get("labels", {})
    return set(table.frame["sample_id"].astype(str)) <= set(made)


def _curve(source: Path, name: str, x: str, label: str, metric: str, out: Path) -> bool:
    frame = pd.read_csv(source / f"{Path(name).stem}.csv")
    if metric not in frame.columns or frame[metric].isna().all():
        return False
    figures.curves(frame.dropna(subset=[metric]), x, metric, label, out / name)
    return True


def _page(params: Params, table: SamplesTable, metrics: dict[str, Any], pictures: list[str]) -> str:
    lines = [f"# {params.dataset.name}: test split, {len(table.ids('test'))} samples", ""]
    lines += [
        f"Modalities: {', '.join(table.modalities)}. Preset `{params.preset}`. Mean ± standard deviation over the "
        f"training seeds ({', '.join(map(str, params.seeds))})."
    ]
    titles = {"natural": "Natural missingness", "protocol": "Protocol: one or two modalities dropped"}
    for scenario, title in titles.items():
        lines += ["", f"## {title}", "", *_table(metrics, scenario)]
    lines += _unimodal(params)
    comparisons = params.metrics / "comparisons.json"
    found = json.loads(comparisons.read_text()) if comparisons.exists() else {}
    if found:
        lines += ["", "## SelfMask minus the other method, paired bootstrap", ""]
        lines += _comparisons(found, monitor_name(table.info.label))
    for name in pictures:
        lines += ["", f"![{Path(name).stem}]({name})", "", CAPTIONS[name]]
    return "\n".join([*lines, ""])


def _unimodal(params: Params) -> list[str]:
    """The models that `fit` trained, each on the test samples that have its modality."""
    paths = {m: params.encoder_folder(m) / "metrics.json" for m in params.dataset.modalities}
    fitted = {m: json.loads(path.read_text()) for m, path in paths.items() if path.is_file()}
    names = [name for name in SHOWN if any(name in metrics["test"] for metrics in fitted.values())]
    if not names:  # tokens that were made elsewhere have no fitted encoder
        return []
    lines = ["", "## One modality alone: what `fit` trained, on the test samples that have it", ""]
    lines += [f"| modality | samples | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for modality, metrics in fitted.items():
        cells = [_cell({"mean": metrics["test"].get(name)}) for name in names]
        lines.append(f"| {modality} | {metrics['samples']['test']} | {' | '.join(cells)} |")
    return lines


def _table(metrics: dict[str, Any], scenario: str) -> list[str]:
    defined = {name for scenarios in metrics.values() for name in scenarios[scenario]}
    names = [name for name in SHOWN if name in defined]
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
    if not (checkpoint / "config.json").is_file():
        return []
    method, _ = load_checkpoint(checkpoint)
    assert isinstance(method, SelfMask)
    encoders = {m: load_encoder(params.encoder_folder(m)) for m in table.modalities}
    row = int(table.observed("test").sum(1).argmax())
    masks = learned_masks(method, encoders, table, "test", [row], params.selfmask.ratio_observed)[0]
    shown = [m for m in masks if show_text or table.modality(m).kind not in PERSONAL]
    if not shown:
        return []
    sample = table.split("test").iloc[row]
    figure, places = figures.panels(len(shown))
    for place, name in zip(places, shown, strict=True):
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
        last_bins = value.values[-int(spans[-1][1]) :]  # what the encoder read
        _draw_series(last_bins, table.modality(name).channels, axes)
    elif isinstance(value, Waveform):
        figures.masked_spans(spans, mask, axes)
        axes.plot(np.arange(len(value.samples)) / value.rate_hz, value.samples, color=figures.COLOURS[0], lw=0.5)
        axes.set(xlabel="seconds")
    elif isinstance(value, Video):
        figures.film_strip(value.frames(len(spans)), axes)
        figures.masked_spans(spans, mask, axes)
        axes.set(xlabel="share of the clip")
    else:
        pixels = encoder.preprocess(value)["pixels"].transpose(1, 2, 0)
        figures.masked_image((pixels.squeeze() + 1) / 2, spans, mask, axes)


def _draw_series(values: np.ndarray, channels: tuple[str, ...], axes: Any) -> None:
    """The most often measured channels, each scaled to its own range and labelled at the axis."""
    often = np.argsort(-np.isfinite(values).sum(0), kind="stable")[:CHANNELS_SHOWN]
    for number, channel in enumerate(often):
        seen = np.isfinite(values[:, channel])
        if not seen.any():
            continue
        series = values[seen, channel]
        scaled = number + 0.8 * (series - series.min()) / max(float(np.ptp(series)), 1e-6)
        axes.plot(np.flatnonzero(seen) + 0.5, scaled, marker=".", color=figures.COLOURS[number], lw=1)
    names = [channels[channel] if channels else str(channel) for channel in often]
    axes.set_yticks([number + 0.4 for number in range(len(often))], names, fontsize=7)
    axes.set(xlabel="bin")
