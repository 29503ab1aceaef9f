"""Who has which cache blocks: slots, block tables and shared prefixes. Pure; the scheduler decides when."""

from collections.abc import Callable

import numpy as np

from tokenworks.engine.sequence import Sequence, Tenant
from tokenworks.kvcache.blocks import BlockPool
from tokenworks.kvcache.prefix import Key, Node, PrefixTree


class CacheSpace:
    """The cache as sequences see it, or what else has tokens in it (engine/follow.py).

    A sequence's full blocks enter the prefix tree as they fill, so that a prompt that begins the same way finds them,
    while the sequence runs and after.
    """

    def __init__(
        self,
        blocks: int,
        block_tokens: int,
        slots: int,
        context_tokens: int,
        forgotten: Callable[[Node], None] = lambda node: None,
    ) -> None:
        """`forgotten` is told each node that leaves the tree."""
        self.block_tokens = block_tokens
        self.pool = BlockPool(blocks)
        self.tree = PrefixTree(self.pool, block_tokens, forgotten)
        self.tables = np.full((slots, min(blocks, -(-context_tokens // block_tokens))), -1, np.int32)
        self._free_slots = list(range(slots - 1, -1, -1))
        self._filling: dict[tuple[Node, Key], Tenant] = {}

    @property
    def available(self) -> int:
        """Blocks that can be had: free ones and idle prefixes."""
        return self.pool.free + self.tree.idle

    def look_up(self, tenant: Tenant) -> None:
        """Finds the cached blocks that its tokens begin with, less so many that one token is left to run."""
        self.tree.match(tenant.keys, (len(tenant.tokens) - 1) // self.block_tokens, tenant.nodes)

    def comes_soon(self, sequence: Sequence) -> bool:
        """The block that a waiting sequence would have to compute first is being computed for another one."""
        if sequence.prompt_logprobs_due:
            return False
        start = len(sequence.nodes) * self.block_tokens
        end = start + self.block_tokens
        parent = sequence.nodes[-1] if sequence.nodes else self.tree.root
        return end < len(sequence.tokens) and (parent, tuple(sequence.keys[start:end])) in self._filling

    def shortage(self, sequence: Sequence) -> int:
        """How many blocks are missing to hold all tokens of a waiting sequence and one more; 0 or less: none."""
        wanted = len(sequence.tokens) // self.block_tokens + 1 - len(sequence.nodes)
        return wanted - (self.available - self.tree.idle_at_end(sequence.nodes))

    def admit(self, tenant: Tenant) -> None:
        """Gives a slot, and holds the cached blocks that `look_up` found."""
        tenant.slot = self._free_slots.pop()
        for node in tenant.nodes:
            self.tree.hold(node)
        tenant.blocks = len(tenant.nodes)
        self.tables[tenant.slot, : tenant.blocks] = [node.block for node in tenant.nodes]
        tenant.computed = tenant.blocks * self.block_tokens
        self._announce(tenant)

    def grow(self, tenant: Tenant, tokens: int) -> int:
        """Adds blocks for the first `tokens` tokens as far as they can be had; returns for how many there is room."""
        wanted = min(-(-tokens // self.block_tokens) - tenant.blocks, self.available)
        if wanted > 0:
            if wanted > self.pool.free:
                self.tree.evict(wanted - self.pool.free)
            self.tables[tenant.slot, tenant.blocks : tenant.blocks + wanted] = self.pool.take(wanted)
            tenant.blocks += wanted
        return min(tokens, tenant.blocks * self.block_tokens)

    def trim(self, tenant: Tenant) -> None:
        """Takes back the blocks that hold nothing computed: drafts that proved wrong leave such."""
        wanted = -(-tenant.computed // self.block_tokens)
        if wanted < tenant.blocks:
            row = self.tables[tenant.slot]
            for block in row[wanted : tenant.blocks].tolist():
                self.pool.release(block)
            row[wanted : tenant.blocks] = -1
            tenant.blocks = wanted

    def share(self, tenant: Tenant) -> None:
        """Enters the blocks that have filled up into the tree."""
        nodes, size = tenant.nodes, self.block_tokens
        row = self.tables[tenant.slot]
        while (len(nodes) + 1) * size <= tenant.computed:
            index = len(nodes)
            parent = nodes[-1] if nodes else self.tree.root
            node = self.tree.insert(parent, tuple(tenant.keys[index * size : (index + 1) * size]), int(row[index]))
            row[index] = node.block
            nodes.append(node)
        self._announce(tenant)

    def release(self, tenant: Tenant) -> None:
        """Takes slot and blocks back; what is in the tree stays there, idle, if nobody else reads it."""
        row = self.tables[tenant.slot]
        for block in row[len(tenant.nodes) : tenant.blocks].tolist():
            self.pool.release(block)
        for node in reversed(tenant.nodes):
            self.tree.release(node)
        row[: tenant.blocks] = -1
        self._free_slots.append(tenant.slot)
        self._retract(tenant)
        tenant.nodes = []
        tenant.slot, tenant.blocks, tenant.computed = -1, 0, 0

    def _announce(self, tenant: Tenant) -> None:
        """Tells which full block of its tokens it is computing, if it is and nobody else is."""
        self._retract(tenant)
        start = len(tenant.nodes) * self.block_tokens
        end = start + self.block_tokens
        if tenant.prefilling and end <= len(tenant.tokens):
            parent = tenant.nodes[-1] if tenant.nodes else self.tree.root
            key = (parent, tuple(tenant.keys[start:end]))
            if key not in self._filling:
                self._filling[key] = tenant
                tenant.filling = key

    def _retract(self, tenant: Tenant) -> None:
        if tenant.filling is not None:
            del self._filling[tenant.filling]
            tenant.filling = None
