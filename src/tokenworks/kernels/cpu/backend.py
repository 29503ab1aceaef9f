"""The C++ backend behind kernels/backend.py: hands plan, weights and each step to the executor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenworks.kernels.adapter import Adaptation, check_adaptation
from tokenworks.kernels.backend import Float32, Int32, Limits, PackedPlace, RowChange, SampleBatch, StepBatch
from tokenworks.kernels.changes import apply_changes
from tokenworks.kernels.cpu import _cpu
from tokenworks.kernels.cpu.keeper import ExpertKeeper
from tokenworks.kernels.cpu.plan import Plan, make_plan
from tokenworks.kernels.cpu.team_size import StepSize, TeamSize
from tokenworks.kernels.cpu.weights import Loader, raw
from tokenworks.kernels.cpu.writer import Writer
from tokenworks.kernels.flow import RowKind
from tokenworks.kernels.program import CacheLayer, KvLayer, Pause, Program, StateLayer, Value
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.clock import now_s
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
        self._team_size = TeamSize(limits.threads)
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
            writer = Writer(self._executor, plan, matrices, vectors, layers)
            for planned in plan.calls:
                writer.write(planned)
            result_rows = plan.buffer_rows[step.result.buffer]
            self._executor.watch(_cpu.Rows[result_rows], plan.place(step.result), step.result.width)
            parts = 1 + sum(isinstance(planned.call, Pause) for planned in plan.calls)
            self._steps.append(_Step(step, plan, self._steps[0].parts if self._steps else 0, parts))
            layers = layers[len(step.cache_layers) :]
        self.parts = self._steps[0].parts
        cache_tokens = limits.blocks * limits.block_tokens
        step_cache_bytes = self._executor.cache_bytes * limits.step_tokens // cache_tokens if cache_tokens else 0
        keeps = self._loader.in_file and self._executor.expert_bytes > 0
        self._keeper = ExpertKeeper(self._executor, step_cache_bytes) if keeps else None
        self._rows: dict[RowKind, int] = {}
        self.weight_bytes = self._executor.weight_bytes
        self.cache_bytes = self._executor.cache_bytes
        self.from_packed_file = self._loader.from_file
        self.runs_ahead = False
        self.phases_s: Mapping[str, float] = {}

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
        size = StepSize(first_part, rows["tokens"], int(batch.positions.sum()))
        threads = self._team_size.choose(size)
        began_s = now_s()
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
            threads,
        )
        self._team_size.took(size, threads, now_s() - began_s)
        if self._keeper is not None:
            self._keeper.step_done(rows["tokens"])

    def _values(self, step: "_Step", value: Value) -> Float32:
        """Of the last run."""
        rows = self._rows[step.plan.buffer_rows[value.buffer]]
        return self._executor.values(step.plan.place(value), rows, value.width)

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

    def adjust(self, logits: Float32, changes: Sequence[RowChange]) -> list[int]:
        return apply_changes(logits, changes)

    def logprobs(self, logits: Float32, chosen: Int32, top: int) -> tuple[Float32, Int32, Int32, Float32]:
        return self._executor.logprobs(logits, chosen, top)


@dataclass(frozen=True, slots=True)
class _Step:
    """The program or its sequel, and its parts among the executor's."""

    program: Program
    plan: Plan
    first_part: int
    parts: int


def _among_their_kind(layers: tuple[CacheLayer, ...]) -> list[int]:
    """Each cache layer's number among those of its kind: the executor counts them apart."""
    return [sum(type(other) is type(layer) for other in layers[:number]) for number, layer in enumerate(layers)]
