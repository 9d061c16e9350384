"""Counts that others published, to print beside one's own.

Of MIMIC-IV v1.0 with MIMIC-CXR-JPG 2.0.0, from MedFuse's repository (figure and README) and the method's paper; other
releases give others (v2.2 about 5 % fewer stays).
"""

from typing import Any

Counts = dict[str, dict[str, int]]
PUBLISHED: dict[str, Counts] = {
    "mortality": {
        "series (MedFuse)": {"train": 18845, "valid": 2138, "test": 5243},
        "series, deaths (MedFuse)": {"train": 2357, "valid": 254, "test": 651},
        "series and film of the whole stay (MedFuse)": {"train": 4885, "valid": 540, "test": 1373},
        "series and film of the first 48 h (MedFuse, 2023)": {"train": 4485, "valid": 488, "test": 1242},
        "all three (paper)": {"train": 4880, "valid": 540, "test": 1373},
    },
    "phenotyping": {
        "series (MedFuse)": {"train": 42628, "valid": 4802, "test": 11914},
        "series and film (MedFuse)": {"train": 7756, "valid": 882, "test": 2166},
        "all three (paper)": {"train": 7744, "valid": 882, "test": 2166},
    },
}


def own_counts(frame: Any, task: str) -> Counts:
    """Return samples by split of a table: with a series, deaths, with a film, with all three.

    Args:
        frame: the samples table's rows.
        task: mortality or phenotyping.
    """
    film, text = frame["cxr_path"].notna(), frame["txt_text"].notna()
    rows = {"series": film | ~film, "series and film": film, "series and text": text, "all three": film & text}
    if task == "mortality":
        rows["series, deaths"] = frame["label"] == 1
    return {
        name: {split: int((chosen & (frame["split"] == split)).sum()) for split in ("train", "valid", "test")}
        for name, chosen in rows.items()
    }
