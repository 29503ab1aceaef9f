"""Which running sequence's recurrent state lies in which slot, and where snapshots of it are left. Pure.

A running sequence owns one slot. It reads its state from `state_begin` (nowhere at its first token, a snapshot's slot
when it goes on from one, else its own) and writes it to its own slot, or to a new one that becomes a snapshot and that
it reads next: nothing is ever copied between slots. A step may also leave snapshots of tokens in its middle.

Snapshots are left where they are likely to be of use: at the last block border before a prompt's end (the same prompt
comes again), where a prompt parts from what is in the tree already (others begin the same way), on the way every
SPACING_TOKENS while slots are free, and at the last full block of what a sequence writes (a conversation goes on; a
preempted sequence comes back), where it replaces the one before.

Guesses that run behind a sequence's last token write a state each, to slots taken for the step: the sequence goes on
from that of the last one that proved right, and the slots of the others are free again.
"""

from collections.abc import Sequence as SequenceOf

from tokenworks.engine.sequence import Sequence, State
from tokenworks.kvcache.prefix import Node
from tokenworks.kvcache.snapshots import Snapshots

SPACING_TOKENS = 512

GUESSING_SHARE = 1 / 4
"""Of all slots, that the guesses of one step may take from snapshots."""

Writings = tuple[tuple[int, int], ...]
"""(so many tokens of the sequence, slot that their state is written to), ascending, up to the piece's end."""


class States:
    """Slots for the states of all running sequences, as far as `slots` reach."""

    def __init__(self, slots: int, block_tokens: int) -> None:
        assert slots >= 2, "a sequence that goes on from a snapshot reads one slot and writes another"
        self.snapshots: Snapshots[Node] = Snapshots(slots)
        self._block_tokens = block_tokens
        self._spacing = max(1, SPACING_TOKENS // block_tokens) * block_tokens

    @property
    def used(self) -> int:
        """Slots that running sequences hold."""
        return self.snapshots.pool.total - self.snapshots.pool.free - self.cached

    @property
    def cached(self) -> int:
        """Slots only the prefix cache holds."""
        return self.snapshots.idle

    def look_up(self, sequence: Sequence) -> None:
        """Cuts the cached blocks that a waiting sequence has found down to those that end in a snapshot."""
        nodes = sequence.nodes
        sequence.fork = len(nodes) * self._block_tokens
        while nodes and nodes[-1] not in self.snapshots:
            nodes.pop()

    def comes_soon(self, sequence: Sequence, running: SequenceOf[Sequence]) -> bool:
        """A snapshot that a waiting sequence could go on from is on its way."""
        found = len(sequence.nodes) * self._block_tokens
        for other in running:
            end = self._prompt_border(other)
            if (
                other.state is State.PREFILL
                and max(found, other.computed) < end < len(sequence.tokens)
                and sequence.tokens[:end] == other.tokens[:end]
            ):
                return True
        return False

    def admit(self, sequence: Sequence) -> bool:
        """Gives a slot, and holds the snapshot that the sequence goes on from. False: there is no slot."""
        begin = self.snapshots.hold(sequence.nodes[-1]) if sequence.nodes else -1
        slot = self.snapshots.take()
        if slot is None:
            if begin >= 0:
                self.snapshots.pool.release(begin)
            return False
        sequence.state_slot, sequence.state_begin = slot, begin
        return True

    def writings(self, sequence: Sequence, end: int) -> Writings:
        """For a piece up to `end`; slots of snapshots are taken."""
        found = []
        size = self._block_tokens
        first, last = sequence.reach // size * size + size, end // size * size
        for border in range(first, last + 1, size):
            slot = self._slot_at(sequence, border, border == last)
            if slot is not None:
                found.append((border, slot))
        if not found or found[-1][0] < end:
            found.append((end, sequence.state_slot))
        return tuple(found)

    def room_for_guesses(self) -> int:
        """How many guesses could run in a step."""
        return min(self._to_be_had, int(self.snapshots.pool.total * GUESSING_SHARE))

    def room_behind(self, sequence: Sequence, writings: Writings) -> int:
        """How many guesses could run behind a piece of one token."""
        [(_, slot)] = writings
        return self._to_be_had + (slot != sequence.state_slot)

    def with_guesses(self, sequence: Sequence, writings: Writings, guesses: int) -> Writings:
        """For a piece of one token, and guesses behind it, for which there is room."""
        [(end, slot)] = writings
        slots = [] if slot == sequence.state_slot else [slot]
        while len(slots) < guesses:
            taken = self.snapshots.take()
            assert taken is not None
            slots.append(taken)
        # A piece's last state may be written over the one that it begins with, others may not.
        return tuple((end + number, slot) for number, slot in enumerate((*slots, sequence.state_slot)))

    def keep(self, sequence: Sequence, writings: Writings) -> None:
        """A piece has run, as many of its tokens as proved right count as computed, and its full blocks are in the
        tree: its snapshots are kept there."""
        self._let_go(sequence)
        own = sequence.state_slot
        for tokens, slot in writings:
            at_border = tokens % self._block_tokens == 0
            if tokens == sequence.computed and (slot == own or not at_border):
                sequence.state_slot = sequence.state_begin = slot
            elif slot != own and (tokens > sequence.computed or not at_border):
                self.snapshots.pool.release(slot)
            elif slot != own:
                self._keep_snapshot(sequence, tokens, slot)
        if sequence.state_slot != own:
            self.snapshots.pool.release(own)

    def discard(self, sequence: Sequence, writings: Writings) -> None:
        """A piece has not run, or what it made is not to be trusted."""
        for _, slot in writings:
            if slot != sequence.state_slot:
                self.snapshots.pool.release(slot)

    def release(self, sequence: Sequence) -> None:
        """Takes back all that a sequence holds; its snapshots stay in the tree."""
        self._let_go(sequence)
        self.snapshots.pool.release(sequence.state_slot)
        sequence.state_slot = sequence.state_begin = -1
        sequence.last_snapshot = None

    @property
    def _to_be_had(self) -> int:
        return self.snapshots.pool.free + self.cached

    def _keep_snapshot(self, sequence: Sequence, border: int, slot: int) -> None:
        node = sequence.nodes[border // self._block_tokens - 1]
        new = self.snapshots.keep(node, slot)
        if border == sequence.computed:
            sequence.state_begin = self.snapshots.hold(node)
        if border > self._prompt_border(sequence):
            self._drop_last(sequence)
            if new:
                sequence.last_snapshot = node

    def _let_go(self, sequence: Sequence) -> None:
        if sequence.state_begin not in (-1, sequence.state_slot):
            self.snapshots.pool.release(sequence.state_begin)
        sequence.state_begin = -1

    def _slot_at(self, sequence: Sequence, border: int, last: bool) -> int | None:
        """A slot for a snapshot at a block border, the piece's last one or not, if it is wanted and can be had."""
        prompt_border = self._prompt_border(sequence)
        if border > prompt_border:
            if not last:
                return None
            if not self.snapshots.pool.free:
                self._drop_last(sequence)
            return self.snapshots.take()
        if border in (sequence.fork, prompt_border):
            return self.snapshots.take()
        return self.snapshots.take(evict=False) if border % self._spacing == 0 else None

    def _drop_last(self, sequence: Sequence) -> None:
        if sequence.last_snapshot is not None and self.snapshots.is_idle(sequence.last_snapshot):
            self.snapshots.drop(sequence.last_snapshot)
        sequence.last_snapshot = None

    def _prompt_border(self, sequence: Sequence) -> int:
        """As much of a prompt as can be used again: one token has to run for its logits."""
        return (sequence.prompt_tokens - 1) // self._block_tokens * self._block_tokens
