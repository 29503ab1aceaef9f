"""A Program: one step of a model, and what it keeps between steps."""

from dataclasses import dataclass

from tokenworks.kernels.program.attention import Attend, Rope
from tokenworks.kernels.program.elementwise import (
    Activate,
    Add,
    Gate,
    LayerNorm,
    Multiply,
    RmsNorm,
    Scale,
    ScaleRows,
    Softcap,
)
from tokenworks.kernels.program.experts import Experts, Route
from tokenworks.kernels.program.linear import Linear, LinearHeads
from tokenworks.kernels.program.recurrent import Recurrent
from tokenworks.kernels.program.rows import Embed, Inject, Input, Merge, Pause, Pool, SelectRows
from tokenworks.kernels.program.streams import MatchMagnitude, MixStreams, Sparsify
from tokenworks.kernels.program.value import Value

Instruction = (
    Input
    | Inject
    | Merge
    | Pause
    | Embed
    | RmsNorm
    | LayerNorm
    | Linear
    | LinearHeads
    | Rope
    | Attend
    | Recurrent
    | Gate
    | Activate
    | Add
    | Scale
    | ScaleRows
    | Multiply
    | MixStreams
    | MatchMagnitude
    | Sparsify
    | Route
    | Experts
    | Softcap
    | SelectRows
    | Pool
)


@dataclass(frozen=True, slots=True)
class KvLayer:
    """Kept between steps: K and V of every token."""

    kv_heads: int
    head_size: int
    window: int
    latent: int = 0
    """V is these last columns of K (see Attend). A cache of int8 keeps such layers in float16: their rotary columns and
    the others differ too much in size to share a scale, and one vector for all heads is small already."""


@dataclass(frozen=True, slots=True)
class StateLayer:
    """Kept between steps: so many float32 numbers of each sequence, however long it is."""

    floats: int


CacheLayer = KvLayer | StateLayer
"""What one instruction keeps between steps: Program.cache_layers, numbered as its `cache_layer`."""


@dataclass(frozen=True, slots=True)
class Program:
    """One step of a model. `result` is the logits [R, vocabulary], or the vectors [sequences, width] of an encoder."""

    instructions: tuple[Instruction, ...]
    result: Value
    buffer_widths: tuple[int, ...]
    cache_layers: tuple[CacheLayer, ...]
