"""A suite file: methods x seeds x variants, and what their tables show.

Frozen and strict as `params.yaml`: every key must be there, an unknown one fails and the known ones are named. A
variant is a list of `section.key=value`, merged as `--set` does; it may change how a method is trained, never what it
is tested on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from cache.errors import UserError
from extract.config import Settings
from pipelines.params import PRESET_SECTIONS, Params, load_params
from pipelines.settings_file import explain, read_yaml
from train.config import MethodName

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
"""It becomes the name of a folder."""
Training = Literal["natural", "complete"]
ALLOWED = (*PRESET_SECTIONS, "preset", "dataset.modalities")
REFUSED = ("joint", "train.methods")


class Search(Settings):
    """Settings that every method may choose from, by its own validation figure: the same budget for all."""

    seed: Annotated[int, Field(ge=0)]
    """Training seed of the search."""
    points: tuple[tuple[str, ...], ...] = Field(min_length=1)
    """Each a list of changes of params.yaml, as a variant's."""


class Suite(Settings):
    """What runs and what is shown."""

    methods: tuple[MethodName, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    variants: dict[Name, tuple[str, ...]] = Field(min_length=1)
    """Name to changes of params.yaml."""
    training: Training
    """Training samples: all of them, or those that have every modality (missing values at test time only)."""
    search: Search | None
    """None: every method runs with the settings of params.yaml."""
    reference: str
    """The entry that is compared with each other one: a method, a variant, or `<variant>/<method>` (see `entry`)."""
    columns: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Scenario to metrics, the columns of the main table: `natural`, `protocol`, `rate_<percent>`, `pattern_<a+b>`,
    or `complete` for the pattern of all modalities."""

    def entry(self, variant: str, method: str) -> str:
        """Return the name of a row of the tables: as short as it is unique."""
        if len(self.variants) == 1:
            return method
        return variant if len(self.methods) == 1 else f"{variant}/{method}"

    @property
    def entries(self) -> list[str]:
        """Every row of the tables, in order."""
        return [self.entry(variant, method) for variant in self.variants for method in self.methods]

    @model_validator(mode="after")
    def _consistent(self) -> "Suite":
        for name in ("methods", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must name each once")
        if self.reference not in self.entries:
            raise ValueError(f"reference must be one of {', '.join(self.entries)}")
        for changes in (*self.variants.values(), *(self.search.points if self.search else ())):
            for change in changes:
                if not _is_allowed(change.partition("=")[0]):
                    raise ValueError(
                        f"a variant or search point must not change '{change}'; it may change {', '.join(ALLOWED)}"
                    )
        return self


@dataclass(frozen=True)
class BenchmarkRun:
    """One method with one seed of one variant: plain values, so that another process can do it."""

    variant: str
    method: MethodName
    seed: int
    params: Params
    training: Training
    folder: Path
    searching: bool = False
    """Trained to choose settings: the test split is not predicted."""

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.variant}/{self.method}/{self.folder.name if self.searching else f'seed{self.seed}'}"


def read_suite(path: Path) -> Suite:
    """Read and check a suite file.

    Raises:
        UserError: names the file, the key and what is allowed.
    """
    raw = read_yaml(path, f"There is no suite file {path}. Those of this project are in suites/.")
    try:
        return Suite.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Suite)}. Keys: {', '.join(Suite.model_fields)}.") from error


def plan(suite: Suite, params: Path, overrides: Sequence[str], out: Path) -> list[BenchmarkRun]:
    """Return every run of a suite without a search, parameters resolved now: a file that changes changes no run.

    Raises:
        UserError: a variant does not fit params.yaml.
    """
    return [
        BenchmarkRun(variant, method, seed, chosen, suite.training, out / variant / method / f"seed{seed}")
        for variant, chosen in resolve(suite, params, overrides).items()
        for method in suite.methods
        for seed in suite.seeds
    ]


def expected_runs(suite: Suite) -> list[str]:
    """Return the name of every run whose figures the tables show."""
    return [f"{v}/{m}/seed{seed}" for v in suite.variants for m in suite.methods for seed in suite.seeds]


def resolve(suite: Suite, params: Path, overrides: Sequence[str], point: Sequence[str] = ()) -> dict[str, Params]:
    """Return the parameters of every variant.

    Raises:
        UserError: a variant, or the point of a search, does not fit params.yaml.
    """
    found = {}
    for variant, changes in suite.variants.items():
        try:
            found[variant] = load_params(params, [*overrides, *changes, *point])
        except UserError as error:
            where = f", search point {list(point)}" if point else ""
            raise UserError(f"variant '{variant}'{where}: {error}") from error
    return found


def _is_allowed(key: str) -> bool:
    def below(names: Sequence[str]) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in names)

    return below(ALLOWED) and not below(REFUSED)
