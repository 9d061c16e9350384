"""One training run of stage two, from the parameters to `train.stage.train_method`.

The command `train` and the benchmark suites go through here, so that the same settings give the same checkpoint.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.store import TokenStore
from cache.streaming import CachedBank
from extract.ranks import Ranks
from extract.samples import SamplesTable
from pipelines.params import Params
from train.config import MethodName
from train.stage import open_stores, require_current, token_keys, train_method


def current_stores(params: Params, table: SamplesTable) -> dict[str, TokenStore]:
    """Open the caches of the chosen modalities.

    Raises:
        StaleCacheError: a cache holds the tokens of another encoder than the fitted one that is here.
    """
    names = params.dataset.modalities
    stores = open_stores(table, params.tokens, names)
    require_current(stores, {name: params.encoder_folder(name) for name in names})
    return stores


def train_run(
    params: Params,
    method: MethodName,
    seed: int,
    table: SamplesTable,
    stores: Mapping[str, TokenStore],
    banks: Mapping[str, CachedBank],
    out: Path,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train `method` with `seed` on the tokens of `banks`; returns the checkpoint's configuration."""
    return train_method(
        method,
        seed,
        banks,
        table.info.label,
        params.model,
        params.method_settings(method),
        # Which other methods are compared says nothing about this one: adding one must not train the rest again.
        params.train.model_copy(update={"methods": (method,)}),
        out,
        token_keys(stores),
        sample_ids={split: table.ids(split) for split in ("train", "valid")},
        encoders={name: params.encoder_folder(name) for name in stores},
        modalities=table.info.modalities,
        ranks=ranks,
    )
