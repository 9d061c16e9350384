"""Networks with published weights, through transformers: loaded safely, completely, and on the record.

`weights` names a hub repository (`hf:<id>`, `revision` pins its commit) or a folder. No code of a repository runs;
safetensors are preferred, and a `.bin` file is read as tensors only. Everything is float32, whatever the file holds,
because the library's default would keep half precision silently. Keys that a network lacks are listed; a parameter
without a value in the file is an error, since it would stay random. `HF_HUB_OFFLINE=1` works once the
files are in the cache.
"""

import logging
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import nn

from cache.errors import UserError
from cache.publish import file_sha256
from extract.config import TransformerSettings
from extract.encoders import torchvision_schema  # noqa: F401  (before transformers)

from transformers import AutoConfig, AutoModel, PreTrainedConfig  # isort: skip
from transformers.utils import cached_file  # isort: skip

HUB = "hf:"
LOADING = (
    *(OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError),
    *(pickle.UnpicklingError, SafetensorError),
)
"""What transformers raises for absent, damaged, foreign or unsafe files."""
MOST_LISTED = 20
NOT_SIZES = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


@contextmanager
def loading(weights: str) -> Iterator[None]:
    """Turn what goes wrong while weights are loaded into a UserError; warnings of the library are ours to give."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except LOADING as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"Cannot load {weights}: {reason} Check the name, the revision, and the connection to the hub; a folder "
            "must hold config.json and model.safetensors (or pytorch_model.bin with tensors only)."
        ) from error
    finally:
        logger.setLevel(level)


def declared(weights: str, revision: str | None) -> dict[str, Any]:
    """Return a repository's own config.json, also where its model type is unknown to the library."""
    with loading(weights):
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(weights.removeprefix(HUB), revision=revision)[0]
    return config


def load_trunk(
    model_class: Any, weights: str, revision: str | None, *, may_lack: Sequence[str] = (), **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network and what is to be recorded about its origin.

    Args:
        model_class: a model class of transformers.
        weights: `hf:<hub id>` or a folder.
        revision: hub commit, None for the newest.
        may_lack: parameters that a file need not hold, and which the network then lacks too; a pooler's never need
            be there.
        options: of `from_pretrained`.

    Returns:
        The network in float32, and its origin: `weights`, `revision` (the resolved commit), `sha256` of a folder's
        weight files, `unknown_keys`.

    Raises:
        UserError: it cannot be loaded, or the file lacks parameters of the network.
    """
    with loading(weights):
        commit = _commit(weights, revision)
        trunk, report = model_class.from_pretrained(
            weights.removeprefix(HUB),
            revision=commit or revision,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    missing = sorted(k for k in set(report["missing_keys"]) - set(may_lack) if "pooler." not in k)
    if missing:
        raise UserError(
            f"{weights} lacks {len(missing)} parameters of {type(trunk).__name__}, such as {missing[0]}: they would "
            "stay random. Choose another model or encoder type."
        )
    origin = {
        "weights": weights,
        "revision": commit,
        "sha256": weights_digests(weights),
        "unknown_keys": sorted(report["unexpected_keys"]),
    }
    for name in set(report["missing_keys"]) & set(may_lack):
        delattr(trunk, name)
    _report(origin, revision)
    return trunk, origin


def _commit(weights: str, revision: str | None) -> str | None:
    """Return the commit of a hub repository that `revision` stands for, None for a folder."""
    name = weights.removeprefix(HUB)
    if Path(name).is_dir():
        return None
    parts = Path(cached_file(name, "config.json", revision=revision)).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def weights_digests(weights: str) -> dict[str, str]:
    """SHA-256 of the weight files of a local folder, whose name alone does not say what is in it."""
    folder = Path(weights.removeprefix(HUB))
    if not folder.is_dir():
        return {}
    files = sorted(path for ending in ("safetensors", "bin", "pt") for path in folder.glob(f"*.{ending}"))
    return {path.name: file_sha256(path) for path in files}


def _report(origin: dict[str, Any], revision: str | None) -> None:
    lines = []
    if origin["unknown_keys"]:
        keys = ", ".join(_summary(origin["unknown_keys"]))
        lines.append(f"{origin['weights']}: {len(origin['unknown_keys'])} keys are not used: {keys}")
    if origin["revision"] is not None and revision is None:
        lines.append(f"{origin['weights']} is not pinned. Set revision: {origin['revision']} to get the same weights.")
    for line in lines:
        Console(stderr=True).print(line, highlight=False, soft_wrap=True, markup=False)


def _summary(keys: list[str]) -> list[str]:
    """Return the keys, or, of a whole text tower, the modules and how many keys each has."""
    if len(keys) <= MOST_LISTED:
        return keys
    return [f"{module} ({count})" for module, count in Counter(key.split(".")[0] for key in keys).items()]


def sizes(settings: TransformerSettings) -> dict[str, int]:
    """Return the sizes of a network from scratch under the names of transformers."""
    return {
        "hidden_size": settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "intermediate_size": 4 * settings.width,
    }


def saved_config(trunk: nn.Module) -> dict[str, Any]:
    """Return what rebuilds a network without its repository, as JSON."""
    config: dict[str, Any] = trunk.config.to_dict()  # type: ignore[operator,union-attr]
    return {key: value for key, value in config.items() if key not in NOT_SIZES}


def rebuild(config: dict[str, Any]) -> nn.Module:
    """Build the network of `saved_config`, with random weights."""
    fields = {key: value for key, value in config.items() if key != "model_type"}
    trunk: nn.Module = AutoModel.from_config(AutoConfig.for_model(config["model_type"], **fields), dtype=torch.float32)
    return without_pooler(trunk)


def without_pooler(trunk: nn.Module) -> nn.Module:
    """Drop the head that summarises a sequence: nothing here uses it, so it would never get a gradient."""
    if getattr(trunk, "pooler", None) is not None:
        trunk.register_module("pooler", None)
    return trunk


def require_sizes(trunk: nn.Module, weights: str, width: int, layers: int) -> None:
    """Raise UserError unless the network has the width and the number of layers of params.yaml."""
    config: Any = trunk.config
    if (config.hidden_size, config.num_hidden_layers) != (width, layers):
        raise UserError(
            f"{weights} has width {config.hidden_size} and {config.num_hidden_layers} layers; params.yaml has "
            f"{width} and {layers}. Set encoders.<name>.width and layers to the model's."
        )


def transformer_blocks(trunk: nn.Module) -> list[nn.Module]:
    """Return the blocks of a Transformer of any kind: the list of modules that holds the most parameters."""
    lists = [module for module in trunk.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    parameters = [sum(p.numel() for p in module.parameters()) for module in lists]
    return list(lists[parameters.index(max(parameters))]) if lists else [trunk]
