"""Evaluation scenarios: which modalities each test sample keeps. Drawn once, stored, shared by every method.

Names: `natural`, `protocol`, `rate_<percent>` and, for each of the 2^M - 1 patterns, `pattern_<a+b>`. A row of False
means that the sample takes no part: in a pattern, because it does not have all of its modalities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cache.errors import UserError
from cache.publish import replacing
from train.missing import drop_at_rate, drop_by_protocol, patterns

Array = np.ndarray


@dataclass(frozen=True)
class Scenario:
    """A named table of what is kept, bool [N, M]; `rate` and `pattern` where they apply."""

    name: str
    kept: Array
    rate: float | None = None
    pattern: tuple[str, ...] | None = None

    @property
    def rows(self) -> Array:
        """Samples that take part, bool [N]."""
        return np.asarray(self.kept.any(-1))


def build_scenarios(
    sample_ids: Sequence[str], observed: Array, modalities: Sequence[str], seed: int, rates: Sequence[float]
) -> list[Scenario]:
    """Return every scenario of METHOD part 5, in the order natural, protocol, rates, patterns.

    Args:
        sample_ids: N ids; a sample's draw depends on its id and the seed alone.
        observed: natural availability, bool [N, M].
        modalities: M names.
        seed: of the draws.
        rates: missing rates in [0, 1].
    """
    if len(sample_ids) != len(observed):
        raise UserError(f"{len(sample_ids)} sample ids for {len(observed)} samples. Run `selfmask extract` again.")
    result = [Scenario("natural", observed.copy()), Scenario("protocol", drop_by_protocol(sample_ids, observed, seed))]
    for rate in rates:
        kept = drop_at_rate(sample_ids, observed, rate, seed) & observed  # a sample with nothing stays out
        result.append(Scenario(rate_name(rate), kept, rate=rate))
    for row in patterns(len(modalities)).numpy():
        names = tuple(m for m, chosen in zip(modalities, row, strict=True) if chosen)
        complete = (observed | ~row).all(-1)
        result.append(Scenario(f"pattern_{'+'.join(names)}", complete[:, None] & row, pattern=names))
    return result


def rate_name(rate: float) -> str:
    """Return the scenario name of a missing rate; without a dot, which DVC reads as nesting."""
    return f"rate_{100 * rate:g}".replace(".", "_")


def write_masks(
    path: Path, sample_ids: Sequence[str], scenario: Scenario, modalities: Sequence[str], seed: int
) -> None:
    """Store a scenario as parquet: sample_id, modality, kept, seed; sorted, so that equal masks are equal bytes."""
    n, m = scenario.kept.shape
    frame = pd.DataFrame(
        {
            "sample_id": np.repeat(np.asarray(sample_ids, dtype=object), m),
            "modality": np.tile(np.asarray(modalities, dtype=object), n),
            "kept": scenario.kept.reshape(-1),
            "seed": np.int64(seed),
        }
    )
    with replacing(path) as temporary:
        frame.sort_values(["sample_id", "modality"], kind="stable").to_parquet(temporary, index=False)
