"""Files of an evaluation: nested JSON for `dvc metrics show`, long csv tables for `dvc plots`.

One row of a csv is one (method, training seed, scenario), so that spread over seeds stays visible.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.publish import write_bytes

Metrics = Mapping[str, float]


def summarise(per_seed: Sequence[Metrics]) -> dict[str, dict[str, float | None]]:
    """Return metric -> {mean, sd} over training seeds; sd (n - 1) is null for a single seed."""
    result: dict[str, dict[str, float | None]] = {}
    for name in sorted({name for metrics in per_seed for name in metrics}):
        values = [metrics[name] for metrics in per_seed if name in metrics]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        result[name] = {"mean": float(np.mean(values)), "sd": spread}
    return result


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as csv, atomically; metrics that a row does not define are empty."""
    text = pd.DataFrame(list(rows)).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_bytes(path, text.encode())
