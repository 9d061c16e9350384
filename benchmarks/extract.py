"""Extraction beside its limit and beside other loops, with the same encoder on the same raw files in the same run.

    python -m benchmarks.extract --out docs/benchmarks.md

The limit is the bare forward pass on batches that are ready: read, preprocessed, padded as ours are. `one file a
sample` is the loop of many feature extractors: one sample at a time, one HDF5 file each. `datasets.map` is Hugging
Face's, in batches of the given order padded to the longest; it is left out where the package is absent. Everything
takes turns within a round; figures are medians over rounds. Encoders have random weights.
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import soundfile
import torch
from PIL import Image

from benchmarks.output import workplace, write_section
from benchmarks.rounds import Rounds
from extract.config import ExtractSettings, ImageSettings, SpeechSettings, TextSettings
from extract.encoders.base import Encoder
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.encoding import Item, batches, encode_items
from extract.extraction import extract_modality
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec
from extract.values import read_value

SECTION = "## Extraction"
OURS, LIMIT, FILES, MAP = "selfmask extract", "bare forward", "one file a sample", "datasets.map"
SETTINGS = ExtractSettings(
    batch_size=64,
    batch_tokens=8192,
    workers=0,
    compile=False,
    dtype="float16",
    compression="none",
    precision="float32",
    sorted_batches=8,
    part_megabytes=768,
    part_minutes=15,
)
SIZES: dict[str, dict[str, Any]] = {
    "text": {"width": 384, "layers": 6, "heads": 12, "dropout": 0.0},
    "image": {"width": 384, "layers": 12, "heads": 6, "dropout": 0.0},
    "speech": {"width": 256, "layers": 4, "heads": 4, "dropout": 0.0},
}
"""As MiniLM's and ViT-S/16's; wav2vec 2.0's convolutions in front of a small Transformer."""
WORDS = [f"word{n}" for n in range(200)]
TEXT_LENGTHS = {"median": 120.0, "sigma": 0.7, "least": 20, "most": 510}


@dataclass(frozen=True)
class Case:
    """One modality: its table, its encoder, and the encoder's folder."""

    name: str
    table: SamplesTable
    encoder: Encoder
    folder: Path

    def raw(self) -> list[tuple[str, Any]]:
        """Return id and row of every sample."""
        return [(str(row["sample_id"]), row) for _, row in self.table.frame.iterrows()]

    def item(self, sample_id: str, row: Any) -> Item:
        """Read and preprocess a sample."""
        return sample_id, "d", self.encoder.preprocess(read_value(self.table, row, self.name))


def lengths(count: int, seed: int = 0) -> np.ndarray:
    """Return lognormal text lengths in words, cut to what the encoder takes."""
    drawn = np.random.default_rng(seed).lognormal(np.log(TEXT_LENGTHS["median"]), TEXT_LENGTHS["sigma"], count)
    return np.clip(drawn.astype(int), TEXT_LENGTHS["least"], TEXT_LENGTHS["most"])


def make_cases(folder: Path, scale: float) -> list[Case]:
    """Write raw files, and encoders of the three kinds."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, n)) for n in lengths(int(320 * scale))]
    images, clips = folder / "image" / "files", folder / "speech" / "files"
    for place in (images, clips):
        place.mkdir(parents=True)
    for n in range(int(160 * scale)):
        Image.fromarray(rng.integers(0, 255, (320, 320), dtype=np.uint8)).save(images / f"{n}.jpg", quality=90)
    for n in range(int(64 * scale)):
        samples = rng.normal(size=int(16000 * rng.uniform(1, 3))).astype(np.float32) * 0.1
        soundfile.write(clips / f"{n}.wav", samples, 16000)
    paths = {"image": [f"files/{n}.jpg" for n in range(int(160 * scale))]}
    paths["speech"] = [f"files/{n}.wav" for n in range(int(64 * scale))]
    published = {"weights": "scratch", "revision": None}
    text = TextSettings(type="bert", max_tokens=512, vocabulary=400, **published, **SIZES["text"])
    grid = {"image_size": 224, "patch_size": 16, "channels": 3, "augment": None}
    image = ImageSettings(type="vit", weights="scratch", **grid, **SIZES["image"])
    speech = SpeechSettings(type="wav2vec2", sample_rate_hz=16000, max_seconds=7.0, **published, **SIZES["speech"])
    return [
        _case(folder, "text", "text", "text_text", texts, text),
        _case(folder, "image", "image", "image_path", paths["image"], image),
        _case(folder, "speech", "audio", "speech_path", paths["speech"], speech),
    ]


def _case(folder: Path, name: str, kind: Any, column: str, values: Sequence[str], settings: Any) -> Case:
    ids = [f"s{n:05}" for n in range(len(values))]
    frame = pd.DataFrame({"sample_id": ids, "group_id": ids, "split": "train", "label": 0.0, column: values})
    frame.loc[:1, "split"] = ["valid", "test"]
    spec = ModalitySpec(name=name, kind=kind, column=column)
    info = DatasetInfo(name=name, label=LabelSpec(kind="regression", names=("label",)), modalities=(spec,))
    none = pd.DataFrame({"source_id": [], "step": [], "reason": []})
    table = SamplesTable.write(folder / name, info, frame, none)
    torch.manual_seed(0)
    encoder = build_encoder(settings, spec, lambda: values[:50]).eval()
    save_encoder(encoder, folder / name / "encoder", {"fitted": True})
    return Case(name, table, load_encoder(folder / name / "encoder"), folder / name / "encoder")


def ready(case: Case) -> list[dict[str, torch.Tensor]]:
    """Return the padded batches that an extraction forms."""
    items = [case.item(*sample) for sample in case.raw()]
    formed = batches(case.encoder, items, SETTINGS.batch_size, SETTINGS.batch_tokens)
    return [case.encoder.collate([item[2] for item in batch]) for batch in formed]


@torch.no_grad()
def forward(case: Case, prepared: list[dict[str, torch.Tensor]]) -> None:
    """Run the encoder alone."""
    for inputs in prepared:
        case.encoder(inputs)


def one_file_a_sample(case: Case, out: Path) -> None:
    """Encode samples one by one, each to a file."""
    out.mkdir()
    for sample_id, row in case.raw():
        (encoded,) = encode_items(case.encoder, [case.item(sample_id, row)], "float32")
        with h5py.File(out / f"{sample_id}.h5", "w") as file:
            file["features"] = encoded.tokens.astype(np.float16)


def with_map(case: Case, out: Path) -> None:
    """Encode with `datasets.map` in batches as they come, into Arrow files."""
    import datasets

    datasets.disable_progress_bars()
    rows = dict(case.raw())

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        encoded = encode_items(case.encoder, [case.item(i, rows[i]) for i in batch["id"]], "float32")
        return {"id": batch["id"], "features": [sample.tokens.astype(np.float16) for sample in encoded]}

    source = datasets.Dataset.from_dict({"id": list(rows)})
    nested = datasets.Sequence(datasets.Sequence(datasets.Value("float16")))
    features = datasets.Features({"id": datasets.Value("string"), "features": nested})
    made = source.map(encode, batched=True, batch_size=32, features=features, load_from_cache_file=False)
    made.save_to_disk(str(out))


def measure(cases: list[Case], folder: Path, rounds: Rounds, count: int) -> dict[str, int]:
    """Time every loop on every case; returns the bytes of ours by case."""
    size: dict[str, int] = {}
    for case in cases:
        prepared, samples = ready(case), len(case.table.frame)
        for number in rounds(count):
            outs = {name: folder / f"{case.name}-{name.replace(' ', '-')}-{number}" for name in (OURS, FILES, MAP)}
            actions: dict[str, Callable[[], Any]] = {
                LIMIT: lambda case=case, prepared=prepared: forward(case, prepared),
                OURS: lambda case=case, out=outs[OURS]: extract_modality(
                    case.table, case.name, case.folder, SETTINGS, out
                ),
                FILES: lambda case=case, out=outs[FILES]: one_file_a_sample(case, out),
            }
            if _has_datasets():
                actions[MAP] = lambda case=case, out=outs[MAP]: with_map(case, out)
            for name, action in actions.items():
                rounds.time(name, case.name, samples, action)
            size[case.name] = sum(path.stat().st_size for path in outs[OURS].rglob("*") if path.is_file())
    return size


def _has_datasets() -> bool:
    from importlib.util import find_spec

    return find_spec("datasets") is not None


def padding(count: int = 20_000, size: int = 32) -> tuple[float, float]:
    """Return padded over real tokens: batches in the given order padded to their longest, and ours."""

    class Counter:
        """Tells lengths as an encoder does."""

        @staticmethod
        def length(item: dict[str, np.ndarray]) -> int:
            return len(item["ids"])

    drawn = lengths(count)
    naive = sum(len(part) * part.max() for part in np.array_split(drawn, count // size))
    ours, chunk = 0, SETTINGS.sorted_batches * SETTINGS.batch_size
    for start in range(0, count, chunk):
        items: list[Item] = [("", "", {"ids": np.empty(n, np.int8)}) for n in drawn[start : start + chunk]]
        formed = batches(Counter(), items, SETTINGS.batch_size, SETTINGS.batch_tokens)  # type: ignore[arg-type]
        ours += sum(len(b) * max(len(item[2]["ids"]) for item in b) for b in formed)
    return naive / drawn.sum(), ours / drawn.sum()


def section(cases: list[Case], rounds: Rounds, size: dict[str, int], count: int) -> str:
    """Return the page's section."""
    forms = [LIMIT, OURS, FILES, *([MAP] if _has_datasets() else [])]
    heads = ["encoder", *forms, "ours / limit", *(f"ours / {form}" for form in forms[2:]), "MB for 10,000"]
    lines = [
        SECTION,
        "",
        f"`python -m benchmarks.extract`, {count} rounds, medians; {platform.machine()}, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}; encoders of (width, layers) "
        + ", ".join(f"{name} ({size['width']}, {size['layers']})" for name, size in SIZES.items())
        + "; random weights, float32. Samples a second, and ours as a share of each other in the same round:",
        "",
        f"| {' | '.join(heads)} |",
        f"|---|{'---|' * (2 * len(forms))}",
    ]
    for case in cases:
        rates = [f"{rounds.median(form, case.name):.1f}" for form in forms]
        ratios = [f"{rounds.ratio(OURS, form, case.name):.2f}" for form in (LIMIT, *forms[2:])]
        megabytes = f"{size[case.name] / len(case.table.frame) * 1e4 / 1e6:.0f}"
        lines.append(f"| {case.name} | {' | '.join([*rates, *ratios, megabytes])} |")
    naive, ours = padding()
    lines += [
        "",
        "Padding, 20,000 lognormal text lengths "
        f"(median {TEXT_LENGTHS['median']:.0f}, sigma {TEXT_LENGTHS['sigma']}, cut to {TEXT_LENGTHS['least']} to "
        f"{TEXT_LENGTHS['most']}): padded / real tokens {naive:.2f} in batches of 32 as they come, {ours:.2f} in ours, "
        f"{naive / ours:.2f} times fewer.",
        *([] if _has_datasets() else ["", "`datasets` is not installed: its row is left out."]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the samples")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder there is removed at the end")
    parser.add_argument("--out", type=Path, help="page whose section is replaced")
    arguments = parser.parse_args()
    with workplace("extract", arguments.folder) as folder:
        cases, rounds = make_cases(folder, arguments.scale), Rounds()
        size = measure(cases, folder, rounds, arguments.rounds)
    text = section(cases, rounds, size, arguments.rounds)
    print(text)
    if arguments.out:
        write_section(arguments.out, text)


if __name__ == "__main__":
    main()
