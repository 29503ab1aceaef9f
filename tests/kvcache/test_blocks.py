"""BlockPool against a dictionary of counts."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokenworks.kvcache.blocks import BlockPool

TOTAL = 6


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL)
        self.holders: dict[int, int] = {}

    @precondition(lambda self: len(self.holders) < TOTAL)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        taken = self.pool.take(data.draw(st.integers(1, TOTAL - len(self.holders))))
        assert not self.holders.keys() & set(taken), "a held block was handed out"
        assert len(set(taken)) == len(taken)
        self.holders.update(dict.fromkeys(taken, 1))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.holders)))
        self.holders[block] += 1
        assert self.pool.hold(block) == self.holders[block]

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.holders)))
        self.holders[block] -= 1
        assert self.pool.release(block) == self.holders[block]
        if self.holders[block] == 0:
            del self.holders[block]

    @invariant()
    def counts_agree(self) -> None:
        assert self.pool.free == TOTAL - len(self.holders)
        assert [self.pool.references(block) for block in range(TOTAL)] == [
            self.holders.get(block, 0) for block in range(TOTAL)
        ]


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_misuse_is_caught_and_changes_nothing() -> None:
    pool = BlockPool(2)
    with pytest.raises(AssertionError):
        pool.take(3)
    with pytest.raises(AssertionError):
        pool.release(0)
    with pytest.raises(AssertionError):
        pool.hold(0)
    assert pool.free == 2
