"""Binds a plan's calls to memory: each becomes a function of the step."""

from collections.abc import Callable, Mapping, Sequence

import torch

from tokenworks.kernels.backend import Limits
from tokenworks.kernels.cuda.adapters.slots import Adapters
from tokenworks.kernels.cuda.attention.launch import Shape, attend, reserve, splits_for
from tokenworks.kernels.cuda.attention.place import HeadPart, Rotation, place
from tokenworks.kernels.cuda.elements import plain
from tokenworks.kernels.cuda.elements.gate import gate
from tokenworks.kernels.cuda.elements.norm import Groups, norm
from tokenworks.kernels.cuda.elements.rows import gather
from tokenworks.kernels.cuda.experts.layer import ExpertWeights, experts
from tokenworks.kernels.cuda.experts.routing import route
from tokenworks.kernels.cuda.inputs import Step
from tokenworks.kernels.cuda.plan import ELEMENT_BYTES, Launch, Part, Place, Plan, Product
from tokenworks.kernels.cuda.products.finish import Finish, Gated
from tokenworks.kernels.cuda.recurrent.convolution import short_convolution
from tokenworks.kernels.cuda.recurrent.launch import delta_rule, selective_scan
from tokenworks.kernels.cuda.scratch import Scratch
from tokenworks.kernels.cuda.weights import Weights
from tokenworks.kernels.flow import RowKind
from tokenworks.kernels.group import Group
from tokenworks.kernels.program import (
    Activate,
    Add,
    AllGather,
    AllReduce,
    Attend,
    Broadcast,
    DeltaRule,
    Embed,
    Experts,
    Gate,
    Inject,
    Input,
    LayerNorm,
    LinearHeads,
    MatchMagnitude,
    Merge,
    MixStreams,
    Multiply,
    Pool,
    Program,
    Recurrent,
    RmsNorm,
    Route,
    Scale,
    ScaleRows,
    SelectiveScan,
    SelectRows,
    ShortConvolution,
    Softcap,
    Sparsify,
    Value,
)
from tokenworks.kernels.program.recurrent import inputs_of, weights_of
from tokenworks.protocol.errors import ModelError

Bound = Callable[[Step], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Binder:
    """Of one program."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        limits: Limits,
        device: torch.device,
        weights: Weights,
        caches: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
        states: Mapping[int, torch.Tensor],
        arena: torch.Tensor,
        adapters: Adapters,
        scratch: Scratch,
    ) -> None:
        self._plan, self._limits, self._device = plan, limits, device
        self._weights, self._caches, self._states, self._arena = weights, caches, states, arena
        self._adapters = adapters
        self._scratch = scratch
        self.group: Group[torch.Tensor] | None = None
        """The other ranks, if there are some, from when on launches are in earnest."""
        shapes = [_shape_of(op) for op in program.instructions if isinstance(op, Attend)]
        self.tile_tokens = sorted({shape.tile_tokens for shape in shapes})

    def view(self, value: Value) -> torch.Tensor:
        """[most rows, width]: the value's columns of its buffer."""
        number = value.buffer
        precision, kind = self._plan.precisions[number], self._plan.buffer_rows[number]
        count = self._most(kind) * value.stride * ELEMENT_BYTES[precision]
        at = self._plan.buffer_offsets[number]
        whole = self._arena[at : at + count].view(DTYPES[precision]).view(-1, value.stride)
        return whole[:, value.offset : value.offset + value.width]

    def _most(self, kind: RowKind) -> int:
        return {
            "tokens": max(self._limits.step_tokens, self._limits.sequences, self._limits.logit_rows),
            "selected": self._limits.logit_rows,
            "sequences": self._limits.sequences,
            "merged": self._limits.step_tokens // self._plan.merged,
        }[kind]

    def bind(self, launch: Launch) -> list[Bound]:
        """What runs it; nothing where another call does its work. Raises ModelError for what this backend does not
        run."""
        call, kind = launch.call, launch.rows
        match call:
            case Product():
                return [self._product(call, kind)]
            case Place():
                return [self._place(call, kind)]
            case Attend():
                return [] if call.portion[0] else [self._attend(call, kind)]
            case Embed():
                return [self._embed(call)]
            case RmsNorm(output=output, x=x, weight=name, epsilon=epsilon, group=group, wide=wide):
                to, of = self.view(output), self.view(x)
                by = None if name is None else self._weights.vector(name)
                shape = Groups(group, wide, epsilon)
                return [lambda step: norm(of[: (n := step.rows[kind])], to[:n], by, None, shape)]
            case LayerNorm(output=output, x=x, weight=name, bias=bias, epsilon=epsilon):
                to, of, by = self.view(output), self.view(x), self._weights.vector(name)
                shift = None if bias is None else self._weights.vector(bias)
                shape = Groups(x.width, False, epsilon, centred=True)
                return [lambda step: norm(of[: (n := step.rows[kind])], to[:n], by, shift, shape)]
            case Gate(output=output, gate=x, up=up):
                to, of, above = self.view(output), self.view(x), self.view(up)
                act = (call.activation, call.limit, call.offset)
                return [lambda step: gate(of[: (n := step.rows[kind])], above[:n], to[:n], *act)]
            case Activate(output=output, x=x, activation=activation):
                to, of = self.view(output), self.view(x)
                return [lambda step: gate(of[: (n := step.rows[kind])], None, to[:n], activation, 0.0, 0.0)]
            case SelectRows(output=output, x=x):
                to, of = self.view(output), self.view(x)
                return [lambda step: gather(of, step.arrays["logit_rows"], to[: step.rows["selected"]])]
            case Pool(output=output, x=x):
                to, of, pool = self.view(output), self.view(x), (call.how, call.normalise)
                return [
                    lambda step: plain.pool(
                        to[: step.rows["sequences"]], of[: step.rows["tokens"]], step.arrays["row_starts"], *pool
                    )
                ]
            case Merge(output=output, x=x):
                to, of = self.view(output), self.view(x)
                return [lambda step: plain.merge(call, to[: step.rows["merged"]], of[: step.rows["tokens"]])]
            case _:
                return [self._simple(call, kind)]

    def _simple(self, call: object, kind: RowKind) -> Bound:
        """Row by row, by PyTorch's own operations."""
        match call:
            case Add(output=output, a=a, b=b):
                to, first, second = self.view(output), self.view(a), self.view(b)
                return lambda step: plain.add(to[: (n := step.rows[kind])], first[:n], second[:n])
            case Scale(output=output, x=x, factor=factor):
                to, of = self.view(output), self.view(x)
                return lambda step: plain.multiply(to[: (n := step.rows[kind])], of[:n], factor)
            case ScaleRows(output=output, x=x, by=by):
                to, of, other = self.view(output), self.view(x), self.view(by)
                return lambda step: plain.multiply(to[: (n := step.rows[kind])], of[:n], other[:n])
            case Multiply(output=output, x=x, weight=weight):
                to, of, vector = self.view(output), self.view(x), self._weights.vector(weight)
                return lambda step: plain.multiply(to[: (n := step.rows[kind])], of[:n], vector)
            case Softcap(output=output, x=x, cap=cap):
                to, of = self.view(output), self.view(x)
                return lambda step: plain.softcap(to[: (n := step.rows[kind])], of[:n], cap)
            case MixStreams(output=output, x=x, coefficients=by):
                to, of, other = self.view(output), self.view(x), self.view(by)
                return lambda step: plain.mix_streams(call, to[: (n := step.rows[kind])], of[:n], other[:n])
            case MatchMagnitude(output=output, x=x, like=like):
                to, of, other = self.view(output), self.view(x), self.view(like)
                return lambda step: plain.match_magnitude(call, to[: (n := step.rows[kind])], of[:n], other[:n])
            case Sparsify(output=output, x=x):
                to, of = self.view(output), self.view(x)
                return lambda step: plain.sparsify(call, to[: (n := step.rows[kind])], of[:n])
            case Route(output=output, x=x):
                to, of = self.view(output), self.view(x)
                added = None if call.bias is None else self._weights.vector(call.bias)
                scales = None if call.expert_scales is None else self._weights.vector(call.expert_scales)
                return lambda step: route(call, to[: (n := step.rows[kind])], of[:n], added, scales)
            case LinearHeads(output=output, x=x, kept=kept):
                to, of, matrices = self.view(output), self.view(x), self._weights.stack(call.weights)
                return lambda step: plain.linear_heads(to[: (n := step.rows[kind])], of[:n], matrices, kept)
            case AllReduce() | AllGather() | Broadcast():
                return self._collective(call, kind)
            case Experts(output=output, x=x, routes=routes):
                to, of, other, chosen = self.view(output), self.view(x), self.view(routes), self._expert_weights(call)
                act = (call.activation, call.limit, call.offset)
                return lambda step: experts(of[: (n := step.rows[kind])], other[:n], to[:n], chosen, *act)
            case ShortConvolution() | SelectiveScan() | DeltaRule():
                return self._recurrent(call)
            case Input(output=output):
                to = self.view(output)

                def bring(step: Step) -> None:
                    assert step.inputs is not None, "this program takes inputs"
                    given = len(step.inputs)
                    to[:given].copy_(step.inputs)
                    to[given : step.rows[kind]].zero_()  # those that fill up a graph

                return bring
            case Inject(output=output, offset=offset, how=how, x=x):
                to = self.view(output)

                def inject(step: Step) -> None:
                    if step.features is not None:
                        given = step.features[:, offset : offset + x.width].to(to.dtype)
                        rows = step.arrays["feature_rows"].long()
                        to[rows] = given if how == "replace" else to[rows] + given

                return inject
            case _:
                raise ModelError(f"The GPU backend does not run {type(call).__name__} yet.")

    def _collective(self, call: AllReduce | AllGather | Broadcast, kind: RowKind) -> Bound:
        x, out = self.view(call.x), self.view(call.output)

        def meet(step: Step) -> None:
            n = step.rows[kind]
            if self.group is None or not n:
                return
            match call:
                case AllReduce():
                    self.group.all_reduce(x[:n])
                case Broadcast():
                    self.group.broadcast(x[:n])
                case AllGather(widths=widths):
                    self.group.all_gather(x[:n], out[:n], widths)

        return meet

    def _product(self, call: Product, kind: RowKind) -> Bound:
        linear, out, x = call.linear, self.view(call.output), self.view(call.linear.x)
        residual = None if call.residual is None else self.view(call.residual)
        matrix = self._weights.matrix(linear.weights)
        bias = self._bias(call)
        gated = None if call.gate is None else Gated(call.gate.activation, call.gate.limit, call.gate.offset)
        matrix.reserve(Finish(out, self._scratch, residual, bias, gated))
        adapted = self._adapters.product(linear.weights, self._weights.heights(linear.weights), matrix.in_features)

        def run(step: Step) -> None:
            n = step.rows[kind]
            addend = adapted.addend(x[:n], step.adapted(kind))
            added_to = None if residual is None else residual[:n]
            matrix.multiply(x[:n], Finish(out[:n], self._scratch, added_to, bias, gated, addend))

        return run

    def _recurrent(self, call: Recurrent) -> Bound:
        kept, out = self._states[call.cache_layer], self.view(call.output)
        values = [self.view(value) for value in inputs_of(call)]
        if isinstance(call, ShortConvolution):
            shape = (call.x.width, call.kernel)
            weight = self._weights.vector(call.weight).view(shape)
            bias = None if call.bias is None else self._weights.vector(call.bias)

            def convolve(step: Step) -> None:
                n = step.rows["tokens"]
                states = step.states(kept)
                short_convolution(states, out[:n], values[0][:n], weight, bias, activated=call.activated)

            return convolve
        weights = [self._weights.vector(name) for name in weights_of(call)]

        def scan(step: Step) -> None:
            n, states = step.rows["tokens"], step.states(kept)
            given = (out[:n], *(value[:n] for value in values), *weights)
            if isinstance(call, SelectiveScan):
                limits = (call.least_step, call.most_step)
                selective_scan(states, *given, groups=call.groups, step_range=limits)
            else:
                delta_rule(states, *given, key_heads=call.key_heads, alternating=call.alternating)

        return scan

    def _expert_weights(self, call: Experts) -> ExpertWeights:
        given, weights = call.experts, self._weights
        numbers = torch.full((call.count,), len(given), dtype=torch.int64)
        numbers[[expert.number for expert in given]] = torch.arange(len(given))
        has_gates = all(expert.gate is not None for expert in given)
        ups = [tuple(name for name in (expert.gate, expert.up) if name is not None) for expert in given]
        up_biases = [tuple(name for name in (expert.gate_bias, expert.up_bias) if name is not None) for expert in given]
        down_biases = [(expert.down_bias,) if expert.down_bias is not None else () for expert in given]
        return ExpertWeights(
            numbers.to(self._device),
            weights.experts([name for names in ups for name in names], len(given)),
            weights.experts([expert.down for expert in given], len(given)),
            self._expert_biases(up_biases),
            self._expert_biases(down_biases),
            has_gates,
        )

    def _expert_biases(self, names: Sequence[tuple[str, ...]]) -> torch.Tensor | None:
        """Of each expert: all have them, or none has."""
        if not any(names):
            return None
        return torch.stack([torch.cat([self._weights.vector(name) for name in of_expert]) for of_expert in names])

    def _bias(self, call: Product) -> torch.Tensor | None:
        """Of all the stacked weights: zeros where one has none."""
        linear = call.linear
        if not any(linear.biases):
            return None
        vectors = [None if name is None else self._weights.vector(name) for name in linear.biases]
        widths = self._weights.heights(linear.weights)
        parts = [
            torch.zeros(width, device=self._device) if vector is None else vector
            for vector, width in zip(vectors, widths, strict=True)
        ]
        if [len(part) for part in parts] != widths:
            raise ModelError(f"The biases {linear.biases} do not fit the weights {linear.weights}.")
        return torch.cat(parts)

    def _place(self, call: Place, kind: RowKind) -> Bound:
        parts = [None if part is None else self._part(part) for part in (call.q, call.k, call.v)]
        rope = next((part.rope for part in call.parts if part.rope is not None), None)
        rotation = None
        if rope is not None:
            axes = torch.tensor(rope.axes, dtype=torch.int32, device=self._device) if rope.axes else None
            rotation = Rotation(self._weights.vector(rope.inverse_frequencies), rope.scale, axes)
        out = None if call.output is None else self.view(call.output)
        keys, values = (None, None) if call.cache_layer is None else self._caches[call.cache_layer]

        def run(step: Step) -> None:
            n = step.rows[kind]
            q, k, v = (part and part.of(n) for part in parts)
            place(call.head_size, step.places(kind), rotation, q, None if out is None else out[:n], k, v, keys, values)

        return run

    def _part(self, part: Part) -> HeadPart:
        norm_, rope = part.norm, part.rope
        return HeadPart(
            self.view(part.x),
            None if norm_ is None or norm_.weight is None else self._weights.vector(norm_.weight),
            0.0 if norm_ is None else norm_.epsilon,
            norm_ is not None,
            rope is not None,
            part.norm_first,
        )

    def _attend(self, call: Attend, kind: RowKind) -> Bound:
        shape, paged = _shape_of(call), call.cache_layer is not None
        q, out = self.view(call.q), self.view(call.output)
        sinks = None if call.sinks is None else self._weights.vector(call.sinks)
        if call.cache_layer is not None:
            keys, values = self._caches[call.cache_layer]
        else:
            assert call.k is not None
            assert call.v is not None
            keys, values = self.view(call.k), self.view(call.v)
        if paged:
            reserve(shape, self._scratch)
        windows = "window_" if call.windows else ""
        positions = self._limits.blocks * self._limits.block_tokens

        def run(step: Step) -> None:
            n, seen = step.rows[kind], step.seen(kind, call.windows)
            given = (shape, seen, q[:n], out[:n], keys, values, sinks)
            if kind == "selected" or (step.singles_only and paged):
                splits = splits_for(n, shape.programs, positions)
                attend(*given, None, self._scratch, call, tile_tokens=1, splits=splits)
                return
            name = f"{windows}singles{shape.tile_tokens}"
            singles, large = step.arrays[name], step.arrays[name.replace("singles", "tiles")]
            splits = splits_for(singles.shape[0], shape.programs, positions) if paged else 1
            attend(*given, singles, self._scratch, call, tile_tokens=1, splits=splits)
            attend(*given, large, self._scratch, call, tile_tokens=shape.tile_tokens, splits=1)

        return run

    def _embed(self, call: Embed) -> Bound:
        out, table, scale = self.view(call.output), self._weights.table(call.table), call.scale
        names = {"token": "tokens", "known_token": "tokens", "position": "positions", "axis": "axis", "zero": ""}
        name = names[call.index]
        return lambda step: gather(table, step.arrays.get(name), out[: step.rows["tokens"]], scale=scale)


def _shape_of(call: Attend) -> Shape:
    at = call.head_size - call.latent if call.latent else 0
    return Shape(call.heads, call.kv_heads, call.head_size, call.value_size, at)
