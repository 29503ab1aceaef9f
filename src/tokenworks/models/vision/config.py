"""A picture's encoder as data; models/vision/encoder.py and pixels.py say what each field does."""

from dataclasses import dataclass
from typing import Literal, Protocol

from tokenworks.kernels.program import Activation, ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes


class Connector(Protocol):
    """What turns `count` rows of the encoder, neighbours in the picture, into one embedding of the decoder."""

    def write(self, b: ProgramBuilder, name: str, x: Value, count: int, width: int, into: Value | None) -> Value:
        """[T, encoder's width] -> [T / count, width]; `into`: where to, if not to a value of its own."""

    def shapes(self, encoder_width: int, count: int, width: int) -> Shapes:
        """`width`: of the decoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """A vision transformer (arXiv 2010.11929) over one picture, or one tile of one, at a time."""

    patch: int
    """Pixels of a patch's side."""
    frames: int = 1
    """A patch holds so many copies of itself: encoders that were made for films."""
    width: int
    heads: int
    layers: int
    mlp_width: int
    activation: Activation
    gated: bool = False
    """The feed-forward network has a gate."""
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float
    last_norm: bool = True
    """There is one behind the last layer."""
    patch_bias: bool = True
    positions: Literal["none", "table", "nearest", "bilinear"]
    """Learned positions: a table's entry i for patch i; a table of a square grid, whose nearest entry or whose four
    around it, weighted, are taken for each patch."""
    table_side: int = 0
    """That grid's."""
    rope_base: float = 0.0
    """Rotary positions along both axes; 0: none."""
    window: int = 0
    """In most layers a patch sees only those of its own window, with so many merged rows a side; 0: all, everywhere."""
    full_layers: frozenset[int] = frozenset()
    """Layers without windows."""
    merge: int
    """Merged rows are made of squares of patches with this side."""
    connector: Connector
    deep: tuple[tuple[int, Connector], ...] = ()
    """Also what these layers make goes to the decoder: to be added behind its first layers (arXiv 2406.04334)."""
    most_patches: int
    """Of a picture."""
    rescale: float
    """A pixel's value is first multiplied by it, then normalised, channel by channel."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sees_ahead: bool = False
    """In the decoder the tokens of a picture see each other, not only those before them."""
    along_axes: bool = False
    """The decoder's rotary positions run along the picture's axes (M-RoPE)."""

    @property
    def patch_width(self) -> int:
        return 3 * self.frames * self.patch**2

    @property
    def features(self) -> int:
        """How many embeddings of the decoder's width it makes of a merged row."""
        return 1 + len(self.deep)
