"""Decoding steps as CUDA graphs: one for each padded number of rows, captured when it is first needed; another one
where sequences have adapters.

A sequence that has a few rows, as guesses follow its last token, is as many sequences of one row to a graph: each layer
writes all rows' K and V before any row looks at them. So steps with guesses run by the same graphs.

A graph replays the same launches with the same addresses: whatever changes from step to step (tokens, positions, block
tables, lengths) is read on the device. Outside of it are the copy of the step's numbers before, and of its result
behind.
"""

from collections.abc import Callable

import numpy as np
import torch

from tokenworks.kernels.backend import Limits, StepBatch
from tokenworks.kernels.cuda.adapters.slots import OF_ADAPTED, Adapters
from tokenworks.kernels.cuda.inputs import Step
from tokenworks.kernels.cuda.plan import Call, Plan
from tokenworks.kernels.cuda.scratch import Scratch
from tokenworks.kernels.program import Attend, Input, Pool

PADDED_ROWS = (1, 2, 4, *range(8, 64, 8), *range(64, 257, 16))
"""Steps of fewer run as one of the next of these."""
MOST_ROWS = 24
"""Of a sequence; with more its rows had better look at K and V together."""


def decode_sizes(limits: Limits, plan: Plan) -> list[int]:
    """Sequences of the steps that have a graph."""
    most = min(limits.sequences, limits.logit_rows, limits.step_tokens)
    calls = [launch.call for launch in plan.launches]
    begin = next((at for at, call in enumerate(calls) if not isinstance(call, Input)), 0)  # see Stepper.brings
    if plan.merged > 1 or any(isinstance(call, Input) or _sees_rows(call) for call in calls[begin:]):
        return []
    return sorted({min(size, most) for size in PADDED_ROWS})


class GraphMemory:
    """Memory for graphs that never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        # When memory moves all steps' graphs go at once; but PyTorch insists that where one is captured into a pool
        # that has been used, another one still is (CUDACachingAllocator.cpp, "use_count > 0").
        self._stays = capture(lambda: torch.zeros(1, device=device), self)


def capture(launch_all: Callable[[], object], pool: GraphMemory | None) -> torch.cuda.CUDAGraph:
    """All that is launched has been so before: kernels are compiled, libraries have their workspaces."""
    graph = torch.cuda.CUDAGraph()
    # Other threads (NCCL's watchdog, one that loads) may ask the device something meanwhile.
    with torch.cuda.graph(graph, pool=None if pool is None else pool.handle, capture_error_mode="thread_local"):
        launch_all()
    return graph


class Graphs:
    """Of one program."""

    def __init__(
        self,
        limits: Limits,
        plan: Plan,
        scratch: Scratch,
        adapters: Adapters,
        pool: GraphMemory | None,
        *,
        together: bool = False,
    ) -> None:
        """pool: None where nothing is captured. together: with other ranks, of which each captures when the others
        do."""
        self._together = together
        self.sizes = decode_sizes(limits, plan)
        self._captured: dict[tuple[int, tuple[str, ...]], torch.cuda.CUDAGraph] = {}
        """By rows, and by the names of the step's arrays: they say where each lies."""
        self._pool = pool
        self._scratch, self._adapters = scratch, adapters
        self._moves, self._adapter_moves = scratch.moves, adapters.moves

    def rows_for(self, batch: StepBatch) -> int | None:
        """How many rows the graph has that runs such a step; None: none does."""
        if batch.features is not None:
            return None
        rows = len(batch.tokens)
        if np.diff(batch.row_starts).max() > MOST_ROWS:
            return None
        return next((size for size in self.sizes if rows <= size), None)

    def run(self, step: Step, launch_all: Callable[[], None]) -> None:
        """Runs a step, whose inputs are loaded, by its graph. If there is none yet `launch_all` runs it, and is
        captured for later ones: running a step twice would move recurrent states twice."""
        self._follow_scratch()
        if self._adapter_moves != self._adapters.moves:
            self._captured = {key: graph for key, graph in self._captured.items() if OF_ADAPTED not in key[1]}
            self._adapter_moves = self._adapters.moves
        key = step.rows["tokens"], tuple(step.arrays)
        if key in self._captured:
            self._captured[key].replay()
            return
        launch_all()  # kernels are compiled, libraries make their workspaces
        self._follow_scratch()
        self._moves = self._scratch.moves
        self._captured[key] = capture(launch_all, self._pool)

    def _follow_scratch(self) -> None:
        if self._moves == self._scratch.moves:
            return
        if self._together and self._captured:
            raise RuntimeError("Scratch memory has moved: this rank would capture graphs where others replay theirs.")
        self.drop()

    def drop(self) -> None:
        """Memory that the graphs hold addresses of has moved."""
        self._captured = {}


def _sees_rows(call: Call) -> bool:
    """It looks at a sequence's rows in the step itself, not at what is kept of them."""
    return isinstance(call, Pool) or (isinstance(call, Attend) and call.cache_layer is None)
