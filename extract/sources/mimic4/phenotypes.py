"""The 25 phenotypes of an admission, from its billing codes.

A retrospective label: codes are written at discharge. ICD-9 codes belong to the groups of HCUP's Clinical
Classifications Software (CCS, 2015). ICD-10 codes in `fixed` mode follow HCUP's own CCS for ICD-10-CM (2019.1, one
group a code), stored as the shortest prefixes whose codes all lie in one group, so that a code newer than the table
takes the group of its longest known prefix. `paper` matches MedFuse's list exactly, which lacks most ICD-10 codes
(J96.01, I48.0, I63.9, J90, ...) and ignores the version. Both tables are public domain.
"""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import polars as pl

from extract.sources.mimic4.layout import Layout
from extract.sources.mimic4.tables import read_table

CODES = Path(__file__).parent / "phenotypes.csv"
SHORTEST = 3  # characters of an ICD-10 category
# CCS number: name, type
PHENOTYPES = {
    157: ("Acute and unspecified renal failure", "acute"),
    109: ("Acute cerebrovascular disease", "acute"),
    100: ("Acute myocardial infarction", "acute"),
    106: ("Cardiac dysrhythmias", "mixed"),
    158: ("Chronic kidney disease", "chronic"),
    127: ("Chronic obstructive pulmonary disease and bronchiectasis", "chronic"),
    238: ("Complications of surgical procedures or medical care", "acute"),
    105: ("Conduction disorders", "mixed"),
    108: ("Congestive heart failure; nonhypertensive", "mixed"),
    101: ("Coronary atherosclerosis and other heart disease", "chronic"),
    50: ("Diabetes mellitus with complications", "mixed"),
    49: ("Diabetes mellitus without complication", "chronic"),
    53: ("Disorders of lipid metabolism", "chronic"),
    98: ("Essential hypertension", "chronic"),
    55: ("Fluid and electrolyte disorders", "acute"),
    153: ("Gastrointestinal hemorrhage", "acute"),
    99: ("Hypertension with complications and secondary hypertension", "chronic"),
    151: ("Other liver diseases", "mixed"),
    133: ("Other lower respiratory disease", "acute"),
    134: ("Other upper respiratory disease", "acute"),
    130: ("Pleurisy; pneumothorax; pulmonary collapse", "acute"),
    122: ("Pneumonia (except that caused by tuberculosis or sexually transmitted disease)", "acute"),
    131: ("Respiratory failure; insufficiency; arrest (adult)", "acute"),
    2: ("Septicemia (except in labor)", "acute"),
    249: ("Shock", "acute"),
}
NAMES = tuple(name for name, _ in PHENOTYPES.values())


def read_phenotypes(layout: Layout, stays: pl.DataFrame, *, paper: bool, counts: Counter[str]) -> np.ndarray:
    """Return uint8 [N, 25] in the order of `PHENOTYPES`, for stays with hadm_id; no code means none of them.

    Raises:
        UserError: hosp/diagnoses_icd is absent or lacks a column.
    """
    columns = {"hadm_id": pl.Int64, "icd_code": pl.String, "icd_version": pl.Int64}
    codes = read_table(layout.require("hosp/diagnoses_icd"), columns).filter(
        pl.col("hadm_id").is_in(stays["hadm_id"].to_list())
    )
    counts["stays without any diagnosis code"] = len(stays) - len(
        stays.filter(pl.col("hadm_id").is_in(codes["hadm_id"].to_list()))
    )
    place = {number: i for i, number in enumerate(PHENOTYPES)}
    row = {admission: i for i, admission in enumerate(stays["hadm_id"].to_list())}
    groups = PhenotypeCodes(paper=paper)
    labels = np.zeros((len(stays), len(PHENOTYPES)), np.uint8)
    for admission, code, version in codes.iter_rows():
        for number in groups.of(code or "", version):
            labels[row[admission], place[number]] = 1
    return labels


class PhenotypeCodes:
    """CCS numbers of a code, among the 25."""

    def __init__(self, *, paper: bool) -> None:
        self.paper = paper
        self.codes: dict[tuple[int, str], set[int]] = defaultdict(set)
        with CODES.open(newline="") as stream:
            for line in csv.DictReader(stream):
                if line["map"] in ("all", "medfuse" if paper else "hcup"):
                    self.codes[0 if paper else int(line["icd_version"]), line["code"]].add(int(line["ccs"]))

    def of(self, code: str, version: int | None) -> set[int]:
        """Return the groups of a code as MIMIC writes it, without a dot."""
        if self.paper:
            return self.codes.get((0, code), set())
        code = code.strip().upper().replace(".", "")
        if version == 9:
            return self.codes.get((9, code), set())
        ends = range(SHORTEST, len(code) + 1) if version == 10 else ()
        return set().union(*(self.codes.get((10, code[:end]), set()) for end in ends))
