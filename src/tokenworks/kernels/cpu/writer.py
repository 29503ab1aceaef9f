"""Tells the executor a plan's calls, one by one: places for values, numbers for weights and layers."""

from collections.abc import Mapping, Sequence

from tokenworks.kernels.cpu import _cpu
from tokenworks.kernels.cpu.plan import Call, Plan, PlannedCall, Prepare, PrepareHeads, Product, Store
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
    Keep,
    LayerNorm,
    Linear,
    LinearHeads,
    MatchMagnitude,
    Merge,
    MixStreams,
    Multiply,
    Pause,
    Pool,
    Recurrent,
    RmsNorm,
    Rope,
    Route,
    Scale,
    ScaleRows,
    SelectiveScan,
    SelectRows,
    ShortConvolution,
    Softcap,
    Sparsify,
)


class Writer:
    """Of one plan."""

    def __init__(
        self,
        executor: _cpu.Executor,
        plan: Plan,
        matrices: Mapping[str, int],
        vectors: Mapping[str, int],
        layers: Sequence[int],
    ) -> None:
        """`layers`: the executor's number of each cache layer."""
        self._executor, self._matrices, self._vectors = executor, matrices, vectors
        self._layers, self._at = layers, plan.place

    def write(self, planned: PlannedCall) -> None:
        if planned.barrier:
            self._executor.barrier()
        self._write(planned.call, _cpu.Rows[planned.rows])

    def _write(self, call: Call, rows: _cpu.Rows) -> None:
        to, at, vectors = self._executor, self._at, self._vectors
        match call:
            case Input(output=out):
                to.input(at(out), out.width)
            case Inject(output=out):
                to.inject(at(out), out.width, call.offset, call.how == "replace")
            case Merge(output=out):
                to.merge(at(out), at(call.x), call.x.width, call.count, call.how == "mean")
            case Pause():
                to.pause()
            case Embed(output=out):
                to.embed(rows, at(out), self._matrices[call.table], out.width, _cpu.Index[call.index], call.scale)
            case RmsNorm(output=out):
                weight = -1 if call.weight is None else vectors[call.weight]
                to.rmsnorm(rows, at(out), at(call.x), out.width, call.group, weight, call.wide, call.epsilon)
            case LayerNorm(output=out):
                weight, bias = vectors[call.weight], -1 if call.bias is None else vectors[call.bias]
                to.layernorm(rows, at(out), at(call.x), out.width, weight, bias, call.epsilon)
            case Prepare(x=x):
                to.prepare(rows, at(x), x.width, self._input_forms(call.weights))
            case PrepareHeads(linear=linear):
                shape_of_heads = (len(linear.weights), linear.kept, linear.inputs, linear.outputs)
                forms = self._input_forms(linear.weights)
                to.prepare_heads(rows, at(linear.output), at(linear.x), *shape_of_heads, forms)
            case LinearHeads(output=out):
                to.linear_heads(rows, at(out), call.kept, [self._matrices[name] for name in call.weights])
            case Product(linear=linear):
                residual = None if call.residual is None else at(call.residual)
                biases = linear.biases or (None,) * len(linear.weights)
                segments = [
                    (self._matrices[weight], -1 if bias is None else vectors[bias])
                    for weight, bias in zip(linear.weights, biases, strict=True)
                ]
                to.linear(rows, at(call.output), at(linear.x), residual, segments)
            case Rope(output=out):
                frequencies = vectors[call.inverse_frequencies]
                shape_of_head = (call.head_size, call.turned)
                to.rope(rows, at(out), out.width, *shape_of_head, frequencies, call.scale, list(call.axes))
            case Store(k=k, v=v):
                to.store(at(k), at(v), self._layers[call.cache_layer])
            case Attend(output=out):
                layer = -1 if call.cache_layer is None else self._layers[call.cache_layer]
                shape = (call.heads, call.kv_heads, call.head_size)
                q = at(call.q)
                rows_of = (at(out), q, q if call.k is None else at(call.k), q if call.v is None else at(call.v))
                sinks = -1 if call.sinks is None else vectors[call.sinks]
                to.attend(
                    rows,
                    *(*rows_of, layer, *shape, call.scale, call.window, call.softcap, call.windows, sinks),
                    *(*call.portion, call.latent, call.begin, call.end, call.chunked),
                )
            case ShortConvolution() | SelectiveScan() | DeltaRule():
                self._write_recurrent(call, self._layers[call.cache_layer])
            case Gate(output=out):
                how = (_cpu.Activation[call.activation], call.limit, call.offset)
                to.gate(rows, at(out), at(call.gate), at(call.up), out.width, *how)
            case Activate(output=out):
                to.activate(rows, at(out), at(call.x), out.width, _cpu.Activation[call.activation])
            case Add(output=out):
                to.add(rows, at(out), at(call.a), at(call.b), out.width)
            case Scale(output=out):
                to.scale(rows, at(out), at(call.x), out.width, call.factor)
            case ScaleRows(output=out):
                to.scale_rows(rows, at(out), at(call.x), at(call.by), out.width)
            case Multiply(output=out):
                to.multiply(rows, at(out), at(call.x), out.width, vectors[call.weight], call.wide)
            case MixStreams(output=out):
                width, places = call.x.width // call.inputs, (at(out), at(call.x), at(call.coefficients))
                to.mix_streams(rows, *places, width, call.inputs, call.outputs, call.offset)
            case MatchMagnitude(output=out):
                to.match_magnitude(rows, at(out), at(call.x), at(call.like), out.width, call.least)
            case Sparsify(output=out):
                to.sparsify(rows, at(out), at(call.x), out.width, call.deviations)
            case Route(output=out):
                to.route(
                    rows,
                    at(out),
                    at(call.x),
                    call.x.width,
                    call.top_k,
                    call.score == "sigmoid",
                    call.normalise,
                    call.scale,
                    -1 if call.bias is None else vectors[call.bias],
                    -1 if call.expert_scales is None else vectors[call.expert_scales],
                    call.groups,
                    call.kept_groups,
                    call.group_best,
                )
            case Experts():
                self._experts(call, rows)
            case Softcap(output=out):
                to.softcap(rows, at(out), at(call.x), out.width, call.cap)
            case SelectRows(output=out):
                to.select_rows(at(out), at(call.x), out.width)
            case Pool(output=out):
                to.pool(at(out), at(call.x), out.width, call.how == "mean", call.normalise)
            case Linear() | Keep():
                raise AssertionError("the plan turns every Linear into a Product, every Keep into a Store")
            case AllReduce() | AllGather() | Broadcast():
                raise AssertionError("several ranks are GPUs")

    def _input_forms(self, weights: Sequence[str]) -> int:
        forms = 0
        for name in weights:
            forms |= self._executor.input_form(self._matrices[name])
        return forms

    def _experts(self, call: Experts, rows: _cpu.Rows) -> None:
        def matrix(name: str | None) -> int:
            return -1 if name is None else self._matrices[name]

        def vector(name: str | None) -> int:
            return -1 if name is None else self._vectors[name]

        self._executor.experts(
            rows,
            self._at(call.output),
            self._at(call.x),
            self._at(call.routes),
            call.count,
            call.routes.width // 2,
            call.x.width,
            call.inner,
            _cpu.Activation[call.activation],
            call.limit,
            call.offset,
            [
                (
                    *(e.number, matrix(e.gate), matrix(e.up), matrix(e.down)),
                    *(vector(e.gate_bias), vector(e.up_bias), vector(e.down_bias)),
                )
                for e in call.experts
            ],
        )

    def _write_recurrent(self, call: Recurrent, state: int) -> None:
        to, at, vectors, out = self._executor, self._at, self._vectors, self._at(call.output)
        match call:
            case ShortConvolution():
                bias = -1 if call.bias is None else vectors[call.bias]
                numbers = call.x.width, call.kernel, vectors[call.weight], bias
                to.short_convolution(out, at(call.x), state, *numbers, call.activated)
            case SelectiveScan():
                values = at(call.x), at(call.b), at(call.c), at(call.steps)
                weights = vectors[call.decay], vectors[call.step_bias], vectors[call.skip]
                shape = call.heads, call.head_size, call.groups, call.state_size
                to.selective_scan(out, *values, state, *weights, *shape, call.least_step, call.most_step)
            case DeltaRule():
                inputs = at(call.q), at(call.k), at(call.v), at(call.steps), at(call.rates)
                sizes = call.heads, call.key_heads, call.key_size, call.value_size
                by_head = vectors[call.decay], vectors[call.step_bias]
                to.delta_rule(out, *inputs, state, *by_head, *sizes, call.alternating)
