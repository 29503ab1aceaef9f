"""Slots of recurrent states: each running sequence's own, and snapshots kept at nodes of the prefix tree. Pure.

K and V of a prefix serve whoever begins with it, but a recurrent state is only that of its last token. So sequences
leave copies of theirs at some block borders, and a prefix can be used as far as its deepest snapshot. A snapshot that
only the tree holds is *idle*: it is given up for another state when slots are short, the least recently used first.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from tokenworks.kvcache.blocks import BlockPool

Node = TypeVar("Node", bound=Hashable)


class Snapshots(Generic[Node]):
    """At most one snapshot a node. `pool` counts who holds each slot: a sequence, the tree, both."""

    def __init__(self, slots: int) -> None:
        self.pool = BlockPool(slots)
        self._slots: OrderedDict[Node, int] = OrderedDict()
        """The least recently used first."""

    def __contains__(self, node: Node) -> bool:
        return node in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, node: Node) -> int:
        return self._slots[node]

    def take(self, *, evict: bool = True) -> int | None:
        """A slot, held once by the caller from now on: a free one, else with `evict` an idle snapshot's; or None."""
        if not self.pool.free and evict:
            idle = (node for node, slot in self._slots.items() if self.pool.references(slot) == 1)
            node = next(idle, None)
            if node is not None:
                self.drop(node)
        return self.pool.take(1)[0] if self.pool.free else None

    def keep(self, node: Node, slot: int) -> bool:
        """The caller's slot becomes the node's snapshot. False: it has one, of the same content; the slot is freed."""
        known = node in self._slots
        if known:
            self.pool.release(slot)
        else:
            self._slots[node] = slot
        self._slots.move_to_end(node)
        return not known

    def hold(self, node: Node) -> int:
        """The slot of a node's snapshot, held once more by the caller: to be given back to `pool`."""
        slot = self._slots[node]
        self.pool.hold(slot)
        self._slots.move_to_end(node)
        return slot

    @property
    def idle(self) -> int:
        """How many snapshots only the tree holds."""
        return sum(self.pool.references(slot) == 1 for slot in self._slots.values())

    def is_idle(self, node: Node) -> bool:
        """The node has a snapshot and only the tree holds it."""
        return node in self._slots and self.pool.references(self._slots[node]) == 1

    def drop(self, node: Node) -> None:
        """The tree gives up a node's snapshot, if it has one."""
        slot = self._slots.pop(node, None)
        if slot is not None:
            self.pool.release(slot)
