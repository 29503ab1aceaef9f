"""The GPU backend behind kernels/backend.py: memory, the step's numbers, and the launches of its plan."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

import numpy as np
import torch

from tokenworks.kernels.adapter import Adaptation, check_adaptation
from tokenworks.kernels.backend import (
    CacheType,
    Float32,
    Int32,
    Limits,
    PackedPlace,
    RowChange,
    SampleBatch,
    StepBatch,
)
from tokenworks.kernels.check import check_operations, describe_weight, look_up, needs
from tokenworks.kernels.cuda.adapters.slots import Adapters
from tokenworks.kernels.cuda.compiling import compiling
from tokenworks.kernels.cuda.device_rows import DeviceRows
from tokenworks.kernels.cuda.elements.rows import take_drawn
from tokenworks.kernels.cuda.graphs import GraphMemory, Graphs
from tokenworks.kernels.cuda.inputs import Inputs, by_rows
from tokenworks.kernels.cuda.launches import Binder
from tokenworks.kernels.cuda.loading import Loading
from tokenworks.kernels.cuda.plan import make_plan
from tokenworks.kernels.cuda.products.fp8 import FIRST_CAPABILITY
from tokenworks.kernels.cuda.sampling.change import change_rows
from tokenworks.kernels.cuda.sampling.logits import DeviceLogits, draw, log_probabilities, on_device
from tokenworks.kernels.cuda.scratch import Scratch
from tokenworks.kernels.cuda.stepper import Stepper
from tokenworks.kernels.cuda.warming import warm_sampling
from tokenworks.kernels.cuda.weights import Weights
from tokenworks.kernels.flow import meets_ranks
from tokenworks.kernels.group import Group
from tokenworks.kernels.program import Attend, Instruction, KvLayer, Program, Rope, StateLayer
from tokenworks.kernels.tensor import Description, Tensor
from tokenworks.protocol.clock import now_s
from tokenworks.protocol.errors import ModelError

CACHE_TYPES: dict[CacheType, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "float32": torch.float32,
}


PHASES = ("bind", "kernels", "weights", "graphs")
"""Of the start: memory is taken, and weights begin to come; kernels are compiled; the rest of the weights; one step of
each size that has a graph. Without kernels to compile weights take all their time in the third."""


class CudaBackend:
    """Runs programs on one CUDA device; one of several ranks' with `group`."""

    name = "cuda"

    def __init__(self, device: str = "cuda", group: Group[torch.Tensor] | None = None) -> None:
        self._device, self._group = torch.device(device), group

    def compile(
        self, program: Program, weights: Mapping[str, Tensor], limits: Limits, place: PackedPlace | None = None
    ) -> "CudaExecutable":
        try:
            return CudaExecutable(program, weights, limits, self._device, self._group if meets_ranks(program) else None)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"The GPU's memory does not hold the weights, {limits.blocks} blocks of cache and steps of "
                f"{limits.step_tokens} tokens (cache_mb, step_tokens): {error}"
            ) from error


class CudaExecutable:
    """A model ready to run: weights and cache on the device, all memory of a step reserved."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        limits: Limits,
        device: torch.device,
        group: Group[torch.Tensor] | None = None,
    ) -> None:
        assert group is not None or not meets_ranks(program)
        if limits.cache_dtype not in CACHE_TYPES:
            raise ModelError(
                f"The GPU backend keeps K and V as {', '.join(CACHE_TYPES)}, not as {limits.cache_dtype!r}."
            )
        if limits.cache_dtype == "fp8" and device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            if capability < FIRST_CAPABILITY:
                raise ModelError(
                    "cache_dtype: fp8 needs a GPU of compute capability {}.{} or newer; this one's is {}.{}.".format(
                        *FIRST_CAPABILITY, *capability
                    )
                )
        self._program, self._limits, self._device, self._group = program, limits, device, group
        wanted, marks_s = needs(program), [now_s()]
        shapes = self._shapes = dict[str, tuple[int, ...]]()

        def described(name: str) -> Description:
            what = describe_weight(weights, name, wanted[name])
            shapes[name] = what.shape
            return what

        plans = [make_plan(each, limits) for each in program.steps]
        self._caches = _caches(program, limits, device)
        self._states = {
            number: torch.zeros((limits.state_slots, layer.floats), dtype=torch.float32, device=device)
            for number, layer in enumerate(program.all_cache_layers)
            if isinstance(layer, StateLayer)
        }
        self._arena = torch.zeros(max(plan.arena_bytes for plan in plans), dtype=torch.uint8, device=device)
        self._scratch = Scratch(device)
        self._adapters = Adapters(device, max(limits.step_tokens, limits.sequences, limits.logit_rows))
        self._steppers: list[Stepper] = []
        """Of the program, and of its sequel."""
        layers = 0
        with Loading(device, limits.threads) as loading:
            self._weights = Weights(loading, described, lambda name: look_up(weights, name, wanted[name]))
            for each, plan in zip(program.steps, plans, strict=True):
                caches = {number - layers: kept for number, kept in self._caches.items()}
                states = {number - layers: kept for number, kept in self._states.items()}
                memory = (self._weights, caches, states, self._arena, self._adapters, self._scratch)
                binder = Binder(each, plan, limits, device, *memory)
                self._steppers.append(Stepper(each, plan, limits, device, binder))
                layers += len(each.cache_layers)
            check_operations(program, shapes)
            self._main = self._steppers[0]
            tile_tokens = sorted({tokens for stepper in self._steppers for tokens in stepper.tile_tokens})
            self._inputs = Inputs(device, limits, tile_tokens, _axes(program), _spans(program))
            self._drawn = torch.zeros(limits.logit_rows, dtype=torch.int32, device=device)
            """By the last `sample`; the next step may name them."""
            self.runs_ahead = True
            self.parts = len(self._main.parts)
            marks_s.append(now_s())
            if device.type == "cuda":
                self._compile_kernels()
            marks_s.append(now_s())
        for stepper in self._steppers:
            stepper.meet(group)
        marks_s.append(now_s())
        self.from_packed_file = False
        self.weight_bytes = self._weights.nbytes
        self.cache_bytes = sum(
            keys.nbytes + values.nbytes * (values is not keys) for keys, values in self._caches.values()
        )
        self.cache_bytes += sum(states.nbytes for states in self._states.values())
        if device.type == "cuda":
            self._make_graphs(GraphMemory(device))
            # With others first without graphs: the memory that these hold must not move any more, on whatever rank.
            for captures in (True,) if group is None else (False, True):
                for stepper in self._steppers:
                    self._warm_up(stepper, captures=captures)
        marks_s.append(now_s())
        spent_s = (after - before for before, after in pairwise(marks_s))
        self.phases_s: Mapping[str, float] = dict(zip(PHASES, spent_s, strict=True))

    def _make_graphs(self, pool: GraphMemory | None) -> None:
        for stepper in self._steppers:
            given = (self._limits, stepper.plan, self._scratch, self._adapters, pool)
            stepper.graphs = Graphs(*given, together=self._group is not None)

    def keep_packed(self) -> None:
        """It packs nothing that would be worth a file."""

    def run(self, batch: StepBatch, part: int | None = None) -> Float32:
        self._run(self._main, batch, part)
        result = self._program.result
        if part is not None and part < self.parts - 1:
            return np.empty((0, result.width), np.float32)
        values, logits = self._main.values(result), self._main.kind(result) == "selected"
        # Logits stay on the device: see Executable.run.
        return cast(Float32, DeviceLogits(values) if logits else values.float().cpu().numpy())

    def _run(self, stepper: Stepper, batch: StepBatch, part: int | None = None) -> None:
        self._check(batch)
        try:
            self._begin(stepper, batch, part)
        except torch.OutOfMemoryError:
            if self._group is not None:  # the other ranks are further on
                raise
            # Steps' memory is reserved, but for what libraries take in passing: others use this GPU too. Once more with
            # what the allocator holds in reserve given back; K and V are written a second time, to the same effect, but
            # recurrent states would move on.
            if batch.states is not None:
                raise
            torch.cuda.empty_cache()
            self._begin(stepper, batch, part)

    def _begin(self, stepper: Stepper, batch: StepBatch, part: int | None) -> None:
        stepper.rows, graphs = stepper.counts(batch), stepper.graphs
        graph_rows = graphs.rows_for(batch) if graphs and part is None else None
        carried = batch.row_starts
        if graph_rows is not None:
            batch, carried = by_rows(batch, graph_rows)
        if not self._inputs.fits(batch):
            for each in self._steppers:
                each.drop_graphs()
        if part:  # the first has taken them in: a large picture's are 77 MB, and its encoder has some sixty parts
            batch = replace(batch, inputs=None)
        rows = stepper.counts(batch)
        singles = rows["tokens"] == rows["sequences"] == rows["selected"]
        slots = self._adapters.slots
        step = self._inputs.load(batch, rows, singles_only=singles, carried=carried, adapter_slots=slots)
        if batch.tokens.size and batch.tokens.min() < 0:
            take_drawn(step.arrays["tokens"], self._drawn)
        launches = stepper.launches(part)

        def launch_all() -> None:
            for launch in launches:
                launch(step)

        if not part:
            for bring in stepper.brings:
                bring(step)
        if graphs and graph_rows is not None:
            graphs.run(step, launch_all)
        else:
            launch_all()

    def _compile_kernels(self) -> None:
        """All that any step needs, but adapters', which few have."""
        with compiling(self._limits.threads):
            for stepper in self._steppers:
                for lengths in stepper.kinds_of_steps():
                    self._run(stepper, stepper.empty_step(lengths))
            if self._main.kind(self._program.result) == "selected":
                warm_sampling(self._program.result.width, self._drawn)

    def _compile_adapters_kernels(self, slot: int) -> None:
        """What the last run left is void."""
        graphs, self._main.graphs = self._main.graphs, None  # nothing is run that could be captured
        self._main.meet(None)
        try:
            with compiling(self._limits.threads):
                for lengths in self._main.kinds_of_steps():
                    adapters = np.full(len(lengths), slot, np.int32)
                    self._run(self._main, replace(self._main.empty_step(lengths), adapters=adapters))
        finally:
            self._main.graphs = graphs
            self._main.meet(self._group)

    def _warm_up(self, stepper: Stepper, *, captures: bool = True) -> None:
        """Has the memory of the largest step taken, libraries make ready, and the graphs captured."""
        graphs = stepper.graphs
        if graphs and (kinds := stepper.kinds_of_steps()):
            stepper.graphs = graphs if captures else None
            for lengths in [kinds[0], *([1] * size for size in reversed(graphs.sizes))]:
                self._run(stepper, stepper.empty_step(lengths))
            stepper.graphs = graphs

    @property
    def hidden(self) -> Float32:
        assert self._program.hidden is not None
        return cast(Float32, self._handed_out(self._main))

    def run_sequel(self, batch: StepBatch) -> tuple[Float32, Float32]:
        stepper = self._steppers[1]
        self._run(stepper, batch)
        logits = DeviceLogits(stepper.values(stepper.program.result))
        return cast(Float32, logits), cast(Float32, self._handed_out(stepper))

    def _handed_out(self, stepper: Stepper) -> DeviceRows:
        """A copy, on the device."""
        assert stepper.program.hidden is not None
        rows = stepper.values(stepper.program.hidden)
        return DeviceRows([rows.clone(memory_format=torch.contiguous_format)], rows.shape[1], self._device)

    def _check(self, batch: StepBatch) -> None:
        rows = (len(batch.tokens), len(batch.logit_rows), len(batch.row_starts) - 1)
        most = (self._limits.step_tokens, self._limits.logit_rows, self._limits.sequences)
        if any(got > limit for got, limit in zip(rows, most, strict=True)):
            raise ValueError(f"A step of {rows} rows is larger than the limits it was compiled for: {self._limits}.")
        for slot in set() if batch.adapters is None else set(batch.adapters.tolist()) - {-1}:
            if slot not in self._adapters:
                raise ValueError(f"There is no adapter in slot {slot}.")

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self._main.values(self._program.result)).all().item())

    def load_adapter(self, slot: int, adaptation: Adaptation) -> None:
        check_adaptation(self._program, self._shapes, adaptation)
        before = self._adapters.shapes
        self._adapters.load(slot, adaptation)
        if self._device.type == "cuda" and before != self._adapters.shapes:
            self._compile_adapters_kernels(slot)

    def drop_adapter(self, slot: int) -> None:
        self._adapters.drop(slot)

    @property
    def adapter_bytes(self) -> int:
        return self._adapters.nbytes

    def expert_uses(self) -> list[list[int]]:
        return []

    def expert_reads(self) -> tuple[int, int]:
        return 0, 0

    @property
    def kept_expert_bytes(self) -> int:
        return 0

    def sample(self, logits: Float32, how: SampleBatch) -> Int32:
        return draw(on_device(logits, self._device), how, self._drawn[: len(logits)])

    def adjust(self, logits: Float32, changes: Sequence[RowChange]) -> list[int]:
        change_rows(on_device(logits, self._device), changes)
        return []

    def logprobs(self, logits: Float32, chosen: Int32, top: int) -> tuple[Float32, Int32, Int32, Float32]:
        return log_probabilities(on_device(logits, self._device), chosen, top)


def _caches(program: Program, limits: Limits, device: torch.device) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """K and V of each layer: [blocks, kv_heads, block_tokens, head_size]. Of a latent layer V is K's own memory."""
    caches = {}
    dtype = CACHE_TYPES[limits.cache_dtype]
    for number, layer in enumerate(program.all_cache_layers):
        if not isinstance(layer, KvLayer):
            continue
        shape = (limits.blocks, layer.kv_heads, limits.block_tokens, layer.head_size)
        keys = torch.zeros(shape, dtype=dtype, device=device)
        caches[number] = (keys, keys if layer.latent else torch.zeros(shape, dtype=dtype, device=device))
    return caches


def _axes(program: Program) -> int:
    return max((1 + max(op.axes) for op in _instructions(program) if isinstance(op, Rope) and op.axes), default=0)


def _spans(program: Program) -> bool:
    return any(isinstance(op, Attend) and op.cache_layer is None for op in _instructions(program))


def _instructions(program: Program) -> Iterator[Instruction]:
    return (instruction for step in program.steps for instruction in step.instructions)
