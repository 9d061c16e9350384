"""PhysioNet/CinC Challenge 2012: ICU stays, the first 48 hours, in-hospital death.

The variables fall into four blocks that are naturally missing as a whole: bedside vitals, chemistry and haematology,
blood gas and ventilation, cardiac and liver markers. Each is a modality, an hourly series with NaN where nothing was
measured. What is known on admission (age, gender, height, unit, the weight at 00:00) is kept in the vitals' first bin
but is no measurement: it alone does not make a stay observed.

Raw files are read from `set-*.tar.gz` member by member, nothing is unpacked, or from `set-*` folders. A set of 4,000
stays takes about 5 seconds and 40 MB.
"""

import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from cache.errors import UserError
from extract.samples import CountStep, DatasetInfo, ModalitySpec, SamplesTable
from extract.sources.series import bin_series, whole_bins
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
HEADER = "Time,Parameter,Value"
Letter = Annotated[str, StringConstraints(pattern="^[a-z]$")]
LARGEST_FILE = 4_000_000  # bytes; a stay has about 10,000, so more is no file of the challenge


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    train_sets: tuple[Letter, ...] = Field(min_length=1)
    test_sets: tuple[Letter, ...] = Field(min_length=1)
    valid_share: float = Field(gt=0, lt=1)
    split_seed: int
    hours: float = Field(gt=0, le=48)
    bin_hours: float = Field(gt=0)


@dataclass
class _Cohort:
    """What reading has gathered so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    lines: Counter[str] = field(default_factory=Counter)
    """Lines left out, by reason."""


def prepare_physionet2012(raw: Path, out: Path, options: Mapping[str, Any]) -> SamplesTable:
    """Read the sets and write a samples table.

    Args:
        raw: folder with `set-<x>.tar.gz` files or `set-<x>` folders, and `Outcomes-<x>.txt`.
        out: folder to write.
        options: train_sets, test_sets (letters), valid_share of the training stays (stratified by the label),
            split_seed, hours (at most 48; measurements after them are left out), bin_hours.

    Raises:
        UserError: an option is unknown or out of range, or a file is absent or not in the challenge's format.
    """
    chosen = _parse_options(options)
    cohort = _Cohort()
    for role, letters in (("train", chosen.train_sets), ("test", chosen.test_sets)):
        for letter in letters:
            _read_set(raw, letter, role, chosen, cohort)
    frame = pd.DataFrame(cohort.rows)
    if frame.empty or set(frame["split"]) != {"train", "test"}:
        raise UserError(f"{raw} gives no stay for training or for test. Check train_sets and test_sets.")
    train = frame.index[frame["split"] == "train"]
    groups, labels = frame.loc[train, "group_id"].tolist(), frame.loc[train, "label"].to_numpy()
    salt = f"physionet2012:{chosen.split_seed}"
    frame.loc[train[stratified_share(groups, labels, chosen.valid_share, salt)], "split"] = "valid"
    dropped = pd.DataFrame(cohort.dropped, columns=["source_id", "step", "reason"], dtype=str)
    return SamplesTable.write(out, _info(cohort, options, chosen.bin_hours), frame, dropped)


def _parse_options(options: Mapping[str, Any]) -> _Options:
    try:
        chosen = _Options.model_validate(dict(options))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(
            f"Options of physionet2012: {problems}. They are {', '.join(_Options.model_fields)}."
        ) from error
    letters = [*chosen.train_sets, *chosen.test_sets]
    if len(set(letters)) != len(letters):
        raise UserError(f"train_sets and test_sets name a set twice: {letters}. A set has one role.")
    whole_bins(chosen.hours, chosen.bin_hours)
    return chosen


def _info(cohort: _Cohort, options: Mapping[str, Any], bin_hours: float) -> DatasetInfo:
    return DatasetInfo(
        name="physionet2012",
        label=LabelSpec(kind="binary", names=("in_hospital_death",)),
        modalities=tuple(
            ModalitySpec(name=name, kind="timeseries", column=f"{name}_array", channels=channels, bin_hours=bin_hours)
            for name, channels in BLOCKS.items()
        ),
        source={"name": "PhysioNet/CinC Challenge 2012", "lines_left_out": dict(sorted(cohort.lines.items()))},
        options=dict(options),
        counts=(
            CountStep(step="stays of the sets", kept=len(cohort.rows) + len(cohort.dropped), dropped=0),
            CountStep(step="measurement", kept=len(cohort.rows), dropped=len(cohort.dropped)),
        ),
    )


def _read_set(raw: Path, letter: str, role: str, options: _Options, cohort: _Cohort) -> None:
    outcomes = _outcomes(raw, letter)
    seen = set()
    for stay, text in _stays(raw, letter):
        if stay not in outcomes:
            raise UserError(f"A stay of set-{letter} has no row in Outcomes-{letter}.txt. Download both again.")
        seen.add(stay)
        try:
            arrays = _arrays(text, options, cohort.lines)
        except ValueError as error:  # its text may quote the record
            raise UserError(f"A file of set-{letter} is not in the form {HEADER}. Download the set again.") from error
        if not arrays:
            reason = "no measurement in the window"
            cohort.dropped.append({"source_id": stay, "step": "measurement", "reason": reason})
            continue
        row: dict[str, Any] = {"sample_id": stay, "group_id": stay, "split": role, "label": outcomes[stay]}
        for name in BLOCKS:
            array = arrays.get(name)
            row[f"{name}_array"] = None if array is None else array.ravel()
            row[f"{name}_shape"] = None if array is None else list(array.shape)
        cohort.rows.append(row)
    if len(seen) < len(outcomes):  # an archive that was cut off ends without a word
        raise UserError(
            f"{len(outcomes) - len(seen)} of the {len(outcomes)} stays of Outcomes-{letter}.txt have no file in "
            f"set-{letter}. Download the set again, or leave those rows out of the outcomes."
        )


def _outcomes(raw: Path, letter: str) -> dict[str, int]:
    path = raw / f"Outcomes-{letter}.txt"
    if not path.is_file():
        raise UserError(f"There is no {path}. --raw must hold set-*.tar.gz and Outcomes-*.txt of the challenge.")
    try:
        frame = pd.read_csv(path)
        records, deaths = frame["RecordID"].astype(int).astype(str), frame["In-hospital_death"].astype(int)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} lacks whole numbers in RecordID and In-hospital_death. Download it again.") from error
    if records.duplicated().any() or not deaths.isin([0, 1]).all():
        raise UserError(f"{path} repeats a record or has deaths other than 0 and 1. Download it again.")
    return dict(zip(records, deaths.tolist(), strict=True))


def _stays(raw: Path, letter: str) -> Iterator[tuple[str, str]]:
    """Yield (record id, text) of a set's files, which are named by the record id."""
    archive, folder = raw / f"set-{letter}.tar.gz", raw / f"set-{letter}"
    if folder.is_dir():
        contents: Iterator[tuple[Path, bytes]] = ((path, path.read_bytes()) for path in sorted(folder.glob("*.txt")))
    elif archive.is_file():
        contents = _members(archive)
    else:
        raise UserError(f"There is neither {archive} nor {folder}. Download the set into {raw}.")
    try:
        for path, content in contents:
            if path.suffix == ".txt" and path.stem.isdigit():
                yield path.stem, content.decode("ascii")
    except UnicodeDecodeError as error:
        raise UserError(f"A file of set-{letter} is not plain text. Download the set again.") from error
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"set-{letter} cannot be read ({type(error).__name__}). Download it again.") from error


def _members(archive: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield the regular files of an archive, one at a time."""
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if member.size > LARGEST_FILE:
                raise UserError(
                    f"{archive} holds a file of {member.size} bytes; no stay is that long. Download it again."
                )
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield Path(member.name), stream.read()


def _arrays(text: str, options: _Options, lines: Counter[str]) -> dict[str, np.ndarray]:
    """Return the series [bins, channels] of the blocks that have a measurement.

    Raises:
        ValueError: a line is not `hh:mm,parameter,number`.
    """
    header, *body = text.splitlines() or [""]
    if header.strip() != HEADER:
        raise ValueError("unexpected header")
    found: dict[str, list[tuple[float, int, float]]] = {}
    measured: set[str] = set()
    for line in filter(str.strip, body):
        time, variable, number = line.strip().split(",")
        if variable == "RecordID":
            continue
        hours, value = _hours(time), float(number)
        reason = _left_out(variable, hours, value, options.hours)
        if reason:
            lines[reason] += 1
            continue
        block, column = PLACE[variable]
        found.setdefault(block, []).append((hours, column, value))
        if variable not in STATIC and not (variable == "Weight" and hours == 0):
            measured.add(block)
    bins = whole_bins(options.hours, options.bin_hours)
    return {block: _series(found[block], len(BLOCKS[block]), bins, options.bin_hours) for block in sorted(measured)}


def _left_out(variable: str, hours: float, value: float, window: float) -> str | None:
    """Say why a line does not count, None where it does."""
    if not variable:
        return "blank parameter"
    if variable not in PLACE:
        return "unknown parameter"
    if not (0 <= value < np.inf):  # -1 marks an unknown descriptor; no variable is negative
        return "negative value"
    return "after the window" if hours > window else None


def _series(cells: Sequence[tuple[float, int, float]], channels: int, bins: int, bin_hours: float) -> np.ndarray:
    hours, columns, values = (np.array(part) for part in zip(*cells, strict=True))
    return bin_series(hours, columns, values, channels, bins, bin_hours)


def _hours(time: str) -> float:
    hours, minutes = time.split(":")
    return int(hours) + int(minutes) / 60
