"""What a model is, as data: everything its program and its weights' shapes follow from."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.altup import AltUp
from tokenworks.models.parts.laurel import Laurel
from tokenworks.models.parts.part import FeedForward, Mixer, Shapes
from tokenworks.models.parts.per_layer import PerLayer
from tokenworks.models.parts.rope import Rope
from tokenworks.models.parts.temperature import Temperature
from tokenworks.models.speech.config import SpeechConfig
from tokenworks.models.vision.config import VisionConfig

MAX_LAYERS = 4096
"""More than any model has; a damaged file is refused before it makes us list a billion layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of a decoder; it may lack one of the two."""

    mixer: Mixer | None
    feed_forward: FeedForward | None
    norms_input: bool = True
    """The feed-forward network gets its input normed; else it does that itself."""
    laurel: Laurel | None = None
    """Joins the stream beside the mixer."""


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
    parallel: Literal["no", "own norm", "same norm"] = "no"
    """Whether a layer's network looks at what its mixer looks at, not at the stream behind it: through a norm of its
    own, or through the mixer's. With norms before the parts."""
    centred_norms: bool = False
    """Norms take the mean away as well (LayerNorm, arXiv 1607.06450)."""
    biased_norms: bool = False
    """And add a bias."""
    biased_head: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    """0 is off."""
    per_layer: PerLayer | None = None
    """Vectors that join the stream at the end of each layer."""
    streams: AltUp | None = None
    """How several residual streams are kept, if there are several."""
    scaled_layers: bool = False
    """What a layer makes of the stream is multiplied by one number of its own, layer_scale."""
    temperature: Temperature | None = None
    """Of attention that is tempered."""
    vision: VisionConfig | None = None
    """How it sees pictures, if it does."""
    multi_token: Layer | None = None
    """A layer behind the last one that guesses a further token (models/parts/multi_token.py)."""
    kind: Literal["generate"] = "generate"

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """With the one that guesses, by number."""
        return self.layers if self.multi_token is None else (*self.layers, self.multi_token)


class EncoderBody(Protocol):
    """A row for each token of the step's inputs."""

    def write(self, b: ProgramBuilder) -> Value:
        """[T, width]"""

    def shapes(self) -> Shapes: ...


class EncoderHead(Protocol):
    """A result for each input."""

    def write(self, b: ProgramBuilder, x: Value) -> Value:
        """[T, width] -> [sequences, anything]"""

    def shapes(self, width: int) -> Shapes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """A text encoder, whose every input is one step's."""

    architecture: str
    vocabulary: int
    context_tokens: int
    """The longest input, special tokens included."""
    width: int
    body: EncoderBody
    head: EncoderHead
    ropes: dict[str, Rope] = field(default_factory=dict)
    kind: Literal["embed", "score"] = "embed"


ModelConfig = DecoderConfig | EncoderConfig | SpeechConfig
