"""The value columns of CMU-MOSEI's table: for each segment a text or a file, or the reason why there is none."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from extract.samples import ModalitySpec
from extract.sources.mosei.features import write_series
from extract.sources.mosei.inputs import Inputs
from extract.sources.mosei.media import EMPTY, NOT_IN_SOURCE, Cut, NotThere, write_film, write_sound
from extract.sources.mosei.options import Options
from extract.sources.mosei.segments import Segment


@dataclass
class Column:
    """One modality's cells and reasons by segment id, and its declaration."""

    spec: ModalitySpec
    cells: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def put(self, segment: str, cell: str | None, reason: str | None) -> None:
        """Enter a cell, or the reason why there is none."""
        if cell is not None:
            self.cells[segment] = cell
        elif reason is not None:
            self.reasons[segment] = reason


def make_column(name: str, segments: Sequence[Segment], inputs: Inputs, options: Options, root: Path) -> Column:
    """Return a modality's column; its files are written below `root`."""
    if name == "text":
        return _text_column(segments, inputs)
    if name == "audio":
        spec = ModalitySpec(name=name, kind="audio", column="audio_path")
        write = partial(write_sound, rate_hz=options.audio_hz)
        return _media_column(spec, "wav", segments, inputs.sound, write, options.workers, root)
    if name == "video":
        spec = ModalitySpec(name=name, kind="video", column="video_path")
        pace, pixels = options.video_frames_per_second, options.video_pixels
        write = partial(write_film, frames_per_second=pace, pixels=pixels, quantiser=options.video_quantiser)
        return _media_column(spec, "mp4", segments, inputs.film, write, options.workers, root)
    return _series_column(name, segments, inputs, root)


def _text_column(segments: Sequence[Segment], inputs: Inputs) -> Column:
    column = Column(ModalitySpec(name="text", kind="text", column="text_text"))
    for segment in segments:
        text = inputs.text(segment)
        column.put(segment.id, text or None, NOT_IN_SOURCE if text is None else EMPTY)
    return column


def _media_column(
    spec: ModalitySpec,
    suffix: str,
    segments: Sequence[Segment],
    find: Callable[[Segment], Cut | None],
    write: Callable[[Path, Cut], None],
    workers: int,
    root: Path,
) -> Column:
    """Cut every clip that a run before has not; threads, because decoding leaves Python's lock."""
    column = Column(spec)

    def make(segment: Segment) -> tuple[str | None, str | None]:
        cut, cell = find(segment), f"{spec.name}/{segment.id}.{suffix}"
        if cut is None:
            return None, NOT_IN_SOURCE
        try:
            if not (root / cell).exists():
                write(root / cell, cut)
        except NotThere as reason:
            return None, str(reason)
        return cell, None

    bar = Progress(console=Console(stderr=True), transient=True)
    with bar, ThreadPoolExecutor(workers) as pool:
        task = bar.add_task(f"prepare {spec.name}", total=len(segments))
        futures = [pool.submit(make, segment) for segment in segments]
        try:
            for segment, future in zip(segments, futures, strict=True):
                column.put(segment.id, *future.result())
                bar.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or the error would wait for every other clip
            raise
    return column


def _series_column(name: str, segments: Sequence[Segment], inputs: Inputs, root: Path) -> Column:
    width, column = 0, Column(ModalitySpec(name=name, kind="timeseries", column=f"{name}_path"))
    for video, found in inputs.series(name, segments):
        file = f"{name}/{video}.npz"
        write_series(root / file, found)
        for segment, series in found.items():
            reason = series if isinstance(series, str) else None
            width = width if isinstance(series, str) else series.shape[1]
            column.put(segment, None if reason else f"{file}#{segment}", reason)
    names = inputs.columns(name)
    channels = names if len(names) == width else [f"{name}_{place}" for place in range(width)]
    hours = None if inputs.bins_per_second is None else 1 / inputs.bins_per_second / 3600
    spec = column.spec.model_copy(update={"channels": tuple(channels), "bin_hours": hours})
    return replace(column, spec=spec)
