"""Settings of stage two and the joint stage.

Frozen and strict like `extract.config`; symbols of the paper are named where they occur (eq. 1-10).
"""

from typing import Annotated, Literal

from pydantic import Field

from extract.config import Fraction, PositiveInt, Settings

MethodName = Literal[
    "selfmask",
    "modality_dropout",
    "zero_fill",
    "random_fill",
    "learned_token",
    "smil",
    "medfuse",
    "shaspec",
    "m3care",
]
Draw = Literal["natural", "batch", "sample"]
"""Training missingness: the natural one, or a draw for the batch or for each sample on top of it."""
Weight = Annotated[float, Field(ge=0)]


class ModelSettings(Settings):
    """Sizes shared by every method, so that a comparison compares methods."""

    width: PositiveInt
    """d, the shared token width."""
    predictor_layers: PositiveInt
    """Layers of g and h."""
    fusion_layers: PositiveInt
    """Layers of f."""
    heads: PositiveInt
    dropout: Fraction
    pooling: Literal["cls", "mean"]
    """How f turns tokens into one vector."""
    head: Literal["linear", "residual_mlp"]
    missing_tokens_cap: PositiveInt
    """Upper bound of T^(m), the fixed number of tokens that stand for a missing modality."""


class SelfMaskSettings(Settings):
    """Every decision of the method that the paper leaves open is a field."""

    alpha: Weight
    """Weight of L_obs (eq. 10)."""
    beta: Weight
    """Weight of L_cross (eq. 10)."""
    ratio_observed: Annotated[float, Field(gt=0, le=1)]
    """Share of valid tokens masked for L_obs."""
    ratio_cross: Annotated[float, Field(gt=0, le=1)]
    """Share of valid tokens masked for L_cross."""
    tau: Annotated[float, Field(ge=0, le=1)]
    """Momentum of the moving average of g."""
    draw_per: Literal["batch", "sample"]
    reconstruction: Literal["sum", "mean"]
    """Over the d features of eq. 6 and 8."""
    target_grad: bool
    target_norm: Literal["none", "layer"]
    """`layer`: targets and predictions are compared after a LayerNorm without parameters."""
    mask_policy: Literal["learned", "random", "attention"]
    mask_gradient: Literal["straight_through", "adversarial", "none"]
    positions: Literal["none", "learned"]
    task_from: Literal["masked", "unmasked"]
    """Which prediction of the missing tokens the task sees in training."""
    fusion_sees_imputed: bool
    """False: f attends to observed tokens only (the imputation then acts through the losses alone)."""
    complete_task: Weight
    """Weight of the task loss on everything that the sample naturally has."""
    distill: Weight
    """Weight of KL(incomplete prediction || the model's own prediction on everything the sample has)."""


class SmilSettings(Settings):
    """SMIL; `priors` and `clean_task` stand for the stages before the meta-training."""

    draw: Draw
    order: Literal["first", "second"]
    """Of the derivative through the inner step."""
    inner_rate: Annotated[float, Field(ge=0)]
    """Step size of the inner step."""
    priors: PositiveInt
    """K, rows of each modality's dictionary."""
    prior_momentum: Fraction
    """Of the moving K-means that keeps the dictionary."""
    weights: Literal["softplus", "gaussian"]
    """Of the dictionary's rows: the official code's, or the paper's draw around one."""
    combine: Literal["add", "multiply"]
    """How the regulariser acts on a feature."""
    feature: Weight
    """Weight of the squared distances between the features of incomplete and complete rows."""
    clean_task: Weight
    """Weight of the task loss on complete rows."""


class MedFuseSettings(Settings):
    """MedFuse."""

    draw: Draw
    first: tuple[str, ...]
    """Modalities at the front of the sequence; the others follow in the order of the data set."""
    shuffle: bool
    """A new order for each training batch."""
    incomplete_share: Annotated[float, Field(ge=0, le=1)]
    """Share of the naturally incomplete rows that train."""
    unimodal: Weight
    """Weight of the losses of stage 1."""


class ShaSpecSettings(Settings):
    """ShaSpec."""

    draw: Draw
    alpha: Weight
    """Weight of l_dao."""
    beta: Weight
    """Weight of l_dco."""
    alignment: Literal["l1", "mse", "kl", "ce"]
    """Form of l_dao."""
    missing: Literal["mean", "first"]
    """What stands for a missing modality: eq. 4, or the official code's first shared vector."""


class M3CareSettings(Settings):
    """M3Care."""

    draw: Draw
    neighbours: Literal["memory", "batch"]
    """In evaluation: stored training rows, or the other rows of the batch (the official mode)."""
    memory: PositiveInt
    """Training rows that are remembered."""
    similarity: Literal["sum", "product"]
    """How the two kernels of a modality combine, as in the official code for OV or for ODIR."""
    threshold: Annotated[float, Field(gt=0, lt=1)]
    """Initial lambda: weaker edges are cut."""
    normalise_rows: bool
    """Divide by the weight of all neighbours, so that their number does not matter; the official code does not."""
    norm_penalty: Weight
    """gamma, weight of the difference of norms."""


class ComparedSettings(Settings):
    """Own settings of the compared methods, one section a method that has any."""

    smil: SmilSettings
    medfuse: MedFuseSettings
    shaspec: ShaSpecSettings
    m3care: M3CareSettings


class TrainSettings(Settings):
    """Loop of stage two, the same for every method."""

    methods: tuple[MethodName, ...]
    batch_size: PositiveInt
    max_epochs: PositiveInt
    patience_epochs: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)]
    select_on: Literal["natural", "protocol", "both"]
    """Missingness of the validation split on which the best epoch is chosen; `both` is their mean."""
    precision: Literal["float32", "bfloat16"]
    """Mixed precision on a GPU; the CPU computes in float32."""
    memory_gb: Annotated[float, Field(gt=0)] | None
    """Memory for tokens, in 10^9 bytes; larger caches are streamed. null: always resident."""


class JointSettings(Settings):
    """Encoders and model together on masked inputs (eq. 5 as written)."""

    blocks: Literal["all"] | PositiveInt
    """`all`, or how many of each encoder's last blocks are trained."""
    batch_size: PositiveInt
    max_epochs: PositiveInt
    patience_epochs: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    encoder_learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)]
    checkpointing: bool
    """Gradient checkpointing in the encoders: less memory, more time."""


class EvaluateSettings(Settings):
    """Missingness scenarios and intervals of the evaluation."""

    mask_seed: int
    """Seed of the stored table of dropped (sample, modality) pairs."""
    missing_rates: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    bootstrap_draws: PositiveInt
    batch_size: PositiveInt
