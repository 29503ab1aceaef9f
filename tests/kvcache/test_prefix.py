"""PrefixTree against a flat dictionary: prefix -> block, with its last use."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokenworks.kvcache.blocks import BlockPool
from tokenworks.kvcache.prefix import Node, PrefixTree

SIZE, TOTAL = 2, 12
prompts = st.lists(st.integers(0, 1), min_size=0, max_size=SIZE * 5)


def keys(tokens: list[int]) -> list[tuple[int, ...]]:
    """All prefixes of whole blocks."""
    return [tuple(tokens[: (i + 1) * SIZE]) for i in range(len(tokens) // SIZE)]


class TreeMachine(RuleBasedStateMachine):
    """Readers hold paths; `cached` is what the tree should have, `used` when each prefix was last let go."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL)
        self.tree = PrefixTree(self.pool, SIZE)
        self.cached: dict[tuple[int, ...], int] = {}
        self.used: dict[tuple[int, ...], int] = {}
        self.clock = 0
        self.readers: list[list[tuple[tuple[int, ...], Node]]] = []
        self.old_path: list[Node] = []
        self.old_tokens: list[int] = []

    def held(self, prefix: tuple[int, ...]) -> int:
        return sum(prefix == held for reader in self.readers for held, _ in reader)

    def match(self, tokens: list[int]) -> list[Node]:
        path: list[Node] = []
        self.tree.match(tokens, len(tokens) // SIZE, path)
        expected = []
        for prefix in keys(tokens):
            if prefix not in self.cached:
                break
            expected.append(self.cached[prefix])
        assert [node.block for node in path] == expected
        return path

    @rule(tokens=prompts)
    def a_reader_comes(self, tokens: list[int]) -> None:
        """It holds what is there and fills in the rest, as far as free blocks go."""
        path = self.match(tokens)
        reader = list(zip(keys(tokens), path, strict=False))
        for node in path:
            self.tree.hold(node)
        self.readers.append(reader)
        for prefix in keys(tokens)[len(path) :]:
            if not self.pool.free:
                break
            [block] = self.pool.take(1)
            node = self.tree.insert(reader[-1][1] if reader else self.tree.root, prefix[-SIZE:], block)
            assert node.block == block
            self.cached[prefix] = block
            reader.append((prefix, node))

    @precondition(lambda self: self.readers and self.pool.free)
    @rule(data=st.data())
    def a_reader_computed_what_is_there_already(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        above = reader[-1][1] if reader else self.tree.root
        prefix = reader[-1][0] if reader else ()
        if not above.children:
            return
        key = data.draw(st.sampled_from(sorted(above.children)))
        [block] = self.pool.take(1)
        node = self.tree.insert(above, key, block)
        assert node.block == self.cached[prefix + key] != block
        assert self.pool.references(block) == 0
        reader.append((prefix + key, node))

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def a_reader_leaves(self, data: st.DataObject) -> None:
        reader = self.readers.pop(data.draw(st.integers(0, len(self.readers) - 1)))
        for prefix, node in reversed(reader):
            self.tree.release(node)
            if not self.held(prefix):
                self.clock += 1
                self.used[prefix] = self.clock

    @precondition(lambda self: self.tree.idle)
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.tree.idle))
        for _ in range(count):  # the least recently used of the leaves that nobody holds, one after the other
            leaves = [
                prefix
                for prefix in self.cached
                if not self.held(prefix)
                and not any(other[: len(prefix)] == prefix and other != prefix for other in self.cached)
            ]
            del self.cached[min(leaves, key=lambda prefix: self.used[prefix])]
        self.tree.evict(count)

    @rule(tokens=prompts)
    def a_waiting_one_looks(self, tokens: list[int]) -> None:
        self.old_path, self.old_tokens = self.match(tokens), tokens

    @rule()
    def a_waiting_one_looks_again(self) -> None:
        self.tree.match(self.old_tokens, len(self.old_tokens) // SIZE, self.old_path)
        assert [node.block for node in self.old_path] == [node.block for node in self.match(self.old_tokens)]
        idle = [not self.held(prefix) for prefix in keys(self.old_tokens)[: len(self.old_path)]]
        assert self.tree.idle_at_end(self.old_path) == sum(idle)

    @invariant()
    def accounts_agree(self) -> None:
        assert self.tree.idle == sum(not self.held(prefix) for prefix in self.cached)
        assert self.pool.free == TOTAL - len(self.cached)
        assert len(set(self.cached.values())) == len(self.cached)
        for prefix, block in self.cached.items():
            assert self.pool.references(block) == 1 + self.held(prefix)


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_memory_stays_bounded_when_nothing_is_ever_evicted() -> None:
    pool = BlockPool(2)
    tree = PrefixTree(pool, 1)
    node = tree.insert(tree.root, (5,), pool.take(1)[0])
    for _ in range(10_000):
        tree.release(node)
        tree.hold(node)
    assert len(tree._leaves) < 200
