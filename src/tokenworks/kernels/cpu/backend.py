"""The C++ backend behind kernels/backend.py: hands plan, weights and each step to the executor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenworks.kernels.adapter import Adaptation, check_adaptation
from tokenworks.kernels.backend import Float32, Int32, Limits, PackedPlace, SampleBatch, StepBatch
from tokenworks.kernels.cpu import _cpu
from tokenworks.kernels.cpu.keeper import ExpertKeeper
from tokenworks.kernels.cpu.plan import (
    Call,
    Plan,
    PlannedCall,
    Prepare,
    PrepareHeads,
    Product,
    Store,
    make_plan,
)
from tokenworks.kernels.cpu.weights import Loader, raw
from tokenworks.kernels.flow import RowKind
from tokenworks.kernels.program import (
    Activate,
    Add,
    Attend,
    CacheLayer,
    DeltaRule,
    Embed,
    Experts,
    Gate,
    Inject,
    Input,
    Keep,
    KvLayer,
    LayerNorm,
    Linear,
    LinearHeads,
    MatchMagnitude,
    Merge,
    MixStreams,
    Multiply,
    Pause,
    Pool,
    Program,
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
    StateLayer,
    Value,
)
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError


class CpuBackend:
    """Runs programs on this machine's CPU, with the best instruction set it has (see `isa`)."""

    name = "cpu"

    @property
    def isa(self) -> str:
        """scalar, avx2, avx512, avx512_bf16, amx or neon; TOKENWORKS_FORCE_ISA chooses, an unusable choice raises
        RuntimeError."""
        return _cpu.isa()

    @property
    def isa_trouble(self) -> str | None:
        """A better set that this machine has but that is left unused, and why: "amx: present, but ..."."""
        return _cpu.isa_trouble()

    def compile(
        self, program: Program, weights: Mapping[str, Tensor], limits: Limits, place: PackedPlace | None = None
    ) -> "CpuExecutable":
        if limits.cache_dtype not in _cpu.CacheType.__members__:
            kept = ", ".join(_cpu.CacheType.__members__)
            raise ModelError(f"The CPU keeps K and V as {kept}; {limits.cache_dtype} (cache_dtype) needs a GPU.")
        return CpuExecutable(program, weights, limits, place)


class CpuExecutable:
    """A model ready to run: weights packed, buffers and cache reserved (memory is taken as it is touched)."""

    def __init__(
        self, program: Program, weights: Mapping[str, Tensor], limits: Limits, place: PackedPlace | None
    ) -> None:
        self._executor = _cpu.Executor(limits.threads)
        plans = [make_plan(step, limits) for step in program.steps]
        self._limits = limits
        self._loader = Loader(self._executor, program, weights, place)
        matrices, vectors = self._loader.load()
        self._program, self._matrices = program, matrices
        self._executor.allocate(
            max(plan.arena_floats for plan in plans),
            max(limits.step_tokens, limits.logit_rows, limits.sequences),
            max(plan.prepared_width for plan in plans),
            limits.blocks,
            limits.block_tokens,
            _cpu.CacheType[limits.cache_dtype],
            plans[0].merged,
            [
                (layer.kv_heads, layer.head_size, layer.latent)
                for layer in program.all_cache_layers
                if isinstance(layer, KvLayer)
            ],
            limits.state_slots,
            [layer.floats for layer in program.all_cache_layers if isinstance(layer, StateLayer)],
        )
        layers = _among_their_kind(program.all_cache_layers)
        self._steps: list[_Step] = []
        for step, plan in zip(program.steps, plans, strict=True):
            if self._steps:
                self._executor.pause()
            writer = _Writer(self._executor, plan, matrices, vectors, layers)
            for planned in plan.calls:
                writer.write(planned)
            result_rows = plan.buffer_rows[step.result.buffer]
            self._executor.watch(_cpu.Rows[result_rows], _place(plan, step.result), step.result.width)
            parts = 1 + sum(isinstance(planned.call, Pause) for planned in plan.calls)
            self._steps.append(_Step(step, plan, self._steps[0].parts if self._steps else 0, parts))
            layers = layers[len(step.cache_layers) :]
        self.parts = self._steps[0].parts
        cache_tokens = limits.blocks * limits.block_tokens
        step_cache_bytes = self._executor.cache_bytes * limits.step_tokens // cache_tokens if cache_tokens else 0
        self._keeper = ExpertKeeper(self._executor, step_cache_bytes) if self._loader.in_file else None
        self._rows: dict[RowKind, int] = {}
        self.weight_bytes = self._executor.weight_bytes
        self.cache_bytes = self._executor.cache_bytes
        self.from_packed_file = self._loader.from_file

    @property
    def finite(self) -> bool:
        return self._executor.finite

    def keep_packed(self) -> None:
        self._loader.keep()

    def run(self, batch: StepBatch, part: int | None = None) -> Float32:
        step = self._steps[0]
        self._run(batch, *((0, step.parts) if part is None else (part, part + 1)))
        return self._values(step, step.program.result)

    @property
    def hidden(self) -> Float32:
        assert self._program.hidden is not None
        return self._values(self._steps[0], self._program.hidden)

    def run_sequel(self, batch: StepBatch) -> tuple[Float32, Float32]:
        step = self._steps[1]
        assert step.program.hidden is not None
        self._run(batch, step.first_part, step.first_part + step.parts)
        return self._values(step, step.program.result), self._values(step, step.program.hidden)

    def _run(self, batch: StepBatch, first_part: int, end_part: int) -> None:
        rows: dict[RowKind, int] = {
            "tokens": len(batch.tokens),
            "selected": len(batch.logit_rows),
            "sequences": len(batch.row_starts) - 1,
            "merged": len(batch.tokens) // self._steps[0].plan.merged,
        }
        self._rows = rows
        if (
            rows["tokens"] > self._limits.step_tokens
            or rows["selected"] > self._limits.logit_rows
            or rows["sequences"] > self._limits.sequences
        ):
            raise ValueError(f"A step of {rows} is larger than the limits it was compiled for: {self._limits}.")
        states = batch.states
        self._executor.run(
            batch.tokens,
            batch.positions,
            batch.row_starts,
            batch.block_tables,
            batch.logit_rows,
            batch.features,
            batch.feature_rows,
            batch.axes,
            batch.ends,
            batch.inputs,
            batch.window_starts,
            None if states is None else states.begin,
            None if states is None else states.rows,
            None if states is None else states.slots,
            batch.adapters,
            first_part,
            end_part,
        )
        if self._keeper is not None:
            self._keeper.step_done(rows["tokens"])

    def _values(self, step: "_Step", value: Value) -> Float32:
        """Of the last run."""
        rows = self._rows[step.plan.buffer_rows[value.buffer]]
        return self._executor.values(_place(step.plan, value), rows, value.width)

    def load_adapter(self, slot: int, adaptation: Adaptation) -> None:
        check_adaptation(self._program, self._loader.shapes, adaptation)
        self._executor.load_adapter(
            slot,
            [
                (self._matrices[name], raw(share.down.name, share.down), raw(share.up.name, share.up), share.scale)
                for name, share in adaptation.items()
            ],
        )

    def drop_adapter(self, slot: int) -> None:
        self._executor.drop_adapter(slot)

    @property
    def adapter_bytes(self) -> int:
        return self._executor.adapter_bytes

    def expert_uses(self) -> list[list[int]]:
        return self._executor.expert_uses()

    def expert_reads(self) -> tuple[int, int]:
        return self._executor.expert_reads()

    @property
    def kept_expert_bytes(self) -> int:
        return self._executor.kept_expert_bytes

    def sample(self, logits: Float32, how: SampleBatch) -> Int32:
        return self._executor.sample(logits, how.temperature, how.top_k, how.top_p, how.min_p, how.uniform)

    def logprobs(self, logits: Float32, chosen: Int32, top: int) -> tuple[Float32, Int32, Int32, Float32]:
        return self._executor.logprobs(logits, chosen, top)


@dataclass(frozen=True, slots=True)
class _Step:
    """The program or its sequel, and its parts among the executor's."""

    program: Program
    plan: Plan
    first_part: int
    parts: int


def _place(plan: Plan, value: Value) -> tuple[int, int]:
    return plan.buffer_offsets[value.buffer] + value.offset, value.stride


def _among_their_kind(layers: tuple[CacheLayer, ...]) -> list[int]:
    """Each cache layer's number among those of its kind: the executor counts them apart."""
    return [sum(type(other) is type(layer) for other in layers[:number]) for number, layer in enumerate(layers)]


class _Writer:
    """Tells the executor the plan's calls."""

    def __init__(
        self,
        executor: _cpu.Executor,
        plan: Plan,
        matrices: Mapping[str, int],
        vectors: Mapping[str, int],
        layers: Sequence[int],
    ) -> None:
        """`layers`: the executor's number of each cache layer."""
        self._executor, self._plan, self._matrices, self._vectors = executor, plan, matrices, vectors
        self._layers = layers

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

    def _at(self, value: Value) -> tuple[int, int]:
        return _place(self._plan, value)
