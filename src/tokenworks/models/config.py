"""What a model is, as data: everything its program and its weights' shapes follow from."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.program import Activation

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

    base: float
    factor: float = 1.0
    llama3: Llama3Scaling | None = None
    divisors: tuple[float, ...] = ()
    """[head_size / 2], or empty: what a GGUF file has in place of `llama3`."""

    def inverse_frequencies(self, head_size: int) -> npt.NDArray[np.float32]:
        """[head_size / 2] radians per position."""
        inverse = self.base ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size) / self.factor
        if self.llama3 is not None:
            s = self.llama3
            turns = s.original_tokens * inverse / (2 * np.pi)  # whole turns within the original context
            kept = np.clip((turns - s.low) / (s.high - s.low), 0.0, 1.0)
            inverse = inverse * (kept + (1 - kept) / s.factor)
        if self.divisors:
            inverse = inverse / np.asarray(self.divisors)
        return inverse.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """How one layer of a decoder differs from the next: its window (0: sees all), its rotary positions."""

    window: int
    rope: Literal["global", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder transformer; models/decoder.py says what each field does."""

    architecture: str
    vocabulary: int
    context_tokens: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    layers: tuple[DecoderLayer, ...]
    ropes: dict[str, Rope]
    """By the names that layers use."""
    activation: Activation
    norm_epsilon: float
    attention_scale: float
    tied_head: bool
    biased: frozenset[str] = frozenset()
    """The linear maps that have a bias, of q k v o gate up down."""
    qk_norm: bool = False
    sandwich_norms: bool = False
    """Attention's and the MLP's outputs are normalised too, before they join the residual stream."""
    embedding_scale: float = 1.0
    attention_softcap: float = 0.0
    """0 is off."""
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
