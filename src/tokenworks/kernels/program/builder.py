"""How a model writes its program down."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tokenworks.kernels.program.attention import Attend, Keep, Rope
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
from tokenworks.kernels.program.experts import Expert, Experts, Route
from tokenworks.kernels.program.linear import Linear, LinearHeads
from tokenworks.kernels.program.recurrent import DeltaRule, SelectiveScan, ShortConvolution
from tokenworks.kernels.program.rows import Embed, Inject, Input, Merge, Pause, Pool, RowIndex, SelectRows
from tokenworks.kernels.program.step import CacheLayer, Instruction, KvLayer, Program, StateLayer
from tokenworks.kernels.program.streams import MatchMagnitude, MixStreams, Sparsify
from tokenworks.kernels.program.value import Activation, Value


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

    def embed(
        self, table: str, width: int, *, index: RowIndex = "token", scale: float = 1.0, into: Value | None = None
    ) -> Value:
        out = into or self._new(width)
        self._instructions.append(Embed(out, table, index, scale))
        return out

    def _keep(self, layer: CacheLayer) -> int:
        self._cache_layers.append(layer)
        return len(self._cache_layers) - 1

    def rmsnorm(
        self,
        x: Value,
        weight: str | None,
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
        k: Value | None,
        v: Value | None,
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
        source: int | None = None,
        into: Value | None = None,
        begin: int = 0,
        end: int = 0,
        chunked: bool = False,
    ) -> Value:
        """Each cached call takes the next cache layer, or layer `source`, which without k and v it only reads. Portions
        behind the first go into the first one's output."""
        assert portion == (0, 1) or not cached, "portions are for encoders"
        assert (k is None) == (v is None) and (k is not None or source is not None), "k and v, or where they are"
        layer = source
        if cached and source is None:
            layer = self._keep(KvLayer(kv_heads, head_size, window))
        out = into or self._new(heads * head_size)
        shape = (heads, kv_heads, head_size)
        read = (q, k, v, layer, *shape)
        attend = Attend(
            out, *read, scale, window, softcap, windows, sinks, portion, begin=begin, end=end, chunked=chunked
        )
        self._instructions.append(attend)
        return out

    def keep(self, k: Value, v: Value, *, kv_heads: int, head_size: int) -> int:
        """Takes the next cache layer; returns its number, as `attend` wants it for its `source`."""
        layer = self._keep(KvLayer(kv_heads, head_size, 0))
        self._instructions.append(Keep(k, v, layer))
        return layer

    def short_convolution(
        self, x: Value, weight: str, bias: str | None, kernel: int, *, activated: bool = True
    ) -> Value:
        out = self._new(x.width)
        layer = self._keep(StateLayer((kernel - 1) * x.width))
        self._instructions.append(ShortConvolution(out, x, layer, weight, bias, kernel, activated))
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
        alternating: bool = False,
    ) -> Value:
        out = self._new(v.width)
        key_size, value_size = k.width // key_heads, v.width // heads
        layer = self._keep(StateLayer(heads * key_size * value_size))
        shape = (heads, key_heads, key_size, value_size)
        self._instructions.append(DeltaRule(out, q, k, v, steps, rates, layer, decay, step_bias, *shape, alternating))
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

    def add(self, a: Value, b: Value, *, into: Value | None = None) -> Value:
        """`into` may be a or b."""
        out = into or self._new(a.width)
        self._instructions.append(Add(out, a, b))
        return out

    def scale(self, x: Value, factor: float, *, into: Value | None = None) -> Value:
        """`into` may be x."""
        out = into or self._new(x.width)
        self._instructions.append(Scale(out, x, factor))
        return out

    def scale_rows(self, x: Value, by: Value, *, into: Value | None = None) -> Value:
        out = into or self._new(x.width)
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
        expert_scales: str | None = None,
        groups: int = 1,
        kept_groups: int = 1,
        group_best: int = 1,
    ) -> Value:
        out = self._new(2 * top_k)
        grouping = (groups, kept_groups, group_best)
        self._instructions.append(
            Route(out, logits, top_k, score, normalise, scale, bias, *grouping, expert_scales=expert_scales)
        )
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

    def multiply(self, x: Value, weight: str, *, wide: bool = True) -> Value:
        out = self._new(x.width)
        self._instructions.append(Multiply(out, x, weight, wide))
        return out

    def mix_streams(self, x: Value, coefficients: Value, inputs: int, *, offset: float = 0.0) -> Value:
        out = self._new(coefficients.width // inputs * (x.width // inputs))
        self._instructions.append(MixStreams(out, x, coefficients, inputs, offset))
        return out

    def match_magnitude(self, x: Value, like: Value, *, least: float, into: Value | None = None) -> Value:
        """`into` may be x."""
        out = into or self._new(x.width)
        self._instructions.append(MatchMagnitude(out, x, like, least))
        return out

    def sparsify(self, x: Value, deviations: float, *, into: Value | None = None) -> Value:
        """`into` may be x."""
        out = into or self._new(x.width)
        self._instructions.append(Sparsify(out, x, deviations))
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

    def finish(self, result: Value, *, hidden: Value | None = None) -> Program:
        return Program(tuple(self._instructions), result, tuple(self._widths), tuple(self._cache_layers), hidden)
