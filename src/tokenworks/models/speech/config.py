"""A speech model as data; encoder.py and decoder.py say what each field does."""

from dataclasses import dataclass, field
from typing import Literal

from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.rope import Rope


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The layers of one side."""

    layers: int
    heads: int
    mlp: Mlp


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechConfig:
    """Whisper (arXiv 2212.04356): a transformer with an encoder of sounds and a decoder of text."""

    architecture: str
    vocabulary: int
    width: int
    bins: int
    """Tones of the spectrogram."""
    heard: int
    """Rows that the encoder makes of thirty seconds. They are the first tokens of every sequence."""
    written: int
    """The most tokens of text."""
    encoder: Stack
    decoder: Stack
    key_biased: bool = False
    """Maps to K have a bias in the file, which is zero."""
    norm_epsilon: float = 1e-5
    ropes: dict[str, Rope] = field(default_factory=dict)
    """None: positions are learned."""
    kind: Literal["transcribe"] = "transcribe"

    @property
    def context_tokens(self) -> int:
        return self.heard + self.written
