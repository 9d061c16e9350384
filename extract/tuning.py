"""How an encoder is trained, shared by fit and the joint stage: which blocks or adapters, at which rate and precision.

Every encoder lists its blocks in order (`Encoder.blocks`), and all of this works on that list, so that no encoder has
code of its own for it. Adapters (LoRA, through peft) sit in the attention projections of the trained blocks and are
merged when the training is over: what is saved is a plain encoder, whose new weights give its cache another key.
Cost: adapters make optimiser states and gradients small; the forward and backward pass through the blocks remain.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import UserError
from extract.config import LoraSettings, TuningSettings
from extract.encoders import torchvision_schema  # noqa: F401  (before peft)
from extract.encoders.base import Encoder
from extract.precision import Precision, require_precision

ADAPTER = "adapter"
ATTENTION = ("attn", "attention")
"""What the name of an attention module holds, in torch, timm and transformers."""


def tune(encoder: Encoder, settings: TuningSettings, inputs: dict[str, Tensor]) -> Callable[[], None]:
    """Prepare an encoder for training: what gets gradients, adapters, checkpointing.

    Args:
        encoder: on its device; changed in place.
        settings: of fit or of the joint stage.
        inputs: a collated batch, on which it is seen that the network uses its adapters.

    Returns:
        What is to be called after the training, and before the encoder is saved.

    Raises:
        UserError: peft is not installed, or the network does not use its adapters.
    """
    choose_trained(encoder, settings.blocks)
    merge = _nothing if settings.lora is None else _adapt(encoder, settings.lora, settings.blocks, inputs)
    if settings.checkpointing:
        encoder.set_checkpointing(True)

    def finish() -> None:
        merge()
        if settings.checkpointing:
            encoder.set_checkpointing(False)

    return finish


def choose_trained(encoder: Encoder, blocks: str | int) -> None:
    """Freeze all but the last `blocks` blocks of an encoder; the placeholder V is always trained."""
    if blocks == "all":
        encoder.requires_grad_(True)
        return
    encoder.requires_grad_(False)
    for block in _last(encoder, blocks):
        block.requires_grad_(True)
    encoder.placeholder.requires_grad_(True)


def parameter_groups(encoder: Encoder, rate: float, layer_decay: float) -> list[dict[str, Any]]:
    """Trained parameters with their learning rates, lower for layers nearer to the input.

    With L blocks, what comes before them has `rate * layer_decay ** (L + 1)`, the last block `rate * layer_decay`, and
    what comes after them, and the placeholder, `rate` (the convention of BEiT and MAE). Before and after are read from
    the order in which a network registers its parameters.
    """
    trained = [(layer, p) for layer, p in _layers(encoder) if p.requires_grad]
    if layer_decay == 1:
        return [{"params": [p for _, p in trained], "lr": rate}]
    top = len(encoder.blocks()) + 1
    return [
        {"params": [p for own, p in trained if own == layer], "lr": rate * layer_decay ** (top - layer)}
        for layer in sorted({layer for layer, _ in trained})
    ]


def gradient_scaler(precision: Precision, device: torch.device | str) -> torch.amp.GradScaler:
    """Return what keeps small gradients of float16 from vanishing; it does nothing in other precisions.

    Raises:
        UserError: float16 without a CUDA device.
    """
    require_precision(precision, device)
    return torch.amp.GradScaler(torch.device(device).type, enabled=precision == "float16")


def _last(encoder: Encoder, blocks: str | int) -> list[nn.Module]:
    """Return the last blocks; an encoder that has fewer gives all of them."""
    every = encoder.blocks()
    return every if blocks == "all" else every[len(every) - min(int(blocks), len(every)) :]


def _layers(encoder: Encoder) -> Iterator[tuple[int, nn.Parameter]]:
    """Parameters with their layer: 0 before the blocks, 1 to L in them, L + 1 after them."""
    blocks = encoder.blocks()
    inside = {id(p): number for number, block in enumerate(blocks, 1) for p in block.parameters()}
    outside = 0
    for parameter in encoder.parameters():
        if parameter is encoder.placeholder:
            yield len(blocks) + 1, parameter
            continue
        if id(parameter) in inside:
            outside = len(blocks) + 1
        yield inside.get(id(parameter), outside), parameter


def _nothing() -> None:
    pass


def _adapt(encoder: Encoder, lora: LoraSettings, blocks: str | int, inputs: dict[str, Tensor]) -> Callable[[], None]:
    """Put adapters into the attention projections of the trained blocks; returns what merges them."""
    try:
        from peft import LoraConfig, LoraModel
        from peft.tuners.lora.layer import MultiheadAttention
    except ImportError as error:
        raise UserError(f"LoRA needs peft ({error}). Run `pip install 'selfmask[lora]'`, or set lora: null.") from error
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=_projections(encoder, blocks)
    )
    adapted = LoraModel(encoder, config, ADAPTER)
    for module in encoder.modules():
        if isinstance(module, MultiheadAttention):  # torch's fused layer reads the weights, unless there is a hook
            module.register_forward_pre_hook(lambda *_: None)
    encoder.placeholder.requires_grad_(True)
    _require_used(encoder, inputs)

    def merge() -> None:
        adapted.merge_and_unload(safe_merge=True)

    return merge


def _projections(encoder: Encoder, blocks: str | int) -> list[str]:
    """Names of torch's attention modules, and of the linear maps inside others, in the last blocks."""
    trained = {id(module) for block in _last(encoder, blocks) for module in block.modules()}
    found: list[str] = []
    for name, module in encoder.named_modules():
        if id(module) not in trained or any(name.startswith(f"{other}.") for other in found):
            continue
        above = name.split(".")[:-1]
        linear = isinstance(module, nn.Linear) and any(word in part for part in above for word in ATTENTION)
        if linear or isinstance(module, nn.MultiheadAttention):
            found.append(name)
    if not found:
        raise UserError(f"{type(encoder).__name__} has no attention projections for LoRA. Set lora: null.")
    return found


def _require_used(encoder: Encoder, inputs: dict[str, Tensor]) -> None:
    """Raise UserError where a network reads the weights of a projection past the module that holds its adapter."""
    encoder.eval()  # statistics of normalisation layers stay as they are
    encoder(inputs)[0].sum().backward()
    adapters = [(name, p) for name, p in encoder.named_parameters() if ".lora_B." in name]
    unused = [name.split(".lora_B.")[0] for name, p in adapters if p.grad is None]
    encoder.zero_grad(set_to_none=True)
    if unused:
        raise UserError(
            f"This network does not use an adapter in {unused[0]}, nor in {len(unused) - 1} more: it reads the weights "
            "itself (WavLM, EVA and BEiT do). Set lora: null and train its last blocks (blocks)."
        )
