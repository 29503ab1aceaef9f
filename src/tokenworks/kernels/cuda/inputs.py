"""A step's numbers on their way to the device: one block of int32, copied at once.

Where an array lies depends on the sizes of the step alone, so that a graph captured for some sizes finds every later
step of the same sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from tokenworks.kernels.backend import Int32, Limits, StateBatch, StepBatch
from tokenworks.kernels.cuda.adapters.adapt import AdaptedRows
from tokenworks.kernels.cuda.adapters.slots import adapted_arrays, adapted_rows
from tokenworks.kernels.cuda.attention.launch import Seen, tiles_of
from tokenworks.kernels.cuda.attention.place import Places
from tokenworks.kernels.cuda.device_rows import rows_on
from tokenworks.kernels.cuda.recurrent.states import States
from tokenworks.kernels.flow import RowKind

FIRST_TABLE_NUMBERS = 1 << 16
"""Of block tables; there is more room when a step needs it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as its launches see it."""

    rows: Mapping[RowKind, int]
    arrays: Mapping[str, torch.Tensor]
    """int32, on the device."""
    tables: torch.Tensor
    meta: torch.Tensor
    tile_tokens: Sequence[int]
    features: torch.Tensor | None = None
    inputs: torch.Tensor | None = None
    singles_only: bool = False
    """Each sequence has one row: row i is sequence i."""

    def places(self, kind: RowKind) -> Places:
        prefix = "selected_" if kind == "selected" else ""
        of = self.arrays
        return Places(
            of[prefix + "positions"], of[prefix + "sequences"], self.tables, self.meta, of.get(prefix + "axes")
        )

    def adapted(self, kind: RowKind) -> AdaptedRows | None:
        return adapted_rows(self.arrays, "selected_" if kind == "selected" else "")

    def states(self, kept: torch.Tensor) -> States:
        """`kept`: a layer's."""
        of = self.arrays
        where = (of["state_begin"], of["state_starts"], of["state_rows"], of["state_slots"])
        return States(kept, of["state_row_starts"], *where)

    def seen(self, kind: RowKind, windows: bool) -> Seen:
        prefix = "selected_" if kind == "selected" else ""
        of, spans = self.arrays, "window" if windows else "span"
        return Seen(
            of[prefix + "positions"], of[prefix + "sequences"], of[prefix + "ends"],
            of.get(spans + "_begins"), of.get(spans + "_ends"), self.tables, self.meta,
        )  # fmt: skip


@dataclass(slots=True)
class Inputs:
    """The device's memory for steps' numbers."""

    device: torch.device
    limits: Limits
    tile_tokens: Sequence[int]
    """Of the program's attentions: there is a list of tiles for each."""
    axes: int
    """Of positions, where the program turns along several."""
    spans: bool
    """The program looks at rows, not at a cache."""
    _host: torch.Tensor = field(init=False)
    _numbers: torch.Tensor = field(init=False)
    _tables: torch.Tensor = field(init=False)
    _host_tables: torch.Tensor = field(init=False)
    _sent: torch.cuda.Event | None = field(default=None, init=False)
    """When the last step's numbers have left the CPU's memory."""
    meta: torch.Tensor = field(init=False)
    """[4]: the first is the number of columns of the block tables."""

    def __post_init__(self) -> None:
        rows = max(self.limits.step_tokens, self.limits.sequences, self.limits.logit_rows)
        count = rows * (16 + 2 * self.axes + 4 * len(self.tile_tokens)) + 8 * self.limits.sequences + 256
        count += 5 * rows + 40 * self.limits.sequences  # of steps with adapters
        self._host = torch.empty(count, dtype=torch.int32, pin_memory=self.device.type == "cuda")
        self._numbers = torch.zeros(count, dtype=torch.int32, device=self.device)
        self._make_tables(FIRST_TABLE_NUMBERS)
        self.meta = torch.zeros(4, dtype=torch.int32, device=self.device)

    def _make_tables(self, numbers: int) -> None:
        self._tables = torch.full((numbers,), -1, dtype=torch.int32, device=self.device)
        self._host_tables = torch.empty(numbers, dtype=torch.int32, pin_memory=self.device.type == "cuda")

    def fits(self, batch: StepBatch) -> bool:
        """The block tables have room; what was captured before need not be captured anew."""
        return batch.block_tables.size <= len(self._tables)

    def load(
        self,
        batch: StepBatch,
        rows: Mapping[RowKind, int],
        *,
        singles_only: bool,
        carried: Int32 | None = None,
        adapter_slots: int = 0,
    ) -> Step:
        """carried: by_rows'; adapter_slots: so many are ready, where the batch has adapters."""
        arrays = self._arrays(batch, singles_only, batch.row_starts if carried is None else carried)
        if batch.adapters is not None:
            arrays |= adapted_arrays(batch, arrays["sequences"], adapter_slots)
        views, at = {}, 4
        if self._sent is not None:
            self._sent.synchronize()
        if not self.fits(batch):
            self._make_tables(2 * batch.block_tables.size)
        host = self._host.numpy()
        host[0] = batch.block_tables.shape[1]
        for name, array in arrays.items():
            host[at : at + array.size] = array.reshape(-1)
            views[name] = self._numbers[at : at + array.size].view(array.shape)
            at += -(-array.size // 4) * 4
        self._host_tables.numpy()[: batch.block_tables.size] = batch.block_tables.reshape(-1)
        self._numbers[:at].copy_(self._host[:at], non_blocking=True)
        self._tables[: batch.block_tables.size].copy_(self._host_tables[: batch.block_tables.size], non_blocking=True)
        if self.device.type == "cuda":
            self._sent = torch.cuda.Event()
            self._sent.record()
        self.meta = self._numbers[:4]
        features = None if batch.features is None else torch.from_numpy(batch.features).to(self.device)
        inputs = None if batch.inputs is None else rows_on(batch.inputs, self.device)
        return Step(rows, views, self._tables, self.meta, self.tile_tokens, features, inputs, singles_only)

    def _arrays(self, batch: StepBatch, singles_only: bool, carried: Int32) -> dict[str, Int32]:
        tokens, chosen = len(batch.tokens), batch.logit_rows
        sequences = np.repeat(np.arange(len(batch.row_starts) - 1, dtype=np.int32), np.diff(batch.row_starts))
        ends = batch.positions + np.int32(1) if batch.ends is None else batch.ends
        arrays = {
            "tokens": batch.tokens,
            "positions": batch.positions,
            "sequences": sequences,
            "ends": ends,
            "row_starts": batch.row_starts,
            "logit_rows": chosen,
            "selected_positions": batch.positions[chosen],
            "selected_sequences": sequences[chosen],
            "selected_ends": ends[chosen],
        }
        if self.axes:
            axes = batch.axes if batch.axes is not None else np.broadcast_to(batch.positions, (self.axes, tokens))
            arrays |= {"axes": np.ascontiguousarray(axes), "selected_axes": np.ascontiguousarray(axes[:, chosen])}
        elif batch.axes is not None:
            arrays["axis"] = batch.axes[0]
        if batch.feature_rows is not None:
            arrays["feature_rows"] = batch.feature_rows
        if self.spans:
            for name, starts in (("span", batch.row_starts), ("window", batch.window_starts)):
                if starts is not None:
                    counts = np.diff(starts)
                    arrays |= {
                        f"{name}_begins": np.repeat(starts[:-1], counts),
                        f"{name}_ends": np.repeat(starts[1:], counts),
                    }
        if batch.states is not None:
            of = batch.states
            arrays |= {"state_begin": of.begin, "state_rows": of.rows, "state_slots": of.slots}
            arrays |= {"state_row_starts": carried, "state_starts": np.searchsorted(of.rows, carried).astype(np.int32)}
        if not singles_only:
            for name, starts in (("", batch.row_starts), ("window_", batch.window_starts)):
                if starts is None:
                    continue
                for tokens_of in self.tile_tokens:
                    few = 0 if self.spans else 4
                    singles, large = tiles_of(starts, tokens_of, few)
                    arrays |= {f"{name}singles{tokens_of}": singles, f"{name}tiles{tokens_of}": large}
        return arrays


def _padded_states(states: StateBatch, tokens: int, rows: int) -> StateBatch:
    """Of `rows` sequences and as many writings: rows behind the step's own go nowhere, as does no row at all."""
    more, written = rows - tokens, len(states.rows)
    nowhere = [tokens + np.arange(more, dtype=np.int32), np.full(tokens - written, rows, np.int32)]
    return StateBatch(
        np.pad(states.begin, (0, rows - len(states.begin)), constant_values=-1),
        np.concatenate([states.rows, *nowhere]),
        np.pad(states.slots, (0, rows - written), constant_values=-1),
    )


def by_rows(batch: StepBatch, rows: int) -> tuple[StepBatch, Int32]:
    """The same step as one of `rows` sequences with a row each; those behind its own have no blocks, see nothing and
    keep nothing. Logits are wanted of as many rows, first of those that the step itself wants.

    And [rows + 1] where its own sequences begin and end, since states go from row to row; then those behind, then
    sequences without rows.
    """
    tokens, wanted = len(batch.tokens), len(batch.logit_rows)
    more, counts = rows - tokens, np.diff(batch.row_starts)
    if not more and len(counts) == wanted == rows:
        return batch, batch.row_starts
    behind = np.minimum(tokens + 1 + np.arange(rows - len(counts), dtype=np.int32), np.int32(rows))
    tables = np.full((rows, batch.block_tables.shape[1]), -1, np.int32)
    tables[: len(batch.tokens)] = np.repeat(batch.block_tables, counts, axis=0)
    zeros, adapters = np.zeros(more, np.int32), batch.adapters
    if adapters is not None:
        adapters = np.pad(np.repeat(adapters, counts), (0, more), constant_values=-1)
    ends = batch.positions + np.int32(1) if batch.ends is None else batch.ends
    made = replace(
        batch,
        tokens=np.concatenate([batch.tokens, zeros]),
        positions=np.concatenate([batch.positions, zeros]),
        row_starts=np.arange(rows + 1, dtype=np.int32),
        block_tables=tables,
        logit_rows=np.concatenate([batch.logit_rows, np.zeros(rows - wanted, np.int32)]),
        ends=np.concatenate([ends, zeros]),
        axes=None if batch.axes is None else np.pad(batch.axes, ((0, 0), (0, more))),
        states=None if batch.states is None else _padded_states(batch.states, tokens, rows),
        adapters=adapters,
    )
    return made, np.concatenate([batch.row_starts, behind])
