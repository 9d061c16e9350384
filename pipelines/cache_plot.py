"""A picture of a cache: norms and lengths of its tokens, and where the samples of each class lie.

Shows at a glance what numbers hide: constant tokens, a few that dwarf the rest, sequences cut at one length, classes
that an encoder already tells apart. Reads each token once; keeps a mean per sample and a bounded draw of norms.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.decomposition import PCA

from cache.contents import current, rows_by_part, stored_samples
from cache.errors import UserError
from cache.store import TokenStore
from pipelines.figures import COLOURS, MARKERS, panels, save

if TYPE_CHECKING:
    from extract.samples import SamplesTable

NORMS_SHOWN = 200_000
POINTS_SHOWN = 5_000
CLASSES_SHOWN = len(COLOURS)
EXTREME = 99.9
"""Percentile up to which the norms' axis reaches; what lies beyond is counted in the title."""


@dataclass(frozen=True)
class TokenFacts:
    """Of N samples: ids; norms of a draw of tokens; length and mean token of each [N], [N, width]."""

    ids: list[str]
    norms: np.ndarray
    lengths: np.ndarray
    pooled: np.ndarray


def plot_cache(store: TokenStore, table: "SamplesTable | None", out: Path) -> int:
    """Write the picture; returns the number of samples that it is of.

    Args:
        store: cache, complete or not.
        table: samples table whose labels colour the points.
        out: PNG file.

    Raises:
        UserError: the cache holds no tokens.
    """
    facts = token_facts(store)
    figure, axes = panels(3)
    figure.suptitle(f"{store.path.name}: {len(facts.ids)} samples, width {store.width}, encoder {store.key.encoder}")
    _draw_norms(facts.norms, axes[0])
    _draw_lengths(facts.lengths, axes[1])
    _draw_components(facts, table, axes[2])
    save(figure, out)
    return len(facts.ids)


def token_facts(store: TokenStore) -> TokenFacts:
    """Read norms, lengths and mean tokens of what a reader of the cache gets."""
    rows = rows_by_part(current(store).values())
    total = sum(entry["tokens"] for entry in store.entries())
    if not total or not rows:
        raise UserError(f"{store.path} holds no tokens to plot. Run `selfmask extract`.")
    random, share = np.random.default_rng(0), min(1.0, NORMS_SHOWN / total)
    ids, norms, lengths, pooled = [], [], [], []
    for sample in stored_samples(store, rows):
        length = np.linalg.norm(sample.tokens, axis=1)
        norms.append(length[random.random(len(length)) < share])
        ids.append(sample.sample_id)
        lengths.append(len(sample.tokens))
        pooled.append(sample.tokens.mean(0))
    return TokenFacts(ids, np.concatenate(norms), np.array(lengths), np.stack(pooled))


def _draw_norms(norms: np.ndarray, axes: Any) -> None:
    high = float(np.percentile(norms, EXTREME))
    low = float(norms.min())
    inside = norms[norms <= high]
    axes.hist(inside, bins=60, range=(low, high) if high > low else None, color=COLOURS[0])
    median = float(np.median(norms))
    axes.axvline(median, color=COLOURS[-1], lw=1.2, ls="--", label=f"median {median:.3g}")
    axes.set(xlabel="Euclidean norm of a token", ylabel="tokens", title="Token norms")
    if len(inside) < len(norms):
        axes.set_title(f"Token norms (largest {norms.max():.3g}, beyond the axis)")
    axes.legend(frameon=False)


def _draw_lengths(lengths: np.ndarray, axes: Any) -> None:
    low, high = int(lengths.min()), int(lengths.max())
    step = max(1, -(-(high - low + 1) // 40))
    edges = np.arange(low, high + step + 1, step) - 0.5
    axes.hist(lengths, bins=edges, color=COLOURS[2])
    longest = int((lengths == high).sum())
    axes.axvline(np.median(lengths), color=COLOURS[-1], lw=1.2, ls="--", label=f"median {np.median(lengths):g}")
    axes.set(xlabel="tokens per sample", ylabel="samples", title=f"Lengths ({longest} samples of the longest, {high})")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)


def _draw_components(facts: TokenFacts, table: "SamplesTable | None", axes: Any) -> None:
    axes.set(title="PCA of the samples' mean tokens")
    if min(facts.pooled.shape) < 2:
        axes.text(0.5, 0.5, "needs two samples and a width of two", ha="center", va="center")
        axes.set_axis_off()
        return
    shown = np.sort(np.random.default_rng(0).permutation(len(facts.ids))[:POINTS_SHOWN])
    pca = PCA(2, random_state=0).fit(facts.pooled)
    points = pca.transform(facts.pooled[shown])
    shares = pca.explained_variance_ratio_
    for number, name in enumerate(("first", "second")):
        getattr(axes, f"set_{'xy'[number]}label")(f"{name} component, {shares[number]:.0%} of variance")
    _scatter(points, [facts.ids[i] for i in shown], table, axes)


def _scatter(points: np.ndarray, ids: Iterable[str], table: "SamplesTable | None", axes: Any) -> None:
    """Draw the points, by class or by value of the label."""
    names = list(ids)
    labels = label_names(table, names) if table else None
    if labels is None:
        axes.scatter(*points.T, s=9, color=COLOURS[0], alpha=0.6, lw=0)
        return
    if isinstance(labels, np.ndarray):
        drawn = axes.scatter(*points.T, s=9, c=labels, cmap="cividis", alpha=0.8, lw=0)
        assert table is not None
        axes.figure.colorbar(drawn, ax=axes, label=table.info.label.names[0])
        return
    by_size = sorted(set(labels), key=lambda name: (-labels.count(name), name))
    for number, name in enumerate(by_size[:CLASSES_SHOWN]):
        own = points[[label == name for label in labels]]
        colour, marker = COLOURS[number], MARKERS[number]
        axes.scatter(*own.T, s=11, color=colour, marker=marker, alpha=0.6, lw=0, label=f"{name} ({len(own)})")
    axes.legend(frameon=False, fontsize="small", markerscale=1.6)


def label_names(table: "SamplesTable", ids: list[str]) -> "list[str] | np.ndarray | None":
    """Return the class of each sample by name, or the value of a regression's label; NaN or 'no label' if unknown."""
    label = table.info.label
    column = f"label_{label.names[0]}" if label.kind == "multilabel" else "label"
    values = table.frame.set_index("sample_id")[column].reindex(ids).to_numpy(np.float64)
    if label.kind == "regression":
        return np.asarray(values)
    classes = label.classes or tuple(f"{label.names[0]} {i}" for i in range(2))
    return [classes[int(v)] if np.isfinite(v) else "no label" for v in values]
