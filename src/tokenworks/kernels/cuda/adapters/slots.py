"""An executable's low-rank adapters: by slot, in a table for each product that some adapter touches.

Tables grow when a larger slot or rank comes, and go with the last adapter that is in them. Steps in which no sequence
has an adapter know nothing of them.
"""

from collections.abc import Mapping, Sequence

import torch

from tokenworks.kernels.adapter import Adaptation
from tokenworks.kernels.backend import Int32, StepBatch
from tokenworks.kernels.cuda.adapters.adapt import AdaptedRows, LowRankAddend, Room, Table, blocks_of
from tokenworks.kernels.cuda.sizes import power_of_2
from tokenworks.kernels.formats import dequantise
from tokenworks.protocol.errors import ModelError

OF_ADAPTED = "slots"
"""An array that steps with adapters have."""


class AdaptedProduct:
    """One product's share of all adapters."""

    def __init__(self, names: tuple[str, ...], heights: Sequence[int], width: int, room: Room) -> None:
        self.names, self.heights, self.width = names, heights, width
        self.table: Table | None = None
        self._room = room

    def addend(self, x: torch.Tensor, rows: AdaptedRows | None) -> LowRankAddend | None:
        """What the adapters of `rows` add to the product of x; None where none touches it."""
        if self.table is None or rows is None:
            return None
        return LowRankAddend(self.table, rows, x, self._room)


class Adapters:
    """Of one executable."""

    def __init__(self, device: torch.device, most_rows: int) -> None:
        """most_rows: of a step."""
        self._device, self._most_rows = device, most_rows
        self._products: dict[tuple[str, ...], AdaptedProduct] = {}
        self._loaded: set[int] = set()
        self._room = Room(device)
        self.slots = 0
        """So many numbers of slots are ready."""
        self.moves = 0
        """How often memory has moved or come, or steps' arrays have, whose sizes follow the slots: graphs of steps with
        adapters hold addresses of both."""

    def __contains__(self, slot: int) -> bool:
        return slot in self._loaded

    @property
    def nbytes(self) -> int:
        tables = sum(product.table.nbytes for product in self._products.values() if product.table is not None)
        return tables + self._room.nbytes

    @property
    def shapes(self) -> dict[tuple[str, ...], int]:
        """Ranks that there is room for, by product: what kernels are compiled for."""
        return {names: each.table.rank for names, each in self._products.items() if each.table is not None}

    def product(self, names: tuple[str, ...], heights: Sequence[int], width: int) -> AdaptedProduct:
        """Of weights that are multiplied together: rows of each, and columns."""
        return self._products.setdefault(names, AdaptedProduct(names, heights, width, self._room))

    def load(self, slot: int, adaptation: Adaptation) -> None:
        """`adaptation` fits the program. Raises ModelError when there is no memory for it; the slot is empty then."""
        self.drop(slot)
        self._loaded.add(slot)
        if slot >= self.slots:
            self.slots = power_of_2(slot + 1)
            self.moves += 1
        try:
            for product in self._products.values():
                self._load(product, slot, adaptation)
        except torch.OutOfMemoryError as error:
            self.drop(slot)
            raise ModelError(
                f"The GPU's memory has no room for another adapter (adapter_slots, cache_mb): {error}"
            ) from error

    def _load(self, product: AdaptedProduct, slot: int, adaptation: Adaptation) -> None:
        shares = {at: adaptation[name] for at, name in enumerate(product.names) if name in adaptation}
        table, rank = product.table, max((share.down.shape[0] for share in shares.values()), default=0)
        if table is None and not shares:
            return
        if table is None or table.slots < self.slots or table.rank < rank:
            larger = Table(
                self.slots, max(rank, table.rank if table else 0), product.heights, product.width, self._device
            )
            if table is not None:
                larger.take(table)
            self._room.reserve(*larger.numbers(self._most_rows))
            product.table = table = larger
            self.moves += 1
        for at, share in shares.items():
            down, up = (torch.from_numpy(dequantise(side)).to(self._device) for side in (share.down, share.up))
            table.put(slot, at, down, up, share.scale)

    def drop(self, slot: int) -> None:
        """Frees what is in the slot, if there is something."""
        if slot not in self._loaded:
            return
        self._loaded.remove(slot)
        for product in self._products.values():
            if not self._loaded:
                product.table = None
            elif product.table is not None and slot < product.table.slots:  # else there was no memory to grow
                product.table.clear(slot)
        if not self._loaded:
            self._room.free()
            self.slots = 0
            self.moves += 1


def adapted_arrays(batch: StepBatch, of_rows: Int32, slots: int) -> dict[str, Int32]:
    """What goes to the device of a step with adapters. of_rows: each row's sequence; slots: Adapters'."""
    assert batch.adapters is not None
    most = min(slots, len(batch.adapters))
    arrays: dict[str, Int32] = {}
    by_row = batch.adapters[of_rows]
    for prefix, each in (("", by_row), ("selected_", by_row[batch.logit_rows])):
        blocks, owners = blocks_of(each, most)
        arrays |= {f"{prefix}slots": each, f"{prefix}adapted": blocks, f"{prefix}owners": owners}
    return arrays


def adapted_rows(arrays: Mapping[str, torch.Tensor], prefix: str) -> AdaptedRows | None:
    """Of a step's arrays on the device; None where it has no adapters."""
    slots = arrays.get(f"{prefix}slots")
    return slots if slots is None else AdaptedRows(slots, arrays[f"{prefix}adapted"], arrays[f"{prefix}owners"])
