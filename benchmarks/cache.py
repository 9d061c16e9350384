"""How fast the token cache is beside the same ragged tokens in other forms, on this machine, in the same run.

    python -m benchmarks.cache --gb 2 --out docs/benchmarks.md

Every figure is GB/s of stored float16 tokens in a warm page cache, the median over rounds; within a round ours, the raw
file, the gather from a resident array and one other form take turns, so that other load on the machine meets all of
them. Minibatches are padded float32. Needs room for three copies of the data on disk and in memory; peers that are not
installed are named and left out (`pip install zarrs tensorstore datasets webdataset mosaicml-streaming lmdb`).
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cache_forms import FORMS, WIDTH, Form, Ragged, padded
from cache.bank import TokenBank
from cache.key import CacheKey
from cache.publish import flush
from cache.shuffle import Shuffle
from cache.store import SampleTokens, TokenStore
from cache.streaming import StreamingBank

PART_SAMPLES = 4096
BATCHES = {16: 32, 256: 4}
EPOCH_BATCH = 64
BUDGET_SHARE = 4
SECTION = "## Token cache"
OURS, STREAMED, RAW, RESIDENT, LOOP = (
    "ours, resident",
    "ours, streaming",
    "raw file",
    "resident array, torch indexing",
    "resident array, loop of slices",
)


class Rounds:
    """GB/s by (form, what) and round."""

    def __init__(self) -> None:
        self.rates: dict[tuple[str, str], dict[int, float]] = {}
        self.current = 0

    def __call__(self, count: int) -> Iterator[int]:
        """Begin `count` rounds, one after the other."""
        for number in range(count):
            self.current += 1
            yield number

    def time(self, form: str, what: str, size: int, action: Callable[[], Any]) -> None:
        """Time `action`, which moves `size` bytes."""
        started = time.perf_counter()
        action()
        self.rates.setdefault((form, what), {})[self.current] = size / 1e9 / (time.perf_counter() - started)

    def median(self, form: str, what: str) -> float | None:
        """Return the median, None if it was not measured."""
        found = self.rates.get((form, what))
        return statistics.median(found.values()) if found else None

    def ratio(self, form: str, other: str, what: str) -> float:
        """Return the median of the ratios within the rounds that have both."""
        own, others = self.rates[form, what], self.rates[other, what]
        return statistics.median(own[number] / others[number] for number in own.keys() & others.keys())


class Bench:
    """Data, cache and banks of one run."""

    def __init__(self, folder: Path, gigabytes: float, rounds: int) -> None:
        self.folder, self.count, self.rounds = folder, rounds, Rounds()
        self.random = np.random.default_rng(0)
        self.data = _ragged(folder / "source.bin", int(gigabytes * 1e9), self.random)
        self.ids = [f"s{row:07}" for row in range(len(self.data))]
        self.files: dict[str, int] = {}

    def write(self) -> None:
        """Write ours and the raw file in turns."""
        for _ in self.rounds(self.count):
            for name, action in ((RAW, self._write_raw), (OURS, self._write_ours)):
                shutil.rmtree(self.folder / name, ignore_errors=True)
                self.rounds.time(name, "write", self.data.tokens.nbytes, action)
        self.files[OURS] = _count(self.folder / OURS)
        self.files[RAW] = _count(self.folder / RAW)
        self.store = TokenStore.open(self.folder / OURS)
        self.bank = TokenBank.load({"m": self.store}, self.ids, None)
        budget = self.data.tokens.nbytes // BUDGET_SHARE
        self.streaming = StreamingBank.open({"m": self.store}, self.ids, None, budget)

    def _parts(self) -> Iterator[range]:
        for first in range(0, len(self.data), PART_SAMPLES):
            yield range(first, min(first + PART_SAMPLES, len(self.data)))

    def _write_raw(self) -> None:
        (self.folder / RAW).mkdir()
        for number, rows in enumerate(self._parts()):
            path = self.folder / RAW / f"{number}.bin"
            path.write_bytes(self.data.tokens[self.data.offsets[rows[0]] : self.data.offsets[rows[-1] + 1]].data)
            flush(path)

    def _write_ours(self) -> None:
        store = TokenStore.create(self.folder / OURS, _key(), WIDTH)
        for rows in self._parts():
            tokens = ((row, self.data.sample(row)) for row in rows)
            store.append([SampleTokens(self.ids[row], "d", own, np.ones(len(own), bool)) for row, own in tokens])
        store.publish_view(dict.fromkeys(self.ids, "d"))

    def _load_raw(self) -> None:
        whole, done = np.empty(self.data.tokens.nbytes, np.uint8), 0
        for path in sorted((self.folder / RAW).iterdir(), key=lambda path: int(path.stem)):
            with path.open("rb", buffering=0) as stream:
                while got := stream.readinto(memoryview(whole)[done : done + 2**30]):
                    done += got
        assert done == len(whole)

    def compare(self, form: Form) -> None:
        """Write one form, take turns with ours, and remove it."""
        folder = self.folder / "form"
        folder.mkdir()
        size = self.data.tokens.nbytes
        self.rounds.time(form.name, "write", size, lambda: (form.write(self.data, folder), _flush_all(folder)))
        self.files[form.name] = _count(folder)
        read = form.open(self.data, folder) if form.open else None
        for _ in self.rounds(self.count):
            self.rounds.time(RAW, "load", size, self._load_raw)
            self.rounds.time(OURS, "load", size, lambda: TokenBank.load({"m": self.store}, self.ids, None))
            self.rounds.time(form.name, "load", size, lambda: form.load(self.data, folder))
            for batch_size in BATCHES:
                self._minibatches(form.name, batch_size, read)
            if form.epoch:
                loader = form.epoch(self.data, folder, EPOCH_BATCH)
                self.rounds.time(form.name, "epoch", size, lambda loader=loader: _drain(map(padded, loader)))
        shutil.rmtree(folder)

    def _minibatches(self, name: str, size: int, read: Any) -> None:
        chosen = [self.random.permutation(len(self.data))[:size] for _ in range(BATCHES[size])]
        moved = sum(int((self.data.offsets[r + 1] - self.data.offsets[r]).sum()) for r in chosen) * WIDTH * 2
        flat, what = self.bank._flats["m"], f"random {size}"
        array = flat.tokens.numpy()
        starts = flat.starts.numpy()
        lengths = flat.lengths.numpy()

        def sliced(rows: np.ndarray) -> Tensor:
            return padded([array[a : a + n] for a, n in zip(starts[rows], lengths[rows], strict=True)])

        actions: dict[str, Callable[[np.ndarray], Any]] = {
            OURS: lambda rows: self.bank.batch(torch.from_numpy(rows)),
            STREAMED: lambda rows: self.streaming.batch(torch.from_numpy(rows)),
            RESIDENT: lambda rows: _indexed(flat, torch.from_numpy(rows)),
            LOOP: sliced,
        }
        if read:
            actions[name] = lambda rows: padded(read(rows))
        for form, action in actions.items():
            self.rounds.time(form, what, moved, lambda action=action: _drain(map(action, chosen)))

    def epochs(self) -> None:
        """Time whole epochs, bare and with a small model's step, resident and streamed in turns."""
        size = self.data.tokens.nbytes
        for number in self.rounds(self.count):
            for what, use in (("epoch", _drain), ("training epoch", _train)):
                rows = torch.from_numpy(self.random.permutation(len(self.data))).split(EPOCH_BATCH)
                self.rounds.time(OURS, what, size, lambda use=use, rows=rows: use(map(self.bank.batch, rows)))
                batches = self.streaming.epoch(0, number, EPOCH_BATCH)
                self.rounds.time(STREAMED, what, size, lambda use=use, batches=batches: use(batches))

    def shuffling(self) -> str:
        """Describe how random a streamed epoch is."""
        lengths = self.data.offsets[1:] - self.data.offsets[:-1]
        window = self.streaming.memory_bytes // 2
        shuffle = Shuffle(np.arange(len(self.data)), lengths * WIDTH * 2, window)
        streamed, free = [], []
        for epoch in range(20):
            streamed.append(_statistics([b for w in shuffle.windows(0, epoch, EPOCH_BATCH) for b in w.batches]))
            permutation = self.random.permutation(len(self.data))
            free.append(_statistics(np.array_split(permutation, len(self.data) // EPOCH_BATCH)))
        own, full = np.mean(streamed, 0), np.mean(free, 0)
        return (
            f"Shuffling, budget a quarter of the cache, minibatches of {EPOCH_BATCH}, 20 epochs: |correlation| of the "
            f"order with that of storage {own[0]:.3f} (full permutation {full[0]:.3f}); standard deviation of a "
            f"minibatch's mean place {own[1]:.3f} of the cache (full permutation {full[1]:.3f})."
        )


def _statistics(batches: list[np.ndarray]) -> tuple[float, float]:
    order = np.concatenate(batches)
    correlation = float(np.corrcoef(np.arange(len(order)), order)[0, 1])
    return abs(correlation), float(np.std([batch.mean() for batch in batches]) / len(order))


def _indexed(flat: Any, rows: Tensor) -> Tensor:
    """The plain gather that anyone would write on a resident tensor."""
    lengths = flat.lengths[rows]
    place = torch.arange(int(lengths.max()))
    index = torch.where(place < lengths[:, None], flat.starts[rows, None] + place, len(flat.tokens) - 1)
    return flat.tokens[index].float()


def _ragged(path: Path, size: int, random: np.random.Generator) -> Ragged:
    lengths = random.integers(20, 180, max(300, size // (2 * WIDTH * 100)))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.memmap(path, np.float16, "w+", shape=(int(offsets[-1]), WIDTH))
    block = random.standard_normal((4099, WIDTH)).astype(np.float16)
    for first in range(0, len(tokens), len(block)):
        tokens[first : first + len(block)] = block[: len(tokens) - first]
    tokens.flush()
    return Ragged(np.asarray(tokens), offsets)


def _key() -> CacheKey:
    return CacheKey(
        encoder="benchmark",
        options={},
        weights_sha256="0" * 64,
        preprocessing={},
        precision="float32",
        libraries={},
        layout={},
        pretrained_or_fitted=True,
    )


def _count(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def _flush_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush(path)


def _drain(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def _train(batches: Iterable[Any]) -> None:
    """A stand-in for a small model: project every token, pool, predict, step."""
    project, predict = nn.Linear(WIDTH, 64), nn.Linear(64, 1)
    optimizer = torch.optim.AdamW([*project.parameters(), *predict.parameters()])
    for batch in batches:
        pooled = (torch.relu(project(batch.tokens["m"])) * batch.valid["m"][..., None]).mean(1)
        optimizer.zero_grad()
        predict(pooled).square().mean().backward()
        optimizer.step()


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


def replace_section(page: str, new: str) -> str:
    """Return the page with its section of the same heading replaced, or appended."""
    before, found, rest = page.partition(new.partition("\n")[0] + "\n")
    after = rest.partition("\n## ")
    return before.rstrip() + "\n\n" + new + (f"\n## {after[2]}" if found and after[1] else "")


@contextmanager
def _workplace(parent: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="benchmark-cache-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure, print, and write the section."""
    parser = argparse.ArgumentParser(description="The token cache beside other forms of the same tokens.")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder there is removed at the end")
    parser.add_argument("--forms", help="names of the other forms to compare, separated by commas; all by default")
    parser.add_argument("--out", type=Path, help="page whose section is replaced")
    arguments = parser.parse_args()
    wanted = arguments.forms.split(",") if arguments.forms else [form.name for form in FORMS]
    skipped = [form.name for form in FORMS if form.name not in wanted or not form.installed()]
    with _workplace(arguments.folder) as folder:
        bench = Bench(folder, arguments.gb, arguments.rounds)
        bench.write()
        for form in FORMS:
            started = time.monotonic()
            if form.name not in skipped:
                bench.compare(form)
            said = "left out" if form.name in skipped else f"{time.monotonic() - started:.0f} s"
            print(f"{form.name}: {said}", flush=True)
        bench.epochs()
        text = section(bench, skipped)
    print(text)
    if arguments.out:
        page = arguments.out.read_text() if arguments.out.exists() else ""
        arguments.out.write_text(replace_section(page, text))


if __name__ == "__main__":
    main()
