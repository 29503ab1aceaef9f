"""A program, or its sequel, on the device: its launches, and where they leave what they make."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from tokenworks.kernels.backend import Float32, Limits, StepBatch
from tokenworks.kernels.cuda.device_rows import DeviceRows
from tokenworks.kernels.cuda.graphs import Graphs, decode_sizes
from tokenworks.kernels.cuda.launches import Binder, Bound
from tokenworks.kernels.cuda.plan import Plan
from tokenworks.kernels.cuda.warming import empty_step, kinds_of_steps
from tokenworks.kernels.flow import RowKind
from tokenworks.kernels.group import Group
from tokenworks.kernels.program import Embed, Input, Pause, Program, StateLayer, Value


class Stepper:
    """What runs one step of a program."""

    def __init__(self, program: Program, plan: Plan, limits: Limits, device: torch.device, binder: Binder) -> None:
        self.program, self.plan, self.view = program, plan, binder.view
        self._binder = binder
        self._limits, self._device = limits, device
        self._inputs = sum(each.output.width for each in program.instructions if isinstance(each, Input))
        """Columns of what is taken in."""
        self.brings: list[Bound] = []
        """Inputs, before all else: graphs begin behind them."""
        self.parts: list[list[Bound]] = [[]]
        """Between the program's pauses."""
        self.rows: Mapping[RowKind, int] = {}
        """Of the last run."""
        self.graphs: Graphs | None = None
        self.tile_tokens = binder.tile_tokens
        for launch in plan.launches:
            if isinstance(launch.call, Pause):
                self.parts.append([])
            elif isinstance(launch.call, Input) and self.parts == [[]]:
                self.brings += binder.bind(launch)
            else:
                self.parts[-1] += binder.bind(launch)

    def meet(self, group: Group[torch.Tensor] | None) -> None:
        """The ranks that its collectives call on from now on; None: they do nothing, as where kernels are compiled."""
        self._binder.group = group

    def drop_graphs(self) -> None:
        if self.graphs:
            self.graphs.drop()

    def kinds_of_steps(self) -> list[list[int]]:
        """What to get ready with: lengths of sequences, the largest first. None where a step is more than tokens."""
        sizes = decode_sizes(self._limits, self.plan)
        if self.plan.merged > 1 or len(self.parts) > 1 or (self._inputs and not sizes):
            return []
        return kinds_of_steps(self._limits, sizes)

    def empty_step(self, lengths: Sequence[int]) -> StepBatch:
        """Of sequences that see and keep nothing; zeros for what the program takes in. Of the arrays of real steps:
        graphs hold their places."""
        step, program = empty_step(lengths), self.program
        if not any(isinstance(layer, StateLayer) for layer in program.cache_layers):
            step = replace(step, states=None)
        if any(isinstance(each, Embed) and each.index == "axis" for each in program.instructions):
            step = replace(step, axes=np.zeros((1, sum(lengths)), np.int32))
        rows = torch.zeros((sum(lengths), self._inputs), device=self._device)
        inputs = cast(Float32, DeviceRows([rows], self._inputs, self._device)) if self._inputs else None
        return replace(step, inputs=inputs)

    def launches(self, part: int | None) -> list[Bound]:
        """Of one part, or of all."""
        return [launch for each in (self.parts if part is None else [self.parts[part]]) for launch in each]

    def counts(self, batch: StepBatch) -> dict[RowKind, int]:
        return {
            "tokens": len(batch.tokens),
            "selected": len(batch.logit_rows),
            "sequences": len(batch.row_starts) - 1,
            "merged": len(batch.tokens) // self.plan.merged,
        }

    def kind(self, value: Value) -> RowKind:
        return self.plan.buffer_rows[value.buffer]

    def values(self, value: Value) -> torch.Tensor:
        """Of the last run."""
        return self.view(value)[: self.rows[self.kind(value)]]
