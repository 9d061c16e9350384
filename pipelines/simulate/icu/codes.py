"""Billing codes of the simulated cohort: each of the 25 phenotypes about as often as in MIMIC, more with severity.

Half the admissions are coded in ICD-10; of those, half with a code that MedFuse's list lacks, so that its labels
differ from the right ones.
"""

from typing import Any

import numpy as np
import pandas as pd

from pipelines.simulate.icu.expected import FIXED, PAPER, StayExpected

# CCS number: share of stays, ICD-9 code, ICD-10 code that MedFuse lists, one that it lacks ("": it has all)
GROUPS: dict[int, tuple[float, str, str, str]] = {
    157: (0.214, "5849", "N179", ""),
    109: (0.075, "43491", "I619", "I639"),
    100: (0.103, "41071", "I214", "I21A1"),
    106: (0.321, "42731", "I4891", "I480"),
    158: (0.134, "5859", "N189", ""),
    127: (0.131, "49121", "J441", "J432"),
    238: (0.207, "99859", "T814XXA", "D7821"),
    105: (0.072, "V4501", "Z950", "I4439"),
    108: (0.268, "4280", "I5033", "I50810"),
    101: (0.322, "41401", "I2510", "I25110"),
    50: (0.095, "25060", "E1165", "E1122"),
    49: (0.193, "25000", "E119", "R739"),
    53: (0.291, "2724", "E785", "E7800"),
    98: (0.419, "4019", "I10", ""),
    55: (0.269, "2762", "E872", "E8770"),
    153: (0.072, "5789", "K922", ""),
    99: (0.133, "40390", "I129", "I151"),
    151: (0.089, "5715", "K7469", "K7460"),
    133: (0.051, "5168", "J8489", "R042"),
    134: (0.040, "4779", "J309", "J382"),
    130: (0.087, "5119", "J918", "J90"),
    122: (0.139, "486", "J189", "J13"),
    131: (0.181, "51881", "J9600", "J9601"),
    2: (0.143, "0389", "A419", "A4181"),
    249: (0.078, "78552", "R6521", "R571"),
}
SLOPE = 0.8
OTHER = {9: "V1582", 10: "Z87891"}  # of no group; every admission has one


def bulk_codes(
    stays: pd.DataFrame, severity: np.ndarray, expected: list[StayExpected], random: np.random.Generator
) -> pd.DataFrame:
    """Return diagnoses_icd rows; fills in what is expected."""
    rows: list[dict[str, Any]] = []
    plan: list[Any] = list(stays.itertuples())
    for number, (stay, level, wanted) in enumerate(zip(plan, severity, expected, strict=True)):
        version = 9 if number % 2 else 10
        codes, fixed, paper = [OTHER[version]], [], []
        for group, (share, nine, listed, unlisted) in GROUPS.items():
            log_odds = np.log(share / (1 - share)) + SLOPE * level - SLOPE**2 / 2
            if random.random() > 1 / (1 + np.exp(-log_odds)):
                continue
            lacking = version == 10 and unlisted != "" and random.random() < 0.5
            codes.append(nine if version == 9 else unlisted if lacking else listed)
            fixed.append(group)
            paper += [] if lacking else [group]
        wanted.groups.update(dict.fromkeys(FIXED, fixed) | dict.fromkeys(PAPER, paper))
        rows += code_rows(stay.subject_id, stay.hadm_id, [(code, version) for code in codes])
    return pd.DataFrame(rows)


def code_rows(subject: int, admission: int, codes: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Return an admission's rows of diagnoses_icd."""
    ids = {"subject_id": subject, "hadm_id": admission}
    return [{**ids, "seq_num": i, "icd_code": c, "icd_version": v} for i, (c, v) in enumerate(codes, start=1)]


def dictionary() -> pd.DataFrame:
    """Return d_icd_diagnoses of the codes in use."""
    pairs = [(nine, 9) for _, nine, _, _ in GROUPS.values()]
    pairs += [(code, 10) for _, _, *codes in GROUPS.values() for code in codes if code]
    pairs += [(code, version) for version, code in OTHER.items()]
    return pd.DataFrame(pairs, columns=["icd_code", "icd_version"]).assign(long_title="Simulated")
