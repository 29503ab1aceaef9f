"""What a model is, as data: everything its program and its weights' shapes follow from."""

from dataclasses import dataclass
from typing import Literal

from tokenworks.kernels.program import Activation
from tokenworks.models.parts import FeedForward, Mixer
from tokenworks.models.rope import Rope
from tokenworks.models.vision.config import VisionConfig

MAX_LAYERS = 4096
"""More than any model has; a damaged file is refused before it makes us list a billion layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of a decoder."""

    mixer: Mixer
    feed_forward: FeedForward


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder; models/decoder.py says what each field does."""

    architecture: str
    vocabulary: int
    context_tokens: int
    width: int
    layers: tuple[Layer, ...]
    ropes: dict[str, Rope]
    """By the names that attention uses."""
    norm_epsilon: float
    tied_head: bool
    norms: Literal["before", "behind", "around"] = "before"
    """Where each part has its norm, or norms: before it, or behind it, before what it makes joins the stream."""
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    """0 is off."""
    vision: VisionConfig | None = None
    """How it sees pictures, if it does."""
    kind: Literal["generate"] = "generate"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """A BERT-style text encoder that makes one vector per input; models/encoder.py says what each field does."""

    architecture: str
    vocabulary: int
    context_tokens: int
    """The longest input, special tokens included."""
    positions: int
    token_types: int
    width: int
    heads: int
    head_size: int
    mlp_width: int
    layers: int
    activation: Activation
    norm_epsilon: float
    pooling: Literal["mean", "first"]
    normalise: bool
    kind: Literal["embed"] = "embed"


ModelConfig = DecoderConfig | EncoderConfig
