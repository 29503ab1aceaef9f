"""The table of operations, as data.

A model architecture describes one step as a Program: a straight list of instructions over activation matrices.
Every value is a float32 matrix with one row per token of the step ([T, width]), or per selected row after
`select_rows` / `pool` ([R, width]). The program is built once, when a model is loaded; a backend compiles it and runs
it for every step, whatever the batch. The numpy reference, the C++ backend and a cost model all read the same list.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tokenworks.kernels.heads import LinearHeads as LinearHeads
from tokenworks.kernels.mixture import Expert as Expert
from tokenworks.kernels.mixture import Experts as Experts
from tokenworks.kernels.mixture import Route as Route
from tokenworks.kernels.recurrent import DeltaRule as DeltaRule
from tokenworks.kernels.recurrent import Recurrent as Recurrent
from tokenworks.kernels.recurrent import SelectiveScan as SelectiveScan
from tokenworks.kernels.recurrent import ShortConvolution as ShortConvolution
from tokenworks.kernels.value import Activation as Activation
from tokenworks.kernels.value import Value as Value

RowIndex = Literal["token", "position", "axis", "zero"]
"""What chooses a row of a table: see Embed."""


@dataclass(frozen=True, slots=True)
class Embed:
    """out[t] = table[index of t] * scale; `index` is the token id, the token's position, its place on the first of
    StepBatch.axes (0 without them), or always row 0."""

    output: Value
    table: str
    index: RowIndex
    scale: float


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Each group of `group` columns: x / sqrt(mean(x²) + epsilon) * weight (Zhang & Sennrich 2019, arXiv 1910.07467).

    `group` is the whole width, or the head size for per-head norms (QK-norm). `weight` has `group` elements, the same
    for all groups, or if it is `wide` one for each column of x.
    """

    output: Value
    x: Value
    weight: str
    epsilon: float
    group: int
    wide: bool


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """(x - mean) / sqrt(var + epsilon) * weight + bias over the whole width (arXiv 1607.06450). A bias of None is 0."""

    output: Value
    x: Value
    weight: str
    bias: str | None
    epsilon: float


@dataclass(frozen=True, slots=True)
class Linear:
    """out = x @ concat(weights).T + concat(biases); a weight is [out_features, in_features] in any format.

    Several weights stack along their output features, so that Q, K, V or gate, up run as one product.
    `biases` is empty, or has one name or None for each weight.
    """

    output: Value
    x: Value
    weights: tuple[str, ...]
    biases: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotates pairs (i, i + turned/2) of every head by position * inverse_frequencies[i] (arXiv 2104.09864), and
    multiplies them by `scale`; a head's columns from `turned` on stay.

    `inverse_frequencies` names a float32 weight of turned/2 elements. In place: output is x.
    With `axes`, one for each frequency, pair i is turned by row axes[i] of StepBatch.axes, if the step has them: a
    token's place in a picture (M-RoPE, arXiv 2409.12191).
    """

    output: Value
    x: Value
    head_size: int
    turned: int
    inverse_frequencies: str
    scale: float
    axes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Attend:
    """Grouped-query attention. softmax(softcap(scale * q·k)) v, heads share K/V in groups of heads / kv_heads.

    With `cache_layer` set, the step's K and V are first written to that layer's cache through the block tables, and a
    token at position p sees positions (p - window, p], or [0, p] when `window` is 0; in place of p + 1 they end where
    StepBatch.ends says, if the step has it. With `cache_layer` None (encoders) every token sees all tokens of its own
    sequence in this step, or with `windows` of its own window (StepBatch.window_starts).
    Of these only the ones less than `window` places away, unless `window` is 0.
    `softcap` 0 is off, else softcap * tanh(s / softcap). `sinks` names a weight [heads]: one more score for each head,
    which takes its share of the softmax and adds nothing (arXiv 2309.17453, learned as in gpt-oss).
    With `latent` other than 0, V is the last `latent` columns of each head of K (so are the columns of `v`) and is kept
    with it, once; out has `latent` columns for each head (arXiv 2405.04434). Only with a cache.
    """

    output: Value
    q: Value
    k: Value
    v: Value
    cache_layer: int | None
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    window: int
    softcap: float
    windows: bool = False
    sinks: str | None = None
    portion: tuple[int, int] = (0, 1)
    """(i, n): the i-th of n portions of the rows alone; together all rows. So that a run can pause between them."""
    latent: int = 0

    @property
    def value_size(self) -> int:
        """Columns of a head's result."""
        return self.latent or self.head_size


@dataclass(frozen=True, slots=True)
class Gate:
    """out = activation(gate) * up (arXiv 2002.05202).

    With a `limit` other than 0, gate counts as at most that, and up as between -limit and it. `offset` is added to up.
    """

    output: Value
    gate: Value
    up: Value
    activation: Activation
    limit: float
    offset: float


@dataclass(frozen=True, slots=True)
class Activate:
    """out = activation(x)."""

    output: Value
    x: Value
    activation: Activation


@dataclass(frozen=True, slots=True)
class Add:
    """out = a + b."""

    output: Value
    a: Value
    b: Value


@dataclass(frozen=True, slots=True)
class Scale:
    """out = x * factor."""

    output: Value
    x: Value
    factor: float


@dataclass(frozen=True, slots=True)
class ScaleRows:
    """out[t] = x[t] * by[t]; `by` is one column."""

    output: Value
    x: Value
    by: Value


@dataclass(frozen=True, slots=True)
class Softcap:
    """out = cap * tanh(x / cap)."""

    output: Value
    x: Value
    cap: float


@dataclass(frozen=True, slots=True)
class SelectRows:
    """Keeps the rows whose logits are wanted (StepBatch.logit_rows): [T, width] -> [R, width]."""

    output: Value
    x: Value


@dataclass(frozen=True, slots=True)
class Pool:
    """One row per sequence of the step, from its rows: their mean, or the first; then / l2 norm if `normalise`."""

    output: Value
    x: Value
    how: Literal["mean", "first"]
    normalise: bool


@dataclass(frozen=True, slots=True)
class Input:
    """out[t] = StepBatch.inputs[t]."""

    output: Value


@dataclass(frozen=True, slots=True)
class Inject:
    """Columns [offset, offset + width) of StepBatch.features, a row for each of StepBatch.feature_rows: they take the
    place of these rows of x, or are added to them. In place: output is x."""

    output: Value
    x: Value
    offset: int
    how: Literal["replace", "add"]


@dataclass(frozen=True, slots=True)
class Merge:
    """One row of each `count` that follow each other: side by side, [T, width] -> [T / count, count * width], or their
    mean. All of a program's have the same count, and a step's T is a multiple of it."""

    output: Value
    x: Value
    count: int
    how: Literal["concatenate", "mean"]


@dataclass(frozen=True, slots=True)
class Pause:
    """Here a run may be interrupted, and other programs run: the begin of the program's next part."""


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


@dataclass(slots=True)
class ProgramBuilder:
    """Writes a Program down while a model describes its step: the only thing that `models/` needs to know."""

    _instructions: list[Instruction] = field(default_factory=list)
    _widths: list[int] = field(default_factory=list)
    _cache_layers: list[CacheLayer] = field(default_factory=list)

    def _new(self, width: int) -> Value:
        self._widths.append(width)
        return Value(len(self._widths) - 1, 0, width, width)

    def input(self, width: int) -> Value:
        out = self._new(width)
        self._instructions.append(Input(out))
        return out

    def inject(self, x: Value, offset: int, how: Literal["replace", "add"]) -> Value:
        self._instructions.append(Inject(x, x, offset, how))
        return x

    def merge(self, x: Value, count: int, how: Literal["concatenate", "mean"]) -> Value:
        out = self._new(x.width * count if how == "concatenate" else x.width)
        self._instructions.append(Merge(out, x, count, how))
        return out

    def pause(self) -> None:
        self._instructions.append(Pause())

    def buffer(self, width: int) -> Value:
        """Room that several instructions fill, column by column."""
        return self._new(width)

    def embed(self, table: str, width: int, *, index: RowIndex = "token", scale: float = 1.0) -> Value:
        out = self._new(width)
        self._instructions.append(Embed(out, table, index, scale))
        return out

    def _keep(self, layer: CacheLayer) -> int:
        self._cache_layers.append(layer)
        return len(self._cache_layers) - 1

    def rmsnorm(
        self,
        x: Value,
        weight: str,
        epsilon: float,
        *,
        group: int | None = None,
        wide: bool = False,
        into: Value | None = None,
    ) -> Value:
        """`into` may be x."""
        out = into or self._new(x.width)
        self._instructions.append(RmsNorm(out, x, weight, epsilon, group or x.width, wide))
        return out

    def layernorm(self, x: Value, weight: str, bias: str | None, epsilon: float) -> Value:
        out = self._new(x.width)
        self._instructions.append(LayerNorm(out, x, weight, bias, epsilon))
        return out

    def linear(
        self,
        x: Value,
        weights: Iterable[str],
        width: int,
        *,
        biases: Iterable[str | None] | None = None,
        into: Value | None = None,
    ) -> Value:
        """`width` is the sum of the weights' output features."""
        out = into or self._new(width)
        self._instructions.append(Linear(out, x, tuple(weights), tuple(biases or ())))
        return out

    def linear_heads(self, x: Value, weights: Iterable[str], outputs: int, *, kept: int = 0) -> Value:
        """`outputs`: of each weight."""
        names = tuple(weights)
        out = self._new(len(names) * (kept + outputs))
        self._instructions.append(LinearHeads(out, x, names, kept))
        return out

    def rope(
        self,
        x: Value,
        head_size: int,
        inverse_frequencies: str,
        *,
        turned: int | None = None,
        scale: float = 1.0,
        axes: tuple[int, ...] = (),
    ) -> Value:
        self._instructions.append(Rope(x, x, head_size, turned or head_size, inverse_frequencies, scale, axes))
        return x

    def attend(
        self,
        q: Value,
        k: Value,
        v: Value,
        *,
        heads: int,
        kv_heads: int,
        head_size: int,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        cached: bool = True,
        windows: bool = False,
        sinks: str | None = None,
        portion: tuple[int, int] = (0, 1),
        into: Value | None = None,
    ) -> Value:
        """Each cached call takes the next cache layer. Portions behind the first go into the first one's output."""
        assert portion == (0, 1) or not cached, "portions are for encoders"
        layer = self._keep(KvLayer(kv_heads, head_size, window)) if cached else None
        out = into or self._new(heads * head_size)
        shape = (heads, kv_heads, head_size)
        self._instructions.append(Attend(out, q, k, v, layer, *shape, scale, window, softcap, windows, sinks, portion))
        return out

    def short_convolution(self, x: Value, weight: str, bias: str | None, kernel: int) -> Value:
        out = self._new(x.width)
        layer = self._keep(StateLayer((kernel - 1) * x.width))
        self._instructions.append(ShortConvolution(out, x, layer, weight, bias, kernel))
        return out

    def selective_scan(
        self,
        x: Value,
        b: Value,
        c: Value,
        steps: Value,
        *,
        decay: str,
        step_bias: str,
        skip: str,
        heads: int,
        groups: int,
        step_range: tuple[float, float],
    ) -> Value:
        out = self._new(x.width)
        head_size, state_size = x.width // heads, b.width // groups
        layer = self._keep(StateLayer(x.width * state_size))
        names, shape = (decay, step_bias, skip), (heads, head_size, groups, state_size)
        self._instructions.append(SelectiveScan(out, x, b, c, steps, layer, *names, *shape, *step_range))
        return out

    def delta_rule(
        self,
        q: Value,
        k: Value,
        v: Value,
        steps: Value,
        rates: Value,
        *,
        decay: str,
        step_bias: str,
        heads: int,
        key_heads: int,
    ) -> Value:
        out = self._new(v.width)
        key_size, value_size = k.width // key_heads, v.width // heads
        layer = self._keep(StateLayer(heads * key_size * value_size))
        shape = (heads, key_heads, key_size, value_size)
        self._instructions.append(DeltaRule(out, q, k, v, steps, rates, layer, decay, step_bias, *shape))
        return out

    def attend_latent(self, q: Value, k: Value, *, heads: int, head_size: int, latent: int, scale: float) -> Value:
        """All heads share one K, the last `latent` columns of which are V. Takes the next cache layer."""
        layer = self._keep(KvLayer(1, head_size, 0, latent))
        out = self._new(heads * latent)
        v = k.columns(head_size - latent, latent)
        self._instructions.append(Attend(out, q, k, v, layer, heads, 1, head_size, scale, 0, 0.0, latent=latent))
        return out

    def gate(self, gate: Value, up: Value, activation: Activation, *, limit: float = 0.0, offset: float = 0.0) -> Value:
        out = self._new(up.width)
        self._instructions.append(Gate(out, gate, up, activation, limit, offset))
        return out

    def activate(self, x: Value, activation: Activation) -> Value:
        out = self._new(x.width)
        self._instructions.append(Activate(out, x, activation))
        return out

    def add(self, a: Value, b: Value) -> Value:
        out = self._new(a.width)
        self._instructions.append(Add(out, a, b))
        return out

    def scale(self, x: Value, factor: float) -> Value:
        out = self._new(x.width)
        self._instructions.append(Scale(out, x, factor))
        return out

    def scale_rows(self, x: Value, by: Value) -> Value:
        out = self._new(x.width)
        self._instructions.append(ScaleRows(out, x, by))
        return out

    def route(
        self,
        logits: Value,
        top_k: int,
        *,
        score: Literal["softmax", "sigmoid"] = "softmax",
        normalise: bool,
        scale: float = 1.0,
        bias: str | None = None,
        groups: int = 1,
        kept_groups: int = 1,
        group_best: int = 1,
    ) -> Value:
        out = self._new(2 * top_k)
        grouping = (groups, kept_groups, group_best)
        self._instructions.append(Route(out, logits, top_k, score, normalise, scale, bias, *grouping))
        return out

    def experts(
        self,
        x: Value,
        routes: Value,
        experts: Iterable[Expert],
        inner: int,
        activation: Activation,
        *,
        count: int,
        limit: float = 0.0,
        offset: float = 0.0,
    ) -> Value:
        out = self._new(x.width)
        self._instructions.append(Experts(out, x, routes, tuple(experts), count, inner, activation, limit, offset))
        return out

    def softcap(self, x: Value, cap: float) -> Value:
        out = self._new(x.width)
        self._instructions.append(Softcap(out, x, cap))
        return out

    def select_rows(self, x: Value) -> Value:
        out = self._new(x.width)
        self._instructions.append(SelectRows(out, x))
        return out

    def pool(self, x: Value, how: Literal["mean", "first"], *, normalise: bool) -> Value:
        out = self._new(x.width)
        self._instructions.append(Pool(out, x, how, normalise))
        return out

    def finish(self, result: Value) -> Program:
        return Program(tuple(self._instructions), result, tuple(self._widths), tuple(self._cache_layers))
