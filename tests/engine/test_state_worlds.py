"""The random worlds of test_simulation.py for models with a recurrent state: each slot of one is accounted for."""

import pytest
from remembering import Ahead, RememberingExecutable
from small_model import ask
from worlds import World, engine_for

from tokenworks.engine.engine import Engine
from tokenworks.kernels.backend import Limits
from tokenworks.kvcache.prefix import Node
from tokenworks.protocol.messages import Finish

SLOTS = (2, 3, 5, 20, 100)


def check_states(engine: Engine) -> None:
    """No slot is leaked or has two owners, and no snapshot outlives its node."""
    scheduler = engine._scheduler
    states, total = scheduler._states, scheduler._limits.state_slots
    assert states is not None
    snapshots = states.snapshots
    nodes: set[Node] = set()
    found = [scheduler._space.tree.root]
    while found:
        children = found.pop().children.values()
        nodes.update(children)
        found += children
    held = [0] * total
    for node, slot in snapshots._slots.items():
        assert node in nodes
        held[slot] += 1
    assert max(held) <= 1, "one slot for two snapshots"
    for sequence in scheduler._running:
        assert held[sequence.state_slot] == 0, "a state with two owners"
        held[sequence.state_slot] += 1
    for sequence in scheduler._running:
        assert (sequence.state_begin == -1) == (sequence.computed == 0)
        if sequence.state_begin not in (-1, sequence.state_slot):
            assert sequence.computed % scheduler._limits.block_tokens == 0
            assert snapshots.slot(sequence.nodes[-1]) == sequence.state_begin
            held[sequence.state_begin] += 1
    under_way = engine._under_way.plan.pieces if engine._under_way else ()
    for piece in under_way:
        for _, slot in piece.writings if piece.sequence.slot >= 0 else ():
            held[slot] += slot != piece.sequence.state_slot
    assert held == [snapshots.pool.references(slot) for slot in range(total)]
    stats = scheduler.stats()
    assert stats.state_slots_used + stats.state_slots_cached + held.count(0) == stats.state_slots_total == total
    assert all(sequence.state_slot == sequence.state_begin == -1 for sequence in scheduler._waiting)


class StateWorld(World):
    def __init__(self, seed: int, kind: type[RememberingExecutable], speculate: bool = True) -> None:
        super().__init__(seed, SLOTS, kind, speculate)
        self.without = 0
        """How often no slot could be had."""
        states = self.engine._scheduler._states
        assert states is not None
        take = states.snapshots.take

        def counted(*, evict: bool = True) -> int | None:
            slot = take(evict=evict)
            self.without += slot is None
            return slot

        states.snapshots.take = counted  # type: ignore[method-assign]

    def step(self) -> None:
        super().step()
        check_states(self.engine)


@pytest.mark.parametrize("kind", [RememberingExecutable, Ahead])
@pytest.mark.parametrize("seeds", [range(8), range(8, 16)])
def test_random_worlds(seeds: range, kind: type[RememberingExecutable]) -> None:
    """And each handful of worlds has seen every trouble."""
    preempted = hits = cancelled = without = drafted = accepted = 0
    for seed in seeds:
        print("seed", seed)
        world = StateWorld(seed, kind)
        print(world.limits, world.context_tokens)
        world.run(arrivals=40)
        for request in world.requests.values():
            world.check_reply(request)
        stats = world.engine._scheduler.stats()
        assert (stats.running, stats.waiting, stats.kv_blocks_used, stats.state_slots_used) == (0, 0, 0, 0)
        drafted += stats.draft_tokens_total
        accepted += stats.draft_tokens_accepted_total
        preempted += world.preempted
        hits += stats.prefix_hit_tokens_total
        cancelled += len(world.cancelled)
        without += world.without
    assert preempted > 2
    assert hits > 200
    assert cancelled > 2
    assert without > 50
    assert accepted > (200 if kind is Ahead else 300)
    assert drafted > accepted + (50 if kind is Ahead else 100)


@pytest.mark.parametrize("seed", range(8))
def test_random_worlds_that_only_run_ahead(seed: int) -> None:
    world = StateWorld(seed, Ahead, speculate=False)
    world.run(arrivals=40)
    for request in world.requests.values():
        world.check_reply(request)
    stats = world.engine._scheduler.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used, stats.state_slots_used) == (0, 0, 0, 0)
    assert isinstance(world.model, Ahead)
    assert world.model.unseen > 20


@pytest.mark.parametrize("failed", [False, True], ids=["cancelled", "failed"])
def test_what_ends_within_a_step_leaves_no_snapshot(failed: bool) -> None:
    sizes = Limits(64, 4, 8, 40, 4, "float32", 1, state_slots=6)
    engine, _ = engine_for(sizes, 200)
    scheduler = engine._scheduler
    engine.add(ask("a", [1, 2, 3, 4] * 5), 0.0)
    plan = scheduler.plan()
    assert [tokens for tokens, _ in plan.pieces[0].writings] == [16, 20]
    result = engine._runner.look(engine._runner.begin(plan))
    if failed:
        result.failed[0] = "numbers that are not finite"
    else:
        engine.cancel("a")
    [chunk] = scheduler.commit(plan, result)
    assert chunk.finish is (Finish.FAILED if failed else Finish.CANCELLED)
    check_states(engine)
    stats = scheduler.stats()
    assert (stats.state_slots_used, stats.state_slots_cached, stats.kv_blocks_cached) == (0, 0, 0)
