"""Settings of stage two and the joint stage.

Frozen and strict like `extract.config`; symbols of the paper are named where they occur (eq. 1-10).
"""

from typing import Annotated, Literal

from pydantic import Field

from extract.config import Fraction, PositiveInt, Settings, TuningSettings

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
    "momke",
    "drfuse",
    "simmlm",
    "flexmoe",
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
    experts: Literal["none", "observed"]
    """`observed`: f's logits are mixed by a gate with those of one small Transformer for each observed modality."""
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


class MoMKESettings(Settings):
    """Mixture of modality knowledge experts; the official protocol is in docs/methods.md."""

    expert_epochs: Annotated[int, Field(ge=0)]
    """First epochs of stage 1: each expert on its own modality, nothing else."""
    expert_loss: Weight
    """Weight of the loss of stage 1 in stage 2; officially 0."""
    router_level: Literal["token", "sample"]
    norm: Literal["none", "pre"]
    """`none` is official; `pre` puts a LayerNorm before attention and MLP of the experts."""
    fixed_pattern: tuple[str, ...]
    """Modalities that stage 2 sees in every sample (officially one model a pattern); empty: drawn subsets."""


class DrFuseSettings(Settings):
    """Disentangled fusion: shared and distinct vectors, class-wise attention; all weights of its loss."""

    shared_loss: Weight
    unimodal_loss: Weight
    """Of each modality's head on its distinct vector."""
    divergence: Weight
    """Between the shared vectors."""
    jsd: Literal["full", "official"]
    """`full`: both sides of the Bernoulli divergence, mean over coordinates; `official`: one side, summed."""
    orthogonality: Weight
    ranking: Weight
    """Of the attention, by the losses of the auxiliary heads."""
    keys: Literal["full", "low_rank"]
    """`full`: C D^2 weights; `low_rank`: one map and a vector for each class."""
    drawn_share: Annotated[float, Field(ge=0, le=1)]
    """Share of each batch that draws a subset; the rest keeps what it has (officially 0.3)."""


class SimMLMSettings(Settings):
    """Dynamic mixture of modality experts with the "more vs fewer" loss."""

    expert_epochs: Annotated[int, Field(ge=0)]
    """First epochs of stage 1: each expert on its own modality, nothing else."""
    expert_loss: Weight
    """Weight of the loss of stage 1 in stage 2; officially 0."""
    more_vs_fewer: Annotated[float, Field(ge=0, lt=0.5)]
    """Beside the mean loss of both sets; from 0.5 on the method would be paid for a worse smaller set."""
    gate: Literal["class", "modality"]
    """One weight for each modality and output, or for each modality."""
    mix: Literal["logits", "probabilities"]


class FlexMoESettings(Settings):
    """Missing-modality bank of Flex-MoE in front of the shared fusion."""

    complete_epochs: Annotated[int, Field(ge=0)]
    """First epochs, on complete samples alone (officially 5)."""


class ComparedSettings(Settings):
    """Own settings of the compared methods, one section a method that has any."""

    smil: SmilSettings
    medfuse: MedFuseSettings
    shaspec: ShaSpecSettings
    m3care: M3CareSettings
    momke: MoMKESettings
    drfuse: DrFuseSettings
    simmlm: SimMLMSettings
    flexmoe: FlexMoESettings


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
    more_vs_fewer: Weight
    """Weight of the loss by which more modalities must not do worse than fewer, for every method; 0 switches it off."""


class JointSettings(TuningSettings):
    """Encoders and model together on masked inputs (eq. 5 as written).

    `blocks: 0` trains the model and the placeholders on frozen encoders; `layer_decay` starts from
    `encoder_learning_rate`.
    """

    batch_size: PositiveInt
    max_epochs: PositiveInt
    patience_epochs: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    encoder_learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)]


class EvaluateSettings(Settings):
    """Missingness scenarios and intervals of the evaluation."""

    mask_seed: int
    """Seed of the stored table of dropped (sample, modality) pairs."""
    missing_rates: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    bootstrap_draws: PositiveInt
    batch_size: PositiveInt
