"""CMU-MOSI: utterance features as ready tokens, and the transcripts as texts; a samples table, and a cache a modality.

    python -m benchmarks.mosi FOLDER --out data/mosi        # FOLDER holds text/, audio/, video/ and transcripts.csv
    selfmask benchmark suites/tuned.yaml --set dataset.name=mosi --set "dataset.modalities=[text, audio, video]"

The features (text 100, audio 73, video 100 numbers an utterance) are those of github.com/soujanyaporia; text and video
were learned with supervision on the train split. One token a modality, standardised by the training utterances; the
test split is the given one, and twelve of the 62 training videos, whole, are for validation. `transcript` is what was
said, for an encoder of text: `selfmask fit transcript`, `selfmask extract transcript` (docs/results.md).
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from cache.importing.importer import import_tokens
from cache.importing.raw import Layout
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec

MODALITIES = ("text", "audio", "video")
VALID_VIDEOS = 12
SPLIT_SEED = 0


def read_part(folder: Path, part: str) -> pd.DataFrame:
    """Return a row an utterance: sample_id, group_id, label, and a vector for each modality."""
    transcripts = pd.read_csv(folder / "transcripts.csv", header=None, names=["utterance", "text", "video", "label"])
    rows = pd.read_csv(folder / f"text_{part}.csv", header=None)[0].to_numpy()  # its first column: lines of transcripts
    frame = transcripts.iloc[rows].reset_index(drop=True)
    result = pd.DataFrame({"sample_id": frame["utterance"], "group_id": frame["video"].astype(str), "part": part})
    for name in MODALITIES:
        values = pd.read_csv(folder / name / f"{name}_{part}0.csv", header=None).to_numpy(np.float64)
        if not np.array_equal(values[:, -1], frame["label"]):
            raise SystemExit(f"{folder}: the labels of {name} are not those of the transcripts.")
        result[name] = list(values[:, :-1])
    result["label"], result["transcript_text"] = frame["label"].astype(float), frame["text"]
    return result


def split_videos(frame: pd.DataFrame) -> pd.Series:
    """Return train, valid or test; whole videos of the training part are for validation."""
    videos = sorted(frame.loc[frame["part"] == "train", "group_id"].unique())
    chosen = np.random.default_rng(SPLIT_SEED).permutation(videos)[:VALID_VIDEOS]
    return frame["part"].where(~frame["group_id"].isin(chosen), "valid")


def main() -> None:
    """Write samples and tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data/mosi"))
    arguments = parser.parse_args()
    frame = pd.concat([read_part(arguments.folder, part) for part in ("train", "test")], ignore_index=True)
    frame["split"] = split_videos(frame)
    table = frame[["sample_id", "group_id", "split", "label", "transcript_text"]].copy()
    (arguments.out / "features").mkdir(parents=True, exist_ok=True)
    for name in MODALITIES:
        values = np.stack(list(frame[name]))
        train = values[frame["split"] == "train"]
        scaled = np.clip((values - train.mean(0)) / np.maximum(train.std(0), 1e-6), -10, 10).astype(np.float32)
        table[f"{name}_array"], table[f"{name}_shape"] = list(scaled), [[1, values.shape[1]]] * len(values)
        file = arguments.out / "features" / f"{name}.parquet"
        pd.DataFrame({"sample_id": frame["sample_id"], "tokens": list(scaled)}).to_parquet(file, index=False)
        out = arguments.out / "tokens" / f"{name}.zarr"
        import_tokens(file, "parquet", Layout(), out, f"utterance features, {name}", "float32", 1e8)
    info = DatasetInfo(
        name="mosi",
        label=LabelSpec(kind="binary", names=("positive",)),
        modalities=(
            ModalitySpec(name="transcript", kind="text", column="transcript_text"),
            *(ModalitySpec(name=n, kind="features", column=f"{n}_array") for n in MODALITIES),
        ),
    )
    SamplesTable.write(arguments.out / "samples", info, table, pd.DataFrame(columns=["source_id", "step", "reason"]))
    print(f"wrote {arguments.out}: {table['split'].value_counts().to_dict()} utterances")


if __name__ == "__main__":
    main()
