"""What a user chooses about MIMIC-IV, and what the two modes mean.

`fixed` lets nothing after the prediction time into a sample, repairs units and applies the range rules. `paper` makes
MedFuse's choices, mistakes included, so that its counts can be compared (docs/mimic4.md lists the differences).
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cache.errors import UserError
from extract.sources.series import whole_bins


class Mimic4Options(BaseModel):
    """Options of `prepare mimic4`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: Literal["mortality", "phenotyping"]
    mode: Literal["fixed", "paper"]
    hours: float | None = Field(gt=0)
    """Window since admission to the unit; null: the whole stay, of phenotyping only."""
    bin_hours: float = Field(gt=0)
    valid_share: float = Field(gt=0, lt=1)
    """Share of subjects, by hash; so is `test_share`."""
    test_share: float = Field(gt=0, lt=1)
    split_salt: str
    test_subjects: Path | None
    """Csv of subject ids, or of ids and 0 or 1; null: hashed. So is `valid_subjects`."""
    valid_subjects: Path | None
    text: Literal["notes", "study"]
    """Reports of note/radiology known by the prediction time, or the report of the chosen film's study."""
    exams: Literal["chest", "all"]
    """Which examinations' radiology notes."""
    report_delay_hours: float = Field(ge=0)
    """From film or examination to a report without a time of its own."""
    image_pixels: int = Field(ge=16)
    """Shorter side of a stored film."""
    allow_leaky_text: bool
    """Text becomes the discharge summary, which states outcome and diagnoses."""

    @property
    def paper(self) -> bool:
        """Whether MedFuse's choices are made."""
        return self.mode == "paper"

    @property
    def window(self) -> timedelta | None:
        """The window; None is the whole stay."""
        return None if self.hours is None else timedelta(seconds=round(self.hours * 3600))


def parse_options(options: Mapping[str, Any]) -> Mimic4Options:
    """Validate options.

    Raises:
        UserError: names every key that is absent, unknown or wrong, and the known ones.
    """
    try:
        chosen = Mimic4Options.model_validate(dict(options))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"Options of mimic4: {problems}. They are {', '.join(Mimic4Options.model_fields)}.") from error
    if chosen.hours is None and chosen.task == "mortality":
        raise UserError(
            "Options of mimic4: hours must be a number for mortality; only phenotyping may use the whole stay."
        )
    if chosen.hours is not None:
        whole_bins(chosen.hours, chosen.bin_hours)
    if chosen.valid_share + chosen.test_share >= 1:
        raise UserError("Options of mimic4: valid_share and test_share leave nothing to train on.")
    return chosen
