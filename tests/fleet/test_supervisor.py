"""The supervisor under thousands of simulated faults: each request ends exactly once, whatever dies."""

import random
from collections import Counter

import pytest

from tokenworks.fleet import supervisor as rules
from tokenworks.fleet.supervisor import Fail, IllegalEvent, Kill, Phase, Spawn, Submit, Supervisor


class World:
    """A process that makes one token a step, faults drawn from a seed, and a count of everyone's endings."""

    def __init__(self, seed: int, *, on_demand: bool, poison_every: int = 0) -> None:
        self.random = random.Random(seed)
        self.supervisor = Supervisor(on_demand=on_demand)
        self.now_s = 0.0
        self.made: dict[str, int] = {}
        """Tokens by request since it was submitted, for those the process holds."""
        self.process: str | None = None
        """None, "starting", "ready", "hung" or "dying"."""
        self.left: dict[str, int] = {}
        """Tokens still to make."""
        self.endings: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.poison_every = poison_every
        self.faults = 0.0
        self.arrivals = 0

    def perform(self, actions: list[rules.Action]) -> None:
        for action in actions:
            match action:
                case Spawn():
                    assert self.process is None, "two processes at once"
                    self.process, self.made = "starting", {}
                case Kill():
                    assert self.process is not None
                    self.process = "dying"
                case Submit(request_id):
                    assert self.process in ("ready", "hung", "dying"), "sent to a process that is not ready"
                    assert request_id not in self.made, "sent twice to one process"
                    assert request_id in self.left, "sent after its end"
                    self.made[request_id] = 0
                case Fail(request_id, reason):
                    self.end(request_id)
                    self.failed[request_id] = reason
        suspects = [name for name in self.made if self._strikes(name) + 1 >= rules.STRIKES]
        assert len(suspects) <= 1, "two suspects at once"

    def _strikes(self, name: str) -> float:
        request = self.supervisor._requests.get(name)
        return request.strikes if request else 0.0

    def end(self, request_id: str) -> None:
        self.endings[request_id] += 1
        del self.left[request_id]
        self.made.pop(request_id, None)

    def arrive(self) -> None:
        self.arrivals += 1
        name = f"r{self.arrivals}"
        if self.poison_every and self.arrivals % self.poison_every == 0:
            name += "-poison"
        self.left[name] = self.random.randint(1, 30)
        self.perform(self.supervisor.asked(name, self.now_s))

    def die(self, how: rules.Death = "crashed") -> None:
        progressed = {name for name, made in self.made.items() if made >= rules.PROGRESS_TOKENS}
        self.process, self.made = None, {}
        self.perform(self.supervisor.died(self.now_s, how, "it died", progressed))

    def step(self) -> None:
        """Some time passes, and one thing happens."""
        self.now_s += self.random.choice((0.001, 0.01, 0.1, 1.0))
        due_s = self.supervisor.due_s()
        if due_s is not None and self.now_s >= due_s:
            self.perform(self.supervisor.tick(self.now_s))
        if self.process is None:
            return
        if self.process == "dying" or self.random.random() < self.faults:
            self.die(self.random.choice(("crashed", "killed", "drained")[: 3 if self.process == "ready" else 2]))
        elif self.random.random() < self.faults:
            self.process = "hung"
        elif self.process == "starting":
            self.process = "ready"
            self.perform(self.supervisor.ready(self.now_s))
        elif self.process == "ready":
            if any("poison" in name for name in self.made):
                self.die()
            else:
                self.token()

    def token(self) -> None:
        self.supervisor.heard(self.now_s)
        for name in list(self.made):
            self.made[name] += 1
            self.left[name] -= 1
            if self.left[name] == 0:
                self.end(name)
                self.perform(self.supervisor.ended(name, self.now_s, well=True))
        suspect = self.supervisor.suspect
        if suspect is not None and self.made[suspect] >= rules.PROGRESS_TOKENS:
            self.perform(self.supervisor.progressed(suspect, self.now_s))

    def leave(self) -> None:
        if self.left:
            name = self.random.choice(list(self.left))
            self.end(name)
            self.perform(self.supervisor.ended(name, self.now_s, well=False))

    def settle(self) -> None:
        """No more faults: everyone must end."""
        self.faults = 0.0
        for _ in range(20_000):
            if not self.left:
                return
            if self.process == "hung":
                self.now_s += 1.0  # nothing else happens: only the time limits help
            self.step()
        raise AssertionError(f"still waiting in phase {self.supervisor.phase}: {self.left}")


@pytest.mark.parametrize("seed", range(300))
def test_every_request_ends_once(seed):
    world = World(seed, on_demand=seed % 2 == 0, poison_every=seed % 5 * 7)
    world.faults = (0.0, 0.01, 0.1, 0.4)[seed % 4]
    for _ in range(300):
        what = world.random.random()
        if what < 0.2:
            world.arrive()
        elif what < 0.25:
            world.leave()
        else:
            world.step()
    if seed % 7 == 0:
        world.perform(world.supervisor.closed(world.now_s))
    else:
        world.settle()
    assert dict(world.endings) == dict.fromkeys(world.endings, 1)
    assert len(world.endings) == world.arrivals
    assert not world.supervisor.requests


@pytest.mark.parametrize("seed", range(50))
def test_one_poison_among_many_fails_alone(seed):
    world = World(seed, on_demand=False, poison_every=25)
    for _ in range(30):
        world.arrive()
    world.settle()
    assert list(world.failed) == ["r25-poison"]
    assert "again and again" in world.failed["r25-poison"]


def test_delays_grow_and_shrink_again():
    world = World(0, on_demand=False)
    world.perform(world.supervisor.wanted(0.0))
    delays = []
    for _ in range(rules.DEATHS - 1):
        world.perform(world.supervisor.ready(world.now_s))
        world.die()
        due_s = world.supervisor.due_s() if world.process is None else world.now_s
        delays.append(due_s - world.now_s)
        world.now_s = due_s
        world.perform(world.supervisor.tick(world.now_s))
    assert delays == list(rules.DELAYS_S)
    world.perform(world.supervisor.ready(world.now_s))
    world.now_s += rules.HEALTHY_S
    world.die()
    assert world.process == "starting", "after a healthy life the next start is at once again"


def test_given_up_after_deaths_without_health_and_tried_again_later():
    world = World(0, on_demand=False)
    world.perform(world.supervisor.wanted(0.0))
    for _ in range(rules.DEATHS):
        assert world.supervisor.phase is Phase.STARTING
        world.perform(world.supervisor.ready(world.now_s))
        world.die()
        if world.process is None and world.supervisor.due_s() is not None:
            world.now_s = world.supervisor.due_s()
            world.perform(world.supervisor.tick(world.now_s))
    assert world.supervisor.phase is Phase.GIVEN_UP
    world.arrive()
    assert world.failed == {"r1": "it died"}
    world.now_s += rules.RETRY_S
    world.arrive()
    world.settle()
    assert world.endings["r2"] == 1
    assert "r2" not in world.failed


@pytest.mark.parametrize(("how", "deaths"), [("crashed", rules.STRIKES), ("killed", 2 * rules.STRIKES)])
def test_a_request_is_failed_sooner_for_crashes_than_for_kills_from_outside(how, deaths):
    world = World(0, on_demand=False)
    world.arrive()
    for _ in range(deaths):
        assert not world.failed
        while world.process != "ready":
            world.step()
        world.die(how)
    assert list(world.failed) == ["r1"]


@pytest.mark.parametrize(("how", "deaths"), [("crashed", rules.START_DEATHS), ("killed", 2 * rules.START_DEATHS)])
def test_given_up_sooner_for_crashes_at_start_than_for_kills_from_outside(how, deaths):
    world = World(0, on_demand=False)
    world.arrive()
    for _ in range(deaths):
        if world.supervisor.phase is Phase.BACKOFF:
            world.now_s = world.supervisor.due_s()
            world.perform(world.supervisor.tick(world.now_s))
        assert world.process == "starting"
        world.die(how)
    assert world.supervisor.phase is Phase.GIVEN_UP
    assert list(world.failed) == ["r1"]


def test_unusable_files_are_not_tried_twice():
    supervisor = Supervisor()
    supervisor.asked("a", 0.0)
    assert supervisor.died(1.0, "unusable", "not a model") == [Fail("a", "not a model")]
    assert supervisor.phase is Phase.GIVEN_UP


def test_a_silent_worker_is_ended_only_while_someone_waits():
    supervisor = Supervisor()
    supervisor.wanted(0.0)
    supervisor.ready(1.0)
    assert supervisor.due_s() is None
    supervisor.asked("a", 1000.0)
    assert supervisor.due_s() == 1000.0 + rules.SILENCE_LIMIT_S
    supervisor.heard(1100.0)
    assert supervisor.tick(1000.0 + rules.SILENCE_LIMIT_S) == []
    assert supervisor.tick(1100.0 + rules.SILENCE_LIMIT_S) == [Kill()]
    assert supervisor.tick(9999.0) == [], "once is enough"


def test_an_illegal_event_moves_nothing():
    supervisor = Supervisor()
    events = {
        "ready": lambda: supervisor.ready(0.0),
        "died": lambda: supervisor.died(0.0, "crashed", ""),
        "progressed": lambda: supervisor.progressed("a", 0.0),
    }
    for event, send in events.items():
        with pytest.raises(IllegalEvent, match=f"'{event}' is not legal for a worker that is 'off'"):
            send()
        assert supervisor.phase is Phase.OFF
    supervisor.asked("a", 0.0)
    with pytest.raises(IllegalEvent, match="already here"):
        supervisor.asked("a", 0.0)
    assert list(supervisor.requests) == ["a"]
    supervisor.closed(0.0)
    with pytest.raises(IllegalEvent, match="'asked' is not legal for a worker that is 'closed'"):
        supervisor.asked("b", 0.0)


def test_the_table_names_every_phase_that_can_be_reached():
    reached = {after for phases in rules.TRANSITIONS.values() for afters in phases.values() for after in afters}
    assert reached == set(Phase)
