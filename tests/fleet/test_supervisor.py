"""The supervisor under thousands of simulated faults: each request ends exactly once, whatever dies."""

import random
from collections import Counter

import pytest

from tokenworks.fleet import patience
from tokenworks.fleet import supervisor as rules
from tokenworks.fleet.supervisor import Fail, IllegalEvent, Kill, Phase, Spawn, Submit, Supervisor


class World:
    """A process that makes one token a step, faults drawn from a seed, and a count of everyone's endings."""

    def __init__(self, seed: int, *, on_demand: bool, poison_every: int = 0, places: int = 100) -> None:
        self.random = random.Random(seed)
        self.supervisor = Supervisor(on_demand=on_demand)
        self.now_s = 0.0
        self.made: dict[str, int] = {}
        """Tokens by request since it was submitted, for those the process holds."""
        self.begun: set[str] = set()
        """Those of them that run; the others wait until one of the `places` is free."""
        self.places = places
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
                    self.process, self.made, self.begun = "starting", {}, set()
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
        self.begun.discard(request_id)

    def arrive(self) -> None:
        self.arrivals += 1
        name = f"r{self.arrivals}"
        if self.poison_every and self.arrivals % self.poison_every == 0:
            name += "-poison"
        self.left[name] = self.random.randint(1, 30)
        self.perform(self.supervisor.asked(name, self.now_s))

    def die(self, how: rules.Death = "crashed") -> None:
        progressed = {name for name, made in self.made.items() if made >= rules.PROGRESS_TOKENS}
        waited = {name: self._strikes(name) for name in self.made if name not in self.begun} if self.begun else {}
        self.process, self.made, self.begun = None, {}, set()
        actions = self.supervisor.died(self.now_s, how, "it died", progressed)
        for name, strikes in waited.items():
            assert self.supervisor.phase is Phase.GIVEN_UP or self._strikes(name) == strikes, "blamed for waiting"
        self.perform(actions)

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
            self.begin()
            if any("poison" in name for name in self.begun):
                self.die()
            else:
                self.token()

    def begin(self) -> None:
        new = [name for name in self.made if name not in self.begun][: max(0, self.places - len(self.begun))]
        if new:
            self.begun.update(new)
            self.supervisor.begun(new)

    def token(self) -> None:
        self.supervisor.heard(self.now_s, len(self.begun) / 100)
        for name in [name for name in self.made if name in self.begun]:
            self.made[name] += 1
            self.left[name] -= 1
            if self.left[name] == 0:
                self.end(name)
                self.perform(self.supervisor.ended(name, self.now_s, well=True))
        suspect = self.supervisor.suspect
        if suspect is not None and self.made.get(suspect, 0) >= rules.PROGRESS_TOKENS:
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
    world = World(seed, on_demand=seed % 2 == 0, poison_every=seed % 5 * 7, places=(1, 2, 4, 100)[seed % 3])
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
    world = World(seed, on_demand=False, poison_every=25, places=1 + seed)
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
    assert supervisor.due_s() == 1000.0 + patience.LIMIT_S
    assert supervisor.heard(1001.0, 1.0), "the limit is shorter now: the caller's timer is too late"
    assert supervisor.due_s() == 1001.0 + patience.FLOOR_S
    assert not supervisor.heard(1010.0, 0.0), "nothing ran, but it lives"
    assert supervisor.tick(1001.0 + patience.FLOOR_S) == []
    assert supervisor.tick(1010.0 + patience.FLOOR_S) == [Kill()]
    assert supervisor.tick(9999.0) == [], "once is enough"


def test_what_was_said_while_we_were_away_is_heard_first():
    supervisor = Supervisor()
    supervisor.wanted(0.0)
    supervisor.ready(1.0)
    supervisor.asked("a", 1.0)
    back_s = supervisor.due_s() + rules.AWAY_S + 1
    assert supervisor.tick(back_s) == []
    assert supervisor.due_s() == back_s + patience.LIMIT_S
    assert supervisor.tick(supervisor.due_s()) == [Kill()]


def test_who_only_waited_is_not_to_blame():
    supervisor = Supervisor()
    supervisor.wanted(0.0)
    for _ in range(rules.STRIKES):
        if supervisor.phase is Phase.BACKOFF:
            supervisor.tick(supervisor.due_s())
        if not supervisor.requests:
            supervisor.asked("runs", 0.0)
            supervisor.asked("waits", 0.0)
        supervisor.ready(0.0)
        supervisor.begun(["runs", "gone"])
        actions = supervisor.died(0.0, "crashed", "it died")
    assert [action.request_id for action in actions if isinstance(action, Fail)] == ["runs"]
    assert supervisor._requests["waits"].strikes == 0


def test_all_are_to_blame_when_none_had_begun():
    supervisor = Supervisor()
    supervisor.asked("a", 0.0)
    supervisor.asked("b", 0.0)
    supervisor.ready(0.0)
    supervisor.died(0.0, "crashed", "it died")
    assert [request.strikes for request in supervisor._requests.values()] == [1, 1]


def test_an_illegal_event_moves_nothing():
    supervisor = Supervisor()
    events = {
        "ready": lambda: supervisor.ready(0.0),
        "died": lambda: supervisor.died(0.0, "crashed", ""),
        "progressed": lambda: supervisor.progressed("a", 0.0),
        "begun": lambda: supervisor.begun(["a"]),
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
