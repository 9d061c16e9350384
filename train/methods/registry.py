"""Methods by name, and the specification that a token bank of the training split gives them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cache.streaming import CachedBank
from extract.config import Settings
from extract.task import LabelSpec
from train.config import (
    DrFuseSettings,
    FlexMoESettings,
    M3CareSettings,
    MedFuseSettings,
    MethodName,
    ModelSettings,
    MoMKESettings,
    SelfMaskSettings,
    ShaSpecSettings,
    SimMLMSettings,
    SmilSettings,
)
from train.methods.base import Method, ModelSpec
from train.methods.baselines import ModalityDropout, RandomFill, ZeroFill
from train.methods.drfuse import DrFuse
from train.methods.flexmoe import FlexMoE
from train.methods.learned_token import LearnedToken
from train.methods.m3care import M3Care
from train.methods.medfuse import MedFuse
from train.methods.momke import MoMKE
from train.methods.selfmask import SelfMask
from train.methods.shaspec import ShaSpec
from train.methods.simmlm import SimMLM
from train.methods.smil import Smil


@dataclass(frozen=True)
class Entry:
    """A method's class, called with (spec, model settings[, own settings]), and the type of its own settings."""

    build: Callable[..., Method]
    settings: type[Settings] | None = None


METHODS: dict[MethodName, Entry] = {
    "selfmask": Entry(SelfMask, SelfMaskSettings),
    "modality_dropout": Entry(ModalityDropout),
    "zero_fill": Entry(ZeroFill),
    "random_fill": Entry(RandomFill),
    "learned_token": Entry(LearnedToken),
    "smil": Entry(Smil, SmilSettings),
    "medfuse": Entry(MedFuse, MedFuseSettings),
    "shaspec": Entry(ShaSpec, ShaSpecSettings),
    "m3care": Entry(M3Care, M3CareSettings),
    "momke": Entry(MoMKE, MoMKESettings),
    "drfuse": Entry(DrFuse, DrFuseSettings),
    "simmlm": Entry(SimMLM, SimMLMSettings),
    "flexmoe": Entry(FlexMoE, FlexMoESettings),
}


def build_method(name: MethodName, spec: ModelSpec, model: ModelSettings, options: Settings | None) -> Method:
    """Build a method with fresh weights from the global random state; `options` are its own settings, if it has any."""
    entry = METHODS[name]
    return entry.build(spec, model) if entry.settings is None else entry.build(spec, model, options)


def read_options(name: MethodName, stored: dict[str, Any]) -> Settings | None:
    """Validate a method's own settings as a checkpoint stores them; None for a method without."""
    kind = METHODS[name].settings
    return None if kind is None else kind.model_validate(stored)


def model_spec(bank: CachedBank, label: LabelSpec, model: ModelSettings) -> ModelSpec:
    """Read widths and lengths off the bank of the training split.

    T^(m) is the median length of the observed training sequences, capped: a fixed number, never the length of
    the value that was dropped.
    """
    missing, longest = {}, {}
    for column, name in enumerate(bank.modalities):
        lengths = bank.lengths[name][bank.observed[:, column]]
        median = int(torch.median(lengths)) if len(lengths) else 1
        missing[name] = max(1, min(model.missing_tokens_cap, median))
        longest[name] = max(1, int(lengths.max())) if len(lengths) else 1
    return ModelSpec(
        modalities=bank.modalities,
        widths=bank.widths,
        missing_lengths=missing,
        max_lengths=longest,
        label=label,
    )
