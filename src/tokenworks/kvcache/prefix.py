"""Which prefixes are in the cache: a radix tree whose letters are full blocks of tokens. Pure.

A node stands for the tokens from the start of a sequence to the end of its block. The tree holds every node's block
once (BlockPool), each sequence that reads it once more; a sequence that holds a node holds all nodes above it.
A block that only the tree holds is *idle*: kept in the hope of a hit, given up when blocks are short. Only leaves are
given up, the least recently used first, so that what remains is always whole prefixes.
"""

import heapq
from collections.abc import Callable, Sequence

from tokenworks.kvcache.blocks import BlockPool

Key = tuple[int, ...]
"""The tokens of one full block."""


class Node:
    """One cached block and the way to it."""

    __slots__ = ("block", "children", "in_tree", "key", "last_used", "parent")

    def __init__(self, parent: "Node | None", key: Key, block: int) -> None:
        self.parent = parent
        self.key = key
        self.block = block
        self.children: dict[Key, Node] = {}
        self.last_used = 0
        self.in_tree = True


class PrefixTree:
    """`idle` counts the blocks that `evict` could free."""

    def __init__(
        self, pool: BlockPool, block_tokens: int, forgotten: Callable[[Node], None] = lambda node: None
    ) -> None:
        """`forgotten` is told each node that leaves the tree."""
        self._forgotten = forgotten
        self._pool = pool
        self._block_tokens = block_tokens
        self.root = Node(None, (), -1)
        self.idle = 0
        self._uses = 0
        # (last use, tie-break, leaf): an entry counts while its leaf is still idle, childless and not used since.
        self._leaves: list[tuple[int, int, Node]] = []
        self._entries = 0

    def match(self, tokens: Sequence[int], blocks: int, path: list[Node]) -> None:
        """Lengthens `path`, the nodes of the first blocks of `tokens`, as far as the tree goes, to at most `blocks`.

        A path found earlier may be given again: it is followed on if it is still there, else found anew.
        """
        if path and not path[-1].in_tree:
            path.clear()
        node, size = (path[-1] if path else self.root), self._block_tokens
        while len(path) < blocks:
            start = len(path) * size
            child = node.children.get(tuple(tokens[start : start + size]))
            if child is None:
                return
            path.append(child)
            node = child

    def insert(self, parent: Node, key: Key, block: int) -> Node:
        """The node for `key` under `parent`, held once for the caller.

        The caller holds `parent` and `block`. Where the tree has that node already with a block of its own, the caller
        gets that one (the contents are the same) and its own block is released.
        """
        node = parent.children.get(key)
        if node is not None:
            self.hold(node)
            self._pool.release(block)
            return node
        node = Node(parent, key, block)
        parent.children[key] = node
        self._pool.hold(block)
        return node

    def hold(self, node: Node) -> None:
        """One sequence more reads this node."""
        if self._pool.hold(node.block) == 2:
            self.idle -= 1

    def release(self, node: Node) -> None:
        """One sequence fewer reads this node: to be called for a path's last node first."""
        if self._pool.release(node.block) == 1:
            self.idle += 1
            self._uses += 1
            node.last_used = self._uses
            if not node.children:
                self._push(node)

    def idle_at_end(self, path: Sequence[Node]) -> int:
        """How many nodes of `path` are idle; they are always its last ones."""
        count = 0
        for node in reversed(path):
            if self._pool.references(node.block) > 1:
                break
            count += 1
        return count

    def evict(self, count: int) -> None:
        """Frees the blocks of `count` idle nodes; the caller has checked that there are so many."""
        assert count <= self.idle
        while count:
            last_used, _, node = heapq.heappop(self._leaves)
            if not node.in_tree or node.children or node.last_used != last_used:
                continue
            if self._pool.references(node.block) > 1:
                continue
            parent = node.parent
            assert parent is not None
            del parent.children[node.key]
            node.in_tree = False
            self._forgotten(node)
            self._pool.release(node.block)
            self.idle -= 1
            count -= 1
            if parent is not self.root and not parent.children and self._pool.references(parent.block) == 1:
                self._push(parent)

    def _push(self, leaf: Node) -> None:
        self._entries += 1
        heapq.heappush(self._leaves, (leaf.last_used, self._entries, leaf))
        if len(self._leaves) > 2 * self._pool.total + 64:
            self._drop_stale()

    def _drop_stale(self) -> None:
        """Keeps the heap within bounds when blocks are used again and again and none is ever evicted."""
        self._leaves = [
            entry
            for entry in self._leaves
            if entry[2].in_tree
            and not entry[2].children
            and entry[2].last_used == entry[0]
            and self._pool.references(entry[2].block) == 1
        ]
        heapq.heapify(self._leaves)
