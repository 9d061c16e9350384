"""One run: the data, our cache and the other forms, and what is timed in turns (GB/s of stored float16 tokens)."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cache.forms import Form
from benchmarks.cache.ragged import WIDTH, padded, random_ragged
from benchmarks.rounds import Rounds
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
OURS, STREAMED, RAW, RESIDENT, LOOP = (
    "ours, resident",
    "ours, streaming",
    "raw file",
    "resident array, torch indexing",
    "resident array, loop of slices",
)


class Bench:
    """Data, cache and banks of one run."""

    def __init__(self, folder: Path, gigabytes: float, rounds: int) -> None:
        self.folder, self.count, self.rounds = folder, rounds, Rounds()
        self.random = np.random.default_rng(0)
        self.data = random_ragged(folder / "source.bin", int(gigabytes * 1e9), self.random)
        self.ids = [f"s{row:07}" for row in range(len(self.data))]
        self.files: dict[str, int] = {}

    def write(self) -> None:
        """Write ours and the raw file in turns."""
        for _ in self.rounds(self.count):
            for name, action in ((RAW, self._write_raw), (OURS, self._write_ours)):
                shutil.rmtree(self.folder / name, ignore_errors=True)
                self.rounds.time(name, "write", self.data.tokens.nbytes / 1e9, action)
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
        size = self.data.tokens.nbytes / 1e9
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
        moved = sum(int((self.data.offsets[r + 1] - self.data.offsets[r]).sum()) for r in chosen) * WIDTH * 2 / 1e9
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
        # The kernel takes idle memory back: whoever comes first after another form's turn would pay for its return.
        _drain(map(sliced, chosen))
        turn = self.rounds.current % len(actions)
        for form, action in [*list(actions.items())[turn:], *list(actions.items())[:turn]]:
            self.rounds.time(form, what, moved, lambda action=action: _drain(map(action, chosen)))

    def epochs(self) -> None:
        """Time whole epochs, bare and with a small model's step, resident and streamed in turns."""
        size = self.data.tokens.nbytes / 1e9
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


def _key() -> CacheKey:
    return CacheKey.imported("benchmark", "0" * 64)


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
