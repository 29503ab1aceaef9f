"""Which LoRA adapters are in memory, and who uses them: slots, as S-LoRA has them (arXiv 2311.03285).

An adapter stays in its slot while a request uses it, and after that until the slot is needed for another.
"""

from collections.abc import Callable, Iterable

from tokenworks.kernels.adapter import Adaptation
from tokenworks.kernels.backend import Executable
from tokenworks.protocol.messages import Adapter


class AdapterSlots:
    """The adapters of one executable."""

    def __init__(self, executable: Executable, slots: int, read: Callable[[Adapter], Adaptation]) -> None:
        """`read` opens an adapter's files, and raises ModelError for what cannot be used."""
        self._executable, self._read = executable, read
        self._free = list(range(slots - 1, -1, -1))
        self._slots: dict[Adapter, int] = {}
        """Of those in memory, the one used longest ago first."""
        self._users: dict[Adapter, int] = {}
        self._numbers: dict[Adapter, int] = {}
        self._dropped: set[Adapter] = set()
        self._count = 0

    def fill(self, adapters: Iterable[Adapter]) -> None:
        """Tries adapters, and loads them as far as there are free slots. Raises ModelError."""
        for adapter in adapters:
            adaptation = self._read(adapter)
            if self._free:
                self._executable.load_adapter(self._free[-1], adaptation)
                self._slots[adapter] = self._free.pop()

    def hold(self, adapter: Adapter) -> int | None:
        """The adapter's slot, for one user more; it is loaded if need be. None: all slots are in use, try later.

        Raises ModelError.
        """
        slot = self._slots.get(adapter)
        if slot is None:
            slot = self._empty_slot()
            if slot is None:
                return None
            try:
                self._executable.load_adapter(slot, self._read(adapter))
            except BaseException:
                self._free.append(slot)
                raise
        self._slots.pop(adapter, None)
        self._slots[adapter] = slot
        self._users[adapter] = self._users.get(adapter, 0) + 1
        return slot

    def slot(self, adapter: Adapter) -> int:
        """Of one that is held."""
        return self._slots[adapter]

    def release(self, adapter: Adapter) -> None:
        """One user fewer."""
        self._users[adapter] -= 1
        if not self._users[adapter]:
            del self._users[adapter]
            if adapter in self._dropped:
                self._forget(adapter)

    def drop(self, adapter: Adapter) -> None:
        """Nobody new will ask for it: its memory is free as soon as nobody uses it."""
        if adapter in self._users:
            self._dropped.add(adapter)
        else:
            self._forget(adapter)

    def number(self, adapter: Adapter) -> int:
        """From 1 on, and no other adapter's, ever: for telling apart what they have computed."""
        if adapter not in self._numbers:
            self._count += 1
            self._numbers[adapter] = self._count
        return self._numbers[adapter]

    def _empty_slot(self) -> int | None:
        if not self._free:
            idle = next((adapter for adapter in self._slots if adapter not in self._users), None)
            if idle is None:
                return None
            self._empty(idle)
        return self._free.pop()

    def _empty(self, adapter: Adapter) -> None:
        slot = self._slots.pop(adapter)
        self._executable.drop_adapter(slot)
        self._free.append(slot)

    def _forget(self, adapter: Adapter) -> None:
        self._dropped.discard(adapter)
        self._numbers.pop(adapter, None)
        if adapter in self._slots:
            self._empty(adapter)
