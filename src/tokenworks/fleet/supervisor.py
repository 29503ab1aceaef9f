"""What to do about one worker process and the requests it carries: pure, no clock, no process.

    OFF ──asked──▶ STARTING ──ready──▶ READY
     ▲                │ ▲ ▲              │
     │ nobody waits   │ │ └────tick──┐   │
     └───── died ─────┤ └──at once── BACKOFF ◀── died (any) ── too often ──▶ GIVEN_UP ──asked, later──▶ STARTING
                      └──────────────────┘

Rules:
- A worker's requests are submitted again to the next one when it dies. Those that had begun get a strike (all, where
  none had: then it was something else about one of them); the strikes are forgotten when it makes PROGRESS_TOKENS. At
  STRIKES in a row a request is failed: it may be what kills the worker. One that only waited in line is not to blame.
- A SIGKILL counts half, here and below: it comes from outside, from a person or a system short of memory.
- Whoever has only one strike left is a suspect, and suspects run one at a time, so that a neighbour of the culprit is
  not failed with it.
- A worker is started again after a delay that grows with the deaths in a row. It is given up when its files are
  unusable, when it dies START_DEATHS times in a row before it is ready, or DEATHS times in a row without a sign of
  health (a request that ended well or made progress, or HEALTHY_S of life). A request that comes RETRY_S later tries
  again.
- Nothing waits for ever: a start has a time limit, and a silence while requests run one that follows from what a step
  takes (fleet/patience.py). When we ourselves were away (stopped, or starved), the worker's silence counts anew.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil
from typing import Literal

from tokenworks.fleet.patience import Patience

STRIKES = 3
PROGRESS_TOKENS = 8
START_DEATHS = 3
DEATHS = 6
DELAYS_S = (0.0, 0.25, 1.0, 2.0, 4.0)
"""Before the start that follows the first, second, ... death in a row."""
HEALTHY_S = 30.0
RETRY_S = 30.0
START_LIMIT_S = 300.0
AWAY_S = 5.0
"""A tick that comes so much too late means that we were away, and what the worker said lies unread."""


class Phase(StrEnum):
    OFF = "off"
    """No process, and nobody has asked for one."""
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    """No process until the next tick's time."""
    GIVEN_UP = "given_up"
    CLOSED = "closed"


_AFTER_DEATH = frozenset({Phase.OFF, Phase.STARTING, Phase.BACKOFF, Phase.GIVEN_UP})
_AFTER_ASKING = {
    Phase.OFF: frozenset({Phase.STARTING}),
    Phase.STARTING: frozenset({Phase.STARTING}),
    Phase.READY: frozenset({Phase.READY}),
    Phase.BACKOFF: frozenset({Phase.BACKOFF}),
    Phase.GIVEN_UP: frozenset({Phase.GIVEN_UP, Phase.STARTING}),
}
_ANY = {phase: frozenset({phase}) for phase in Phase}

TRANSITIONS: dict[str, dict[Phase, frozenset[Phase]]] = {
    "wanted": _AFTER_ASKING,
    "asked": _AFTER_ASKING,
    "ready": {Phase.STARTING: frozenset({Phase.READY})},
    "begun": {Phase.READY: frozenset({Phase.READY})},
    "progressed": {Phase.READY: frozenset({Phase.READY})},
    "ended": _ANY,
    "died": {Phase.STARTING: _AFTER_DEATH, Phase.READY: _AFTER_DEATH, Phase.CLOSED: frozenset({Phase.CLOSED})},
    "tick": _ANY | {Phase.BACKOFF: frozenset({Phase.BACKOFF, Phase.STARTING})},
    "closed": {phase: frozenset({Phase.CLOSED}) for phase in Phase},
}
"""Event -> phase in which it is legal -> phases that may follow."""


class IllegalEvent(Exception):
    """A bug of the caller's; the state has not moved."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process; tell its `ready` and its `died`."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process; its `died` is still to be told."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Send this request, with the tokens it has so far, to the process."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Fail:
    """End this request with WorkerLost; it is forgotten here."""

    request_id: str
    reason: str


Action = Spawn | Kill | Submit | Fail

Death = Literal["crashed", "killed", "drained", "unusable"]
"""By its own doing; by SIGKILL; exited with nothing left to do; or told that its model files cannot be used."""

_WEIGHTS: dict[Death, float] = {"crashed": 1.0, "killed": 0.5, "drained": 0.0, "unusable": 1.0}
"""What a death counts towards STRIKES, START_DEATHS and DEATHS."""


@dataclass(slots=True)
class _Request:
    strikes: float = 0.0
    submitted: bool = False
    begun: bool = False
    """The process has started on it; until then it waits in its line."""


@dataclass(slots=True)
class Supervisor:
    """State of one worker. Each event method returns what the caller has to do, in order."""

    on_demand: bool = False
    """With no request waiting, a dead worker stays away until the next one."""
    start_limit_s: float = START_LIMIT_S

    phase: Phase = Phase.OFF
    deaths: float = 0.0
    """In a row, without a sign of health in between."""
    suspect: str | None = None
    """The one suspect that is running; tell its `progressed`."""
    reason: str = ""
    """Why the worker died last, for people."""

    _requests: dict[str, _Request] = field(default_factory=dict)
    _patience: Patience = field(default_factory=Patience)
    _start_deaths: float = 0.0
    _healthy: bool = False
    _since_s: float = 0.0
    """When the phase was entered."""
    _heard_s: float = 0.0
    _wake_s: float = 0.0
    """End of BACKOFF, or when GIVEN_UP may be tried again."""
    _killed: bool = False

    def wanted(self, now_s: float) -> list[Action]:
        """Someone waits for the worker itself, with no request yet."""
        self._expect("wanted")
        if self.phase is Phase.OFF or (self.phase is Phase.GIVEN_UP and now_s >= self._wake_s):
            return self._start("wanted", now_s)
        return []

    def asked(self, request_id: str, now_s: float) -> list[Action]:
        """A new request."""
        self._expect("asked")
        if request_id in self._requests:
            raise IllegalEvent(f"Request {request_id!r} is already here.")
        if self.phase is Phase.GIVEN_UP and now_s < self._wake_s:
            return [Fail(request_id, self.reason)]
        self._requests[request_id] = _Request()
        if self.phase in (Phase.OFF, Phase.GIVEN_UP):
            return self._start("asked", now_s)
        return self._submit(now_s)

    def ready(self, now_s: float) -> list[Action]:
        """The process says that it is ready."""
        self._expect("ready")
        self._enter("ready", Phase.READY, now_s)
        self._start_deaths = 0.0
        self._healthy = False
        self._patience.begin()
        return self._submit(now_s)

    def heard(self, now_s: float, share: float) -> bool:
        """The process has made a step; its tokens are `share` of those of the largest there can be (0: none ran).
        True when `due_s` may be earlier than it was. (Called for every step, so it does nothing else.)"""
        silence_s, self._heard_s = now_s - self._heard_s, now_s
        return share > 0 and self._patience.step(silence_s, share)

    def begun(self, request_ids: Collection[str]) -> None:
        """The process starts on these. Those that have ended here meanwhile are ignored."""
        self._expect("begun")
        for request_id in request_ids:
            if (request := self._requests.get(request_id)) is not None:
                request.begun = True

    def progressed(self, request_id: str, now_s: float) -> list[Action]:
        """A request has made PROGRESS_TOKENS since it was submitted: it is no suspect."""
        self._expect("progressed")
        self._requests[request_id].strikes = 0.0
        self._healthy = True
        if self.suspect == request_id:
            self.suspect = None
        return self._submit(now_s)

    def ended(self, request_id: str, now_s: float, *, well: bool) -> list[Action]:
        """A request is over: `well` when the process finished it, not when its client left."""
        self._expect("ended")
        self._requests.pop(request_id, None)
        self._healthy = self._healthy or well
        if self.suspect == request_id:
            self.suspect = None
        return self._submit(now_s)

    def died(self, now_s: float, how: Death, reason: str, progressed: Collection[str] = ()) -> list[Action]:
        """The process is gone. `progressed`: the requests that had made PROGRESS_TOKENS since they were submitted."""
        self._expect("died")
        if self.phase is Phase.CLOSED:
            return []
        self.reason, self.suspect = reason, None
        actions: list[Action] = []
        weight = _WEIGHTS[how]
        if how == "drained":
            self.deaths = 0.0
        else:
            starting = self.phase is Phase.STARTING
            self._start_deaths += weight if starting else 0.0
            alive_s = 0.0 if starting else now_s - self._since_s
            healthy = not starting and (self._healthy or bool(progressed) or alive_s >= HEALTHY_S)
            self.deaths = weight if healthy else self.deaths + weight
            actions += self._strike(weight, progressed)
        for request in self._requests.values():
            request.submitted = request.begun = False
        if how == "unusable" or self._start_deaths >= START_DEATHS or self.deaths >= DEATHS:
            return actions + self._give_up(now_s)
        if self.on_demand and not self._requests:
            self._enter("died", Phase.OFF, now_s)
            return actions
        delay_s = DELAYS_S[min(max(ceil(self.deaths), 1), len(DELAYS_S)) - 1]
        if delay_s == 0:
            return actions + self._start("died", now_s)
        self._enter("died", Phase.BACKOFF, now_s)
        self._wake_s = now_s + delay_s
        return actions

    def due_s(self) -> float | None:
        """When the next `tick` must come, if nothing else happens before; None: not needed."""
        if self._killed:
            return None
        if self.phase is Phase.BACKOFF:
            return self._wake_s
        if self.phase is Phase.STARTING:
            return self._since_s + self.start_limit_s
        if self.phase is Phase.READY and any(request.submitted for request in self._requests.values()):
            return self._heard_s + self._patience.limit_s
        return None

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        self._expect("tick")
        due_s = self.due_s()
        if due_s is None or now_s < due_s:
            return []
        if self.phase is Phase.BACKOFF:
            return self._start("tick", now_s)
        if self.phase is Phase.READY and now_s > due_s + AWAY_S:
            self._heard_s = now_s
            return []
        self._killed = True
        return [Kill()]

    def closed(self, now_s: float) -> list[Action]:
        """The factory shuts down: everyone left is failed."""
        self._expect("closed")
        process = self.phase in (Phase.STARTING, Phase.READY)
        actions: list[Action] = [Fail(request_id, "The factory is shutting down.") for request_id in self._requests]
        self._requests.clear()
        self.suspect = None
        self._enter("closed", Phase.CLOSED, now_s)
        return [*actions, Kill()] if process else actions

    @property
    def requests(self) -> Collection[str]:
        """The requests that have not ended."""
        return self._requests.keys()

    @property
    def overdue(self) -> bool:
        """The process was ended because it kept us waiting too long."""
        return self._killed

    def _expect(self, event: str) -> None:
        if self.phase not in TRANSITIONS[event]:
            raise IllegalEvent(f"{event!r} is not legal for a worker that is {self.phase.value!r}.")

    def _enter(self, event: str, phase: Phase, now_s: float) -> None:
        assert phase in TRANSITIONS[event][self.phase], (event, self.phase, phase)
        self.phase = phase
        self._since_s = self._heard_s = now_s
        self._killed = False

    def _start(self, event: str, now_s: float) -> list[Action]:
        self._enter(event, Phase.STARTING, now_s)
        return [Spawn()]

    def _submit(self, now_s: float) -> list[Action]:
        """Everyone who may run and does not yet, in order of arrival; of the suspects only one at a time."""
        if self.phase is not Phase.READY:
            return []
        waiting = [(request_id, request) for request_id, request in self._requests.items() if not request.submitted]
        if waiting and len(waiting) == len(self._requests):
            self._heard_s = now_s  # the silence that is limited begins with the first request
        actions: list[Action] = []
        for request_id, request in waiting:
            if request.strikes + 1 >= STRIKES:
                if self.suspect is not None:
                    continue
                self.suspect = request_id
            request.submitted = True
            actions.append(Submit(request_id))
        return actions

    def _strike(self, weight: float, progressed: Collection[str]) -> list[Action]:
        actions: list[Action] = []
        submitted = [(request_id, request) for request_id, request in self._requests.items() if request.submitted]
        for request_id, request in [each for each in submitted if each[1].begun] or submitted:
            request.strikes = weight if request_id in progressed else request.strikes + weight
            if request.strikes >= STRIKES:
                del self._requests[request_id]
                actions.append(
                    Fail(request_id, f"The worker died again and again while it ran this request. {self.reason}")
                )
        return actions

    def _give_up(self, now_s: float) -> list[Action]:
        self._enter("died", Phase.GIVEN_UP, now_s)
        self._wake_s = now_s + RETRY_S
        self.deaths = self._start_deaths = 0.0
        actions: list[Action] = [Fail(request_id, self.reason) for request_id in self._requests]
        self._requests.clear()
        return actions
