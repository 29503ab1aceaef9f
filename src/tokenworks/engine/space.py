"""Which sequence has which cache blocks: slots, block tables and shared prefixes. Pure; the scheduler decides when."""

import numpy as np

from tokenworks.engine.sequence import Sequence, State
from tokenworks.kvcache.blocks import BlockPool
from tokenworks.kvcache.prefix import Key, Node, PrefixTree


class CacheSpace:
    """The cache as sequences see it.

    A sequence's full blocks enter the prefix tree as they fill, so that a prompt that begins the same way finds them,
    while the sequence runs and after.
    """

    def __init__(self, blocks: int, block_tokens: int, slots: int, context_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.pool = BlockPool(blocks)
        self.tree = PrefixTree(self.pool, block_tokens)
        self.tables = np.full((slots, min(blocks, -(-context_tokens // block_tokens))), -1, np.int32)
        self._free_slots = list(range(slots - 1, -1, -1))
        self._filling: dict[tuple[Node, Key], Sequence] = {}

    @property
    def available(self) -> int:
        """Blocks that can be had: free ones and idle prefixes."""
        return self.pool.free + self.tree.idle

    def look_up(self, sequence: Sequence) -> None:
        """Finds the cached blocks that a waiting sequence begins with, less so many that one token is left to run."""
        if not sequence.prompt_logprobs_due:  # these need the logits of every prompt token, so all of them must run
            self.tree.match(sequence.tokens, (len(sequence.tokens) - 1) // self.block_tokens, sequence.nodes)

    def comes_soon(self, sequence: Sequence) -> bool:
        """The block that a waiting sequence would have to compute first is being computed for another one."""
        if sequence.prompt_logprobs_due:
            return False
        start = len(sequence.nodes) * self.block_tokens
        end = start + self.block_tokens
        parent = sequence.nodes[-1] if sequence.nodes else self.tree.root
        return end < len(sequence.tokens) and (parent, tuple(sequence.tokens[start:end])) in self._filling

    def shortage(self, sequence: Sequence) -> int:
        """How many blocks are missing to hold all tokens of a waiting sequence and one more; 0 or less: none."""
        wanted = len(sequence.tokens) // self.block_tokens + 1 - len(sequence.nodes)
        return wanted - (self.available - self.tree.idle_at_end(sequence.nodes))

    def admit(self, sequence: Sequence) -> None:
        """Gives a slot, and holds the cached blocks that `look_up` found."""
        sequence.slot = self._free_slots.pop()
        for node in sequence.nodes:
            self.tree.hold(node)
        sequence.blocks = len(sequence.nodes)
        self.tables[sequence.slot, : sequence.blocks] = [node.block for node in sequence.nodes]
        sequence.computed = sequence.blocks * self.block_tokens
        self._announce(sequence)

    def grow(self, sequence: Sequence, tokens: int) -> int:
        """Adds blocks for the first `tokens` tokens as far as they can be had; returns for how many there is room."""
        wanted = min(-(-tokens // self.block_tokens) - sequence.blocks, self.available)
        if wanted > 0:
            if wanted > self.pool.free:
                self.tree.evict(wanted - self.pool.free)
            self.tables[sequence.slot, sequence.blocks : sequence.blocks + wanted] = self.pool.take(wanted)
            sequence.blocks += wanted
        return min(tokens, sequence.blocks * self.block_tokens)

    def trim(self, sequence: Sequence) -> None:
        """Takes back the blocks that hold nothing computed: drafts that proved wrong leave such."""
        wanted = -(-sequence.computed // self.block_tokens)
        if wanted < sequence.blocks:
            row = self.tables[sequence.slot]
            for block in row[wanted : sequence.blocks].tolist():
                self.pool.release(block)
            row[wanted : sequence.blocks] = -1
            sequence.blocks = wanted

    def share(self, sequence: Sequence) -> None:
        """Enters the blocks that have filled up into the tree."""
        nodes, size = sequence.nodes, self.block_tokens
        row = self.tables[sequence.slot]
        while (len(nodes) + 1) * size <= sequence.computed:
            index = len(nodes)
            parent = nodes[-1] if nodes else self.tree.root
            node = self.tree.insert(parent, tuple(sequence.tokens[index * size : (index + 1) * size]), int(row[index]))
            row[index] = node.block
            nodes.append(node)
        self._announce(sequence)

    def release(self, sequence: Sequence) -> None:
        """Takes slot and blocks back; what is in the tree stays there, idle, if nobody else reads it."""
        row = self.tables[sequence.slot]
        for block in row[len(sequence.nodes) : sequence.blocks].tolist():
            self.pool.release(block)
        for node in reversed(sequence.nodes):
            self.tree.release(node)
        row[: sequence.blocks] = -1
        self._free_slots.append(sequence.slot)
        self._retract(sequence)
        sequence.nodes = []
        sequence.slot, sequence.blocks, sequence.computed = -1, 0, 0

    def _announce(self, sequence: Sequence) -> None:
        """Tells which full block of its tokens the sequence is computing, if it is and nobody else is."""
        self._retract(sequence)
        start = len(sequence.nodes) * self.block_tokens
        end = start + self.block_tokens
        if sequence.state is State.PREFILL and end <= len(sequence.tokens):
            parent = sequence.nodes[-1] if sequence.nodes else self.tree.root
            key = (parent, tuple(sequence.tokens[start:end]))
            if key not in self._filling:
                self._filling[key] = sequence
                sequence.filling = key

    def _retract(self, sequence: Sequence) -> None:
        if sequence.filling is not None:
            del self._filling[sequence.filling]
            sequence.filling = None
