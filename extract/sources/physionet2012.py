"""PhysioNet/CinC Challenge 2012: ICU stays, the first 48 hours, in-hospital death.

The 37 variables fall into four blocks that are naturally missing as a whole: bedside vitals, chemistry and
haematology, blood gas and ventilation, cardiac and liver markers. Each is a modality, an hourly series with NaN where
nothing was measured. Raw files are read from `set-*.tar.gz` without unpacking, or from `set-*` folders.
"""

import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import UserError
from extract.samples import CountStep, DatasetInfo, ModalitySpec, SamplesTable
from extract.sources.series import bin_series
from extract.sources.splits import stratified_share
from extract.task import LabelSpec

STATIC = ("Age", "Gender", "Height", "ICUType")
BLOCKS: dict[str, tuple[str, ...]] = {
    "vitals": (
        *("HR", "NISysABP", "NIDiasABP", "NIMAP", "SysABP", "DiasABP", "MAP", "RespRate", "Temp", "GCS", "Urine"),
        *("Weight", *STATIC),
    ),
    "labs": ("BUN", "Creatinine", "Glucose", "HCO3", "HCT", "Mg", "Platelets", "K", "Na", "WBC"),
    "gas": ("pH", "PaO2", "PaCO2", "SaO2", "FiO2", "MechVent", "Lactate"),
    "cardiac": ("TroponinI", "TroponinT", "ALT", "AST", "ALP", "Bilirubin", "Albumin", "Cholesterol"),
}
PLACE = {variable: (block, column) for block, names in BLOCKS.items() for column, variable in enumerate(names)}
OPTIONS = {"train_sets", "test_sets", "valid_share", "split_seed", "hours", "bin_hours"}


def prepare_physionet2012(raw: Path, out: Path, options: Mapping[str, Any]) -> SamplesTable:
    """Read the sets and write a samples table.

    Args:
        raw: folder with `set-<x>.tar.gz` files or `set-<x>` folders, and `Outcomes-<x>.txt`.
        out: folder to write.
        options: train_sets, test_sets (letters), valid_share of the training stays, split_seed, hours, bin_hours.

    Raises:
        UserError: an option is unknown, or a file is absent or not in the challenge's format.
    """
    if set(options) != OPTIONS:
        raise UserError(f"Options of physionet2012 are {sorted(OPTIONS)}; given: {sorted(options)}.")
    rows: list[dict[str, Any]] = []
    dropped: list[dict[str, str]] = []
    lines: Counter[str] = Counter()
    for role in ("train", "test"):
        for letter in options[f"{role}_sets"]:
            _read_set(raw, str(letter), role, options, rows, dropped, lines)
    frame = pd.DataFrame(rows)
    if frame.empty or set(frame["split"]) != {"train", "test"}:
        raise UserError(f"{raw} gives no stay for training or for test. Check train_sets and test_sets.")
    train = frame["split"] == "train"
    chosen = stratified_share(
        frame.loc[train, "group_id"].tolist(),
        frame.loc[train, "label"].to_numpy(),
        options["valid_share"],
        f"physionet2012:{options['split_seed']}",
    )
    frame.loc[frame.index[train][chosen], "split"] = "valid"
    info = DatasetInfo(
        name="physionet2012",
        label=LabelSpec(kind="binary", names=("in_hospital_death",)),
        modalities=tuple(_modality(name, options["bin_hours"]) for name in BLOCKS),
        source={"lines": dict(sorted(lines.items()))},
        options=dict(options),
        counts=(
            CountStep(step="stays in the sets", kept=len(rows) + len(dropped), dropped=0),
            CountStep(step="stays with a measurement", kept=len(rows), dropped=len(dropped)),
        ),
    )
    return SamplesTable.write(out, info, frame, pd.DataFrame(dropped, columns=["source_id", "step", "reason"]))


def _modality(name: str, bin_hours: float) -> ModalitySpec:
    return ModalitySpec(
        name=name, kind="timeseries", column=f"{name}_array", channels=BLOCKS[name], bin_hours=bin_hours
    )


def _read_set(
    raw: Path,
    letter: str,
    role: str,
    options: Mapping[str, Any],
    rows: list[dict[str, Any]],
    dropped: list[dict[str, str]],
    lines: Counter[str],
) -> None:
    outcomes = _outcomes(raw, letter)
    for stay, text in _stays(raw, letter):
        if stay not in outcomes:
            raise UserError(f"A stay of set-{letter} has no row in Outcomes-{letter}.txt. Download both again.")
        arrays = _arrays(text, options, lines)
        if not arrays:
            dropped.append({"source_id": stay, "step": "measurements", "reason": "no measurement in the window"})
            continue
        row: dict[str, Any] = {"sample_id": stay, "group_id": stay, "split": role, "label": outcomes[stay]}
        for name in BLOCKS:
            array = arrays.get(name)
            row[f"{name}_array"] = None if array is None else array.ravel()
            row[f"{name}_shape"] = None if array is None else list(array.shape)
        rows.append(row)


def _outcomes(raw: Path, letter: str) -> dict[str, int]:
    path = raw / f"Outcomes-{letter}.txt"
    if not path.is_file():
        raise UserError(f"There is no {path}. --raw must hold set-*.tar.gz and Outcomes-*.txt of the challenge.")
    frame = pd.read_csv(path)
    absent = {"RecordID", "In-hospital_death"} - set(frame.columns)
    if absent:
        raise UserError(f"{path} lacks the columns {sorted(absent)}; it has {list(frame.columns)}.")
    return dict(zip(frame["RecordID"].astype(str), frame["In-hospital_death"].astype(int), strict=True))


def _stays(raw: Path, letter: str) -> Iterator[tuple[str, str]]:
    """Yield (record id, text) in the order of ids."""
    archive, folder = raw / f"set-{letter}.tar.gz", raw / f"set-{letter}"
    if folder.is_dir():
        texts = {path.stem: path.read_bytes() for path in folder.glob("*.txt")}
    elif archive.is_file():
        texts = _members(archive)
    else:
        raise UserError(f"There is neither {archive} nor {folder}.")
    for stay in sorted(texts):
        try:
            yield stay, texts[stay].decode("ascii")
        except UnicodeDecodeError as error:
            raise UserError(f"A file of set-{letter} is not plain text. Download it again.") from error


def _members(archive: Path) -> dict[str, bytes]:
    texts = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is not None and member.name.endswith(".txt"):
                    texts[Path(member.name).stem] = stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive} cannot be read ({type(error).__name__}). Download it again.") from error
    return texts


def _arrays(text: str, options: Mapping[str, Any], lines: Counter[str]) -> dict[str, np.ndarray]:
    """Hourly arrays of the blocks that have a measurement; static values alone do not count as one."""
    found: dict[str, list[tuple[float, int, float]]] = {}
    measured: set[str] = set()
    for line in io.StringIO(text).readlines()[1:]:
        time, _, rest = line.strip().partition(",")
        variable, _, number = rest.partition(",")
        if variable not in PLACE:
            lines["unknown or blank parameter" if variable != "RecordID" else "record id"] += 1
            continue
        value = float(number)
        if value < 0:  # -1 marks an unknown descriptor; no variable is negative
            lines["negative value"] += 1
            continue
        block, column = PLACE[variable]
        found.setdefault(block, []).append((_hours(time), column, value))
        if variable not in STATIC and not (variable == "Weight" and time == "00:00"):
            measured.add(block)
    bins = round(options["hours"] / options["bin_hours"])
    return {block: _grid(found[block], len(BLOCKS[block]), bins, options["bin_hours"]) for block in sorted(measured)}


def _grid(cells: list[tuple[float, int, float]], channels: int, bins: int, bin_hours: float) -> np.ndarray:
    hours, columns, values = (np.array(part) for part in zip(*cells, strict=True))
    return bin_series(hours, columns.astype(int), values, channels, bins, bin_hours)


def _hours(time: str) -> float:
    hours, _, minutes = time.partition(":")
    return int(hours) + int(minutes) / 60
