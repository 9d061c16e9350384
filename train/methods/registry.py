"""Methods by name, and the specification that a token bank of the training split gives them."""

from collections.abc import Callable

import torch

from cache.streaming import CachedBank
from extract.task import LabelSpec
from train.config import MethodName, ModelSettings, SelfMaskSettings
from train.methods.base import Method, ModelSpec
from train.methods.baselines import ModalityDropout, RandomFill, ZeroFill
from train.methods.selfmask import SelfMask

METHODS: dict[MethodName, Callable[[ModelSpec, ModelSettings, SelfMaskSettings], Method]] = {
    "selfmask": SelfMask,
    "modality_dropout": lambda spec, model, selfmask: ModalityDropout(spec, model),
    "zero_fill": lambda spec, model, selfmask: ZeroFill(spec, model),
    "random_fill": lambda spec, model, selfmask: RandomFill(spec, model),
}


def build_method(name: MethodName, spec: ModelSpec, model: ModelSettings, selfmask: SelfMaskSettings) -> Method:
    """Build a method with fresh weights from the global random state."""
    return METHODS[name](spec, model, selfmask)


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
