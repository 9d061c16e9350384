"""Settings of stage one: encoders, fit and extraction.

Frozen and strict: an unknown key is an error. No field has a default, because `params.yaml` is the only
home of a value; units are in the names.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base of every settings section: immutable, unknown keys rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class TransformerSettings(Settings):
    """Size of a from-scratch Transformer encoder."""

    width: PositiveInt
    """Token width of the encoder's output."""
    layers: PositiveInt
    heads: PositiveInt
    dropout: Fraction


class TimeSeriesSettings(TransformerSettings):
    """Regularly binned multivariate series with an observed mask per cell."""

    type: Literal["timeseries"]
    bins_per_token: PositiveInt
    """Consecutive bins that form one token."""
    max_bins: PositiveInt
    """Longer series keep their last bins."""
    drop_cells: Fraction
    """Share of the observed cells that is hidden from each training sample; never at extraction or evaluation."""


class AugmentSettings(Settings):
    """Random affine changes of training images; never applied at extraction or evaluation."""

    rotate_degrees: Annotated[float, Field(ge=0)]
    translate: Fraction
    """Largest shift as a fraction of the image side."""
    scale: Fraction
    """Scale is drawn from [1 - scale, 1 + scale]."""


class PatchSettings(TransformerSettings):
    """An encoder of square patches of an image."""

    type: str
    weights: str
    image_size: PositiveInt
    """Side in pixels."""
    patch_size: PositiveInt
    channels: Literal[1, 3]
    augment: AugmentSettings | None


class ImageSettings(PatchSettings):
    """A timm Vision Transformer.

    `weights` is `scratch`, `timm:<model name>` (pretrained, from the hub or its local cache; `@<commit>` pins it), a
    local folder, or the folder of a fitted encoder.
    """

    type: Literal["vit"]


class HubImageSettings(PatchSettings):
    """A vision tower of transformers.

    `weights` is `scratch` (SigLIP's layout), `hf:<hub id>`, a local folder, or the folder of a fitted encoder.
    """

    type: Literal["hf_image"]
    revision: str | None
    """Hub commit to pin."""


class TextSettings(TransformerSettings):
    """A text encoder of transformers: BERT, DeBERTa (v1 and v3), or any other by name."""

    type: Literal["bert", "deberta", "hf_text"]
    weights: str
    """`scratch`, `hf:<hub id>`, a local folder, or the folder of a fitted encoder."""
    revision: str | None
    """Hub commit to pin."""
    max_tokens: PositiveInt
    """Longer texts are cut; includes [CLS] and [SEP]."""
    vocabulary: PositiveInt
    """Word pieces of a from-scratch tokenizer, trained on the training split."""


class AudioSettings(TransformerSettings):
    """A Transformer on log-mel frames."""

    type: Literal["logmel"]
    sample_rate_hz: PositiveInt
    window_ms: PositiveInt
    hop_ms: PositiveInt
    mels: PositiveInt
    frames_per_token: PositiveInt
    max_seconds: Annotated[float, Field(gt=0)]


class SpeechSettings(TransformerSettings):
    """wav2vec 2.0, HuBERT, WavLM or UniSpeech of transformers."""

    type: Literal["wav2vec2"]
    weights: str
    """`scratch`, `hf:<hub id>`, a local folder, or the folder of a fitted encoder."""
    revision: str | None
    """Hub commit to pin."""
    sample_rate_hz: PositiveInt
    """What the model was trained on; clips are resampled to it."""
    max_seconds: Annotated[float, Field(gt=0)]
    """Longer clips are cut."""


class ConvolutionalSpeechSettings(Settings):
    """wav2vec of 2019: convolutions of one width."""

    type: Literal["wav2vec"]
    weights: str
    """`scratch`, fairseq's `wav2vec_large.pt`, or the folder of a fitted encoder."""
    width: PositiveInt
    """512 for the published weights."""
    sample_rate_hz: PositiveInt
    """16000 for the published weights; clips are resampled to it."""
    max_seconds: Annotated[float, Field(gt=0)]
    """Longer clips are cut."""


class VideoSettings(TransformerSettings):
    """MA-Net on each frame of a clip, a Transformer over the frames."""

    type: Literal["manet"]
    weights: str
    """`scratch`, a published checkpoint (`.pth.tar`), or the folder of a fitted encoder."""
    frames: PositiveInt
    """Of a clip, evenly spaced; a shorter clip has as many tokens as frames."""
    image_size: PositiveInt
    """Side in pixels; 224 for published weights."""
    base_channels: PositiveInt
    """After the first layer; 64 for published weights."""
    reverse_second_chain: bool
    """The multi-scale blocks of the code since April 2023, whose second chain goes from the last group to the first;
    false for the published weights, which are older."""


EncoderSettings = Annotated[
    TimeSeriesSettings
    | ImageSettings
    | HubImageSettings
    | TextSettings
    | AudioSettings
    | SpeechSettings
    | ConvolutionalSpeechSettings
    | VideoSettings,
    Field(discriminator="type"),
]


class LoraSettings(Settings):
    """Low-rank adapters in the attention projections, merged into the encoder when the training is over."""

    rank: PositiveInt
    alpha: PositiveInt
    """The adapters' product is scaled by alpha / rank."""
    dropout: Fraction
    """Of an adapter's input."""


class TuningSettings(Settings):
    """How encoders are trained, in fit and in the joint stage."""

    blocks: Literal["all"] | Annotated[int, Field(ge=0)]
    """`all`, or how many of each encoder's last blocks are trained; nothing else of it is, but the placeholder."""
    lora: LoraSettings | None
    """Adapters in place of the weights of these blocks; null: the weights themselves."""
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    """Learning rate of a block as a share of the next one's; the last block's is this share of the encoder's rate."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Steps over which the learning rate rises linearly to its value."""
    precision: Literal["float32", "bfloat16", "float16"]
    """Of the forward pass (autocast); weights are float32. `float16` needs a CUDA device."""
    micro_batches: PositiveInt
    """Parts of a batch that are computed one after the other; their gradients add up to the batch's."""
    checkpointing: bool
    """Gradient checkpointing in the encoders: less memory, more time."""

    @model_validator(mode="after")
    def _adapters_have_a_block(self) -> Self:
        if self.lora is not None and self.blocks == 0:
            raise ValueError(
                "lora puts adapters into trained blocks, and blocks is 0. Set blocks to all, or lora: null"
            )
        return self


class FitSettings(TuningSettings):
    """Unimodal training of one encoder: head on the frozen encoder first, then the encoder too.

    An encoder that starts from scratch is trained whole from the first epoch: `frozen_epochs`, `blocks`, `lora` and
    `layer_decay` are for those that start from published or fitted weights.
    """

    batch_size: PositiveInt
    head: Literal["linear", "attention"]
    """Pooling under the linear layer: the mean of the tokens, or attention of a learned query to them."""
    frozen_epochs: Annotated[int, Field(ge=0)]
    """Epochs with the encoder frozen. With `blocks: 0`, a probe, there are `max_epochs` of them and no others."""
    max_epochs: PositiveInt
    patience_epochs: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["constant", "cosine"]
    """Learning rate over the epochs; `cosine` falls to zero at `max_epochs`."""
    head_learning_rate: Annotated[float, Field(gt=0)]
    """While the encoder is frozen."""
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)]


class ExtractSettings(Settings):
    """Running the encoders over every sample."""

    batch_size: PositiveInt
    """Most samples of a batch."""
    batch_tokens: PositiveInt
    """Most tokens of a batch, padding included; a longer sample is a batch of its own."""
    workers: Annotated[int, Field(ge=0)]
    """Processes that read and preprocess values ahead of the encoder; 0: this one does."""
    compile: bool
    """Let torch compile the encoder's forward pass: faster after a minute, and other last bits of the tokens."""
    dtype: Literal["float16", "bfloat16", "float32", "int8"]
    """Stored precision; int8 keeps one scale a token."""
    compression: Literal["none", "zstd"]
    """Of the stored tokens; for transport, since compressed parts cannot be mapped."""
    precision: Literal["float32", "bfloat16", "float16"]
    """Compute precision of the forward pass; float16 on a GPU only."""
    sorted_batches: PositiveInt
    """Batches of a chunk, whose samples are sorted by length, so that little is spent on padding; what a lost worker
    had of a chunk is computed again."""
    part_megabytes: Annotated[float, Field(gt=0)]
    """Largest part of the cache, in 10^6 bytes of tokens, unless one chunk is larger: large parts make few files."""
    part_minutes: Annotated[float, Field(gt=0)]
    """A part is published after this time even if it is smaller: what a kill can lose."""

    @property
    def part_bytes(self) -> float:
        """Largest part in bytes of tokens."""
        return self.part_megabytes * 1e6
