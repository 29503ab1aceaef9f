"""What a model is, as data: everything its program and its weights' shapes follow from."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.program import Activation
from tokenworks.models.parts import FeedForward, Mixer

MAX_LAYERS = 4096
"""More than any model has; a damaged file is refused before it makes us list a billion layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Stretches a rotary encoding for longer contexts (Llama 3.1, arXiv 2407.21783): wavelengths beyond
    original_tokens / low are slowed by `factor`, those under original_tokens / high stay, between them it is mixed."""

    factor: float
    low: float
    high: float
    original_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions: `base`, and how frequencies are slowed: all by `factor`, as Llama 3 does, or one by one."""

    size: int
    """How many columns of a head are turned."""
    base: float
    factor: float = 1.0
    llama3: Llama3Scaling | None = None
    divisors: tuple[float, ...] = ()
    """[size / 2], or empty: what a GGUF file has in place of `llama3`."""

    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """[size / 2] radians per position."""
        inverse = self.base ** (-np.arange(0, self.size, 2, dtype=np.float64) / self.size) / self.factor
        if self.llama3 is not None:
            s = self.llama3
            turns = s.original_tokens * inverse / (2 * np.pi)  # whole turns within the original context
            kept = np.clip((turns - s.low) / (s.high - s.low), 0.0, 1.0)
            inverse = inverse * (kept + (1 - kept) / s.factor)
        if self.divisors:
            inverse = inverse / np.asarray(self.divisors)
        return inverse.astype(np.float32)


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
    sandwich_norms: bool = False
    """What the parts make is normalised too, before it joins the residual stream."""
    embedding_scale: float = 1.0
    logit_softcap: float = 0.0
    """0 is off."""
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
