"""Where a user's MIMIC files lie: every release's layout, plain or gzip, flat or as the downloads unpack.

Looked for at the given folder and up to three levels below it, so that the folder above `mimiciv/3.1/` does. Of v1.0,
patients and admissions are in core/; `.csv` wins over `.csv.gz`. Costs a few directory listings.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from cache.errors import UserError

LEVELS = 3
ENDS = (".csv", ".csv.gz")
MOVED = {"hosp/patients": "core/patients", "hosp/admissions": "core/admissions"}  # v1.0
NEWEST_YEARS = "2020 - 2022"  # an anchor_year_group that v3.x alone has
METADATA = "mimic-cxr-2.0.0-metadata"
CHEXPERT = "mimic-cxr-2.0.0-chexpert"
PATIENTS = re.compile(r"p\d\d")
REPORT_FOLDERS = ("mimic-cxr", "mimic-cxr-reports")


@dataclass(frozen=True)
class Layout:
    """The folders that hold MIMIC-IV's tables, notes, films and free-text reports; None where a user lacks them."""

    tables: Path
    notes: Path | None
    films: Path | None
    reports: Path | None

    def find(self, name: str) -> Path | None:
        """Return the path of `hosp/<table>`, `icu/<table>`, `note/<table>` or an X-ray table, or None."""
        folder = name.partition("/")[0]
        root = self.notes if folder == "note" else self.films if folder.startswith("mimic-cxr") else self.tables
        if root is None:
            return None
        names = [name, MOVED[name]] if name in MOVED else [name]
        return next((path for n in names for end in ENDS if (path := root / f"{n}{end}").is_file()), None)

    def require(self, name: str) -> Path:
        """Return the path of a table.

        Raises:
            UserError: it is absent.
        """
        path = self.find(name)
        if path is None:
            where = self.tables if "/" in name and not name.startswith("note/") else (self.films or self.tables)
            raise UserError(f"There is no {where / name}.csv or .csv.gz. Add it from the same release, then run again.")
        return path

    @property
    def version(self) -> str:
        """The release, as far as files tell: `1.0`, `2.0 or 2.1`, `2.2`, `3.x`."""
        if (self.tables / "core").is_dir() and not any((self.tables / f"hosp/patients{e}").is_file() for e in ENDS):
            return "1.0"
        if "caregiver_id" not in header(self.require("icu/chartevents")):
            return "2.0 or 2.1"
        patients = self.require("hosp/patients")
        with opened(patients) as stream:
            return "3.x" if any(NEWEST_YEARS in line for line in stream) else "2.2"


def open_layout(raw: Path) -> Layout:
    """Find the folders below `raw`.

    Raises:
        UserError: no MIMIC-IV there, several releases, or MIMIC-III.
    """
    if not raw.is_dir():
        raise UserError(f"There is no folder {raw}. --raw must hold MIMIC-IV's hosp/ and icu/ (v1.0: also core/).")
    tables = _only(raw, [f"icu/icustays{end}" for end in ENDS], "MIMIC-IV")
    if tables is None:
        old = [f"ICUSTAYS{end}" for end in ENDS]
        hint = (
            " It looks like MIMIC-III; this reads MIMIC-IV v1.0, v2.x and v3.x." if _only(raw, old, "MIMIC-III") else ""
        )
        raise UserError(f"There is no icu/icustays.csv or .csv.gz in {raw} or three levels below it.{hint} --raw must "
                        "hold MIMIC-IV's hosp/ and icu/; note/ and mimic-cxr-jpg/ are optional.")  # fmt: skip
    if "stay_id" not in header(Layout(tables, None, None, None).require("icu/icustays")):
        raise UserError(f"{tables}/icu/icustays has no stay_id: not MIMIC-IV. v1.0, v2.x and v3.x are read.")
    notes = [f"note/{name}{end}" for name in ("radiology", "discharge") for end in ENDS]
    films = _only(raw, [f"{METADATA}{end}" for end in ENDS], "MIMIC-CXR-JPG")
    return Layout(tables, _only(raw, notes, "MIMIC-IV-Note"), films, _reports(raw))


def _only(raw: Path, names: Sequence[str], what: str) -> Path | None:
    """Return the one folder at or below `raw` that holds any of the names."""
    folders = sorted({folder for folder in _folders(raw, LEVELS) for name in names if (folder / name).is_file()})
    if len(folders) > 1:
        raise UserError(f"{raw} holds {what} {len(folders)} times: {', '.join(map(str, folders))}. Give one as --raw.")
    return folders[0] if folders else None


def _reports(raw: Path) -> Path | None:
    """Return the folder whose files/ holds the free-text reports of MIMIC-CXR."""
    named = [folder for folder in _folders(raw, LEVELS) if folder.name in REPORT_FOLDERS]
    below = [path for folder in named for path in (folder, *_folders(folder, 1))]
    return next((path for path in below if (path / "files").is_dir()), None)


def _folders(root: Path, levels: int) -> Iterator[Path]:
    """Yield a folder and those below it, but not those of the 65,000 patients with films."""
    yield root
    if levels and not PATIENTS.fullmatch(root.name):
        for path in sorted(root.iterdir()):
            if path.is_dir():
                yield from _folders(path, levels - 1)


def opened(path: Path) -> TextIO:
    """Open a plain or gzip csv as text."""
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8", errors="replace"))
    return path.open(encoding="utf-8", errors="replace")


def header(path: Path) -> list[str]:
    """Return a table's column names.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with opened(path) as stream:
            return next(csv.reader(stream), [])
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise UserError(f"{path} cannot be read as csv ({type(error).__name__}). Download it again.") from error
