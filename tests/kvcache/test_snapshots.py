"""Snapshots against a list of who holds which slot."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokenworks.kvcache.snapshots import Snapshots

TOTAL = 4


class SnapshotMachine(RuleBasedStateMachine):
    """`kept` is in order of use; `own` are slots of sequences, `read` those of snapshots that they go on from."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshots: Snapshots[str] = Snapshots(TOTAL)
        self.kept: dict[str, int] = {}
        self.own: list[int] = []
        self.read: list[int] = []

    def used(self, node: str) -> None:
        self.kept[node] = self.kept.pop(node)

    @rule(evict=st.booleans())
    def take(self, evict: bool) -> None:
        free = TOTAL - len(self.kept) - len(self.own) - len([s for s in {*self.read} if s not in self.kept.values()])
        idle = [node for node, slot in self.kept.items() if slot not in self.read]
        slot = self.snapshots.take(evict=evict)
        assert (slot is not None) == (free > 0 or (evict and len(idle) > 0))
        if slot is not None:
            if free == 0:
                assert slot == self.kept.pop(idle[0]), "not the least recently used"
            assert slot not in (*self.own, *self.read, *self.kept.values())
            self.own.append(slot)

    @precondition(lambda self: self.own)
    @rule(node=st.sampled_from("abcdef"))
    def keep(self, node: str) -> None:
        slot = self.own.pop()
        assert self.snapshots.keep(node, slot) == (node not in self.kept)
        self.kept.setdefault(node, slot)
        self.used(node)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(sorted(self.kept)))
        self.read.append(self.snapshots.hold(node))
        assert self.read[-1] == self.kept[node] == self.snapshots.slot(node)
        self.used(node)

    @precondition(lambda self: self.read)
    @rule()
    def let_go(self) -> None:
        self.snapshots.pool.release(self.read.pop())

    @rule(node=st.sampled_from("abcdef"))
    def drop(self, node: str) -> None:
        self.snapshots.drop(node)
        self.kept.pop(node, None)

    @invariant()
    def accounts_agree(self) -> None:
        held = [*self.kept.values(), *self.own, *self.read]
        assert [self.snapshots.pool.references(slot) for slot in range(TOTAL)] == [held.count(s) for s in range(TOTAL)]
        assert self.snapshots.idle == sum(slot not in self.read for slot in self.kept.values())
        for node in "abcdef":
            assert (node in self.snapshots) == (node in self.kept)
            assert self.snapshots.is_idle(node) == (node in self.kept and self.kept[node] not in self.read)


TestSnapshots = SnapshotMachine.TestCase
TestSnapshots.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
