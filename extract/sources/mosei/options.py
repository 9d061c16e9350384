"""Options of CMU-MOSEI's preparation; their values are in params.yaml."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cache.errors import UserError
from extract.sources.mosei.targets import Task

Modality = Literal["text", "audio", "video", "covarep", "facet", "openface"]


class Options(BaseModel):
    """What is predicted, from what, and how it is cut."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: Task
    binary: Literal["nonneg", "exclude_zero"]
    """What the binary task makes of a sentiment of 0."""
    out_of_range: Literal["clip", "drop"]
    """What becomes of sentiments outside [-3, 3]."""
    folds: str | None
    """File of the folds, relative to the raw folder; MMSA's label.csv has its own (null)."""
    unlisted: Literal["drop", "train", "valid", "test"]
    """What becomes of labelled videos that are in no fold."""
    modalities: tuple[Modality, ...] = Field(min_length=1)
    audio_hz: int = Field(gt=0)
    video_frames_per_second: int = Field(gt=0)
    video_pixels: int = Field(ge=16)
    """Short side of the films that are written; smaller sources keep their size."""
    video_quantiser: int = Field(ge=1, le=31)
    """Of MPEG-4: 1 is the finest, with the largest files."""
    feature_bins_per_second: float = Field(gt=0)
    match_seconds: float = Field(ge=0)
    """A sentence belongs to a segment when both ends are as near,"""
    match_overlap: float = Field(gt=0, le=1)
    """or when intersection over union is at least this."""
    workers: int = Field(gt=0)
    """Threads that cut clips; the result does not depend on them."""

    @field_validator("modalities")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a modality is named twice")
        return value


def parse_options(options: Mapping[str, Any]) -> Options:
    """Return the checked options.

    Raises:
        UserError: an option is absent, unknown or out of range.
    """
    try:
        return Options.model_validate(dict(options))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"Options of mosei: {problems}. They are {', '.join(Options.model_fields)}.") from error
