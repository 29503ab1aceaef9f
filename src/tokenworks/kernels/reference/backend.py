"""The backend itself: weights, caches, and the table of what computes each instruction."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.adapter import Adaptation, check_adaptation
from tokenworks.kernels.backend import Float32, Int32, Limits, PackedPlace, RowChange, SampleBatch, StepBatch
from tokenworks.kernels.changes import apply_changes
from tokenworks.kernels.check import check_operations, look_up, needs
from tokenworks.kernels.formats import dequantise
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
    Instruction,
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
    Value,
)
from tokenworks.kernels.reference import attention, elementwise, experts, linear, recurrent, rows, streams
from tokenworks.kernels.reference.collective import collective
from tokenworks.kernels.reference.sampling import log_probabilities, sample_row
from tokenworks.kernels.reference.step import Adapter, Float64, Step, columns
from tokenworks.kernels.tensor import Tensor

# Each entry takes the instruction type it is filed under, which a dict's type cannot say.
COMPUTE: dict[type, Callable[..., Float64]] = {
    Input: rows.input_rows,
    Inject: rows.inject,
    Merge: rows.merge,
    Embed: rows.embed,
    RmsNorm: elementwise.rmsnorm,
    LayerNorm: elementwise.layernorm,
    Linear: linear.linear,
    LinearHeads: linear.linear_heads,
    Rope: attention.rope,
    Attend: attention.attend,
    ShortConvolution: recurrent.recurrent,
    SelectiveScan: recurrent.recurrent,
    DeltaRule: recurrent.recurrent,
    Gate: elementwise.gate,
    Activate: elementwise.activate,
    Add: elementwise.add,
    Scale: elementwise.scale,
    ScaleRows: elementwise.scale_rows,
    Multiply: elementwise.multiply,
    MixStreams: streams.mix_streams,
    MatchMagnitude: streams.match_magnitude,
    Sparsify: streams.sparsify,
    Route: experts.route,
    Experts: experts.experts,
    Softcap: elementwise.softcap,
    SelectRows: rows.select_rows,
    Pool: rows.pool,
}


class ReferenceBackend:
    """Runs any program, in numpy; one of several ranks' with `group`."""

    name = "reference"

    def __init__(self, group: Group[Float32] | None = None) -> None:
        self._group = group

    def compile(
        self, program: Program, weights: Mapping[str, Tensor], limits: Limits, place: PackedPlace | None = None
    ) -> "ReferenceExecutable":
        numbers = {name: dequantise(look_up(weights, name, wanted)) for name, wanted in needs(program).items()}
        check_operations(program, {name: array.shape for name, array in numbers.items()})
        return ReferenceExecutable(program, numbers, limits, self._group)


class ReferenceExecutable:
    """A model and its cache: K and V of a layer are [blocks, block_tokens, kv_heads, head_size], states
    [state_slots, floats]; by number of the cache layer."""

    def __init__(
        self, program: Program, weights: Mapping[str, Float32], limits: Limits, group: Group[Float32] | None = None
    ) -> None:
        self._program = program
        self._group = group
        self._weights = weights
        self._caches: dict[int, tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]] = {}
        self._states: dict[int, Float32] = {}
        for number, layer in enumerate(program.all_cache_layers):
            if isinstance(layer, KvLayer):
                shape = (limits.blocks, limits.block_tokens, layer.kv_heads, layer.head_size)
                # What numpy has no type for is rounded before it is kept.
                dtype = np.dtype(np.float16 if limits.cache_dtype == "float16" else np.float32)
                keys = np.zeros(shape, dtype)
                # A latent layer's values are a view of its keys.
                self._caches[number] = (keys, keys[..., -layer.latent :] if layer.latent else np.zeros(shape, dtype))
            else:
                self._states[number] = np.zeros((limits.state_slots, layer.floats), np.float32)
        self._cache_dtype = limits.cache_dtype
        instructions = [op for step in program.steps for op in step.instructions]
        self._uses = {op: np.zeros(op.count, np.int64) for op in instructions if isinstance(op, Experts)}
        pauses = [at for at, each in enumerate(program.instructions) if isinstance(each, Pause)]
        self._parts = list(zip([0, *pauses], [*pauses, len(program.instructions)], strict=True))
        self._buffers: dict[int, Float32] = {}
        self._adapters: dict[int, Adapter] = {}
        self.parts = len(self._parts)
        self.runs_ahead = False
        self.from_packed_file = False
        self.phases_s: Mapping[str, float] = {}
        self.weight_bytes = sum(weight.nbytes for weight in weights.values())
        self.cache_bytes = sum(
            keys.nbytes + (values.nbytes if values.base is None else 0) for keys, values in self._caches.values()
        )
        self.cache_bytes += sum(states.nbytes for states in self._states.values())

    def keep_packed(self) -> None:
        """It packs nothing."""

    def run(self, batch: StepBatch, part: int | None = None) -> Float32:
        if not part:
            self._buffers = {}
        begin, end = self._parts[part] if part is not None else (0, len(self._program.instructions))
        self._run(batch, self._program.instructions[begin:end], 0)
        if part is not None and part < self.parts - 1:
            return np.empty((0, self._program.result.width), np.float32)
        result = self._values(self._program.result)
        self.finite = bool(np.isfinite(result).all())
        return result

    @property
    def hidden(self) -> Float32:
        assert self._program.hidden is not None
        return self._values(self._program.hidden)

    def run_sequel(self, batch: StepBatch) -> tuple[Float32, Float32]:
        sequel = self._program.sequel
        assert sequel is not None
        assert sequel.hidden is not None
        self._buffers = {}
        self._run(batch, sequel.instructions, len(self._program.cache_layers))
        return self._values(sequel.result), self._values(sequel.hidden)

    def _run(self, batch: StepBatch, instructions: Iterable[Instruction], first_layer: int) -> None:
        """`first_layer`: of the instructions' cache layers."""
        caches = {number - first_layer: cache for number, cache in self._caches.items()}
        step = Step(batch, self._weights, caches, self._states, self._cache_dtype, self._buffers, self._adapters)
        for instruction in instructions:
            if isinstance(instruction, Experts):
                chosen, _ = np.split(step.load(instruction.routes).astype(np.int64), 2, axis=1)
                self._uses[instruction] += np.bincount(chosen.ravel(), minlength=instruction.count)
            if isinstance(instruction, Keep):
                attention.keep(step, instruction)
            elif isinstance(instruction, AllReduce | AllGather | Broadcast):
                assert self._group is not None, "this program is one of several ranks'"
                step.store(instruction.output, collective(step, instruction, self._group))
            elif not isinstance(instruction, Pause):
                compute = COMPUTE[type(instruction)]
                step.store(instruction.output, compute(step, instruction))

    def _values(self, value: Value) -> Float32:
        return np.ascontiguousarray(self._buffers[value.buffer][:, columns(value)])

    def expert_reads(self) -> tuple[int, int]:
        return 0, 0

    @property
    def kept_expert_bytes(self) -> int:
        return 0

    def load_adapter(self, slot: int, adaptation: Adaptation) -> None:
        check_adaptation(self._program, {name: weight.shape for name, weight in self._weights.items()}, adaptation)
        self._adapters[slot] = {
            name: (dequantise(share.down).astype(np.float64), share.scale * dequantise(share.up).astype(np.float64))
            for name, share in adaptation.items()
        }

    def drop_adapter(self, slot: int) -> None:
        self._adapters.pop(slot, None)

    @property
    def adapter_bytes(self) -> int:
        return sum(side.nbytes for maps in self._adapters.values() for sides in maps.values() for side in sides)

    def expert_uses(self) -> list[list[int]]:
        return [counts.tolist() for counts in self._uses.values()]

    def sample(self, logits: Float32, how: SampleBatch) -> Int32:
        chosen = [
            sample_row(
                row, float(how.temperature[r]), int(how.top_k[r]), float(how.top_p[r]), float(how.min_p[r]),
                float(how.uniform[r]),
            )
            for r, row in enumerate(logits)
        ]  # fmt: skip
        return np.array(chosen, np.int32)

    def adjust(self, logits: Float32, changes: Sequence[RowChange]) -> list[int]:
        return apply_changes(logits, changes)

    def logprobs(self, logits: Float32, chosen: Int32, top: int) -> tuple[Float32, Int32, Int32, Float32]:
        return log_probabilities(logits, chosen, top)
