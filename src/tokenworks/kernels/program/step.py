"""A Program: one step of a model, and what it keeps between steps."""

from dataclasses import dataclass

from tokenworks.kernels.program.attention import Attend, Keep, Rope
from tokenworks.kernels.program.collective import AllGather, AllReduce, Broadcast
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
    | Keep
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
    | AllReduce
    | AllGather
    | Broadcast
)


@dataclass(frozen=True, slots=True)
class KvLayer:
    """Kept between steps: K and V of every token."""

    kv_heads: int
    head_size: int
    window: int
    latent: int = 0
    """V is these last columns of K (see Attend). In a cache of int8 these and the columns before them have a scale of
    their own each."""


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
    hidden: Value | None = None
    """Rows handed out beside the result."""
    sequel: "Program | None" = None
    """Another step, run when it is asked for, over the same blocks of the cache: its cache layers lie behind these."""

    @property
    def steps(self) -> "tuple[Program, ...]":
        """It and its sequel."""
        return (self,) if self.sequel is None else (self, self.sequel)

    @property
    def all_cache_layers(self) -> tuple[CacheLayer, ...]:
        return tuple(layer for step in self.steps for layer in step.cache_layers)
