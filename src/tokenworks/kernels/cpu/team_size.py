"""How many threads run a step: as many as have been fastest for steps of its size.

More are not always faster. One row is bound by memory, which one thread may read as fast as two; and where something
else takes part of a processor, every barrier of a step waits for the thread that is kept from its own. So another
number is tried now and then, next to the one in use, and the clock decides. What trials lose is bounded, and a busy
machine is noticed within a second or so.

A pure core: it is told how long steps took.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

_TRIAL_STEPS = 4
_TRIAL_S = 0.02
"""A trial is over by then, were it one step long."""
_LOST_SHARE = 0.01
"""Of the time, at most, is lost in trials, as far as can be known before them."""
_LEAST_LOSS = 0.1
"""Of a trial's time, where it is expected to lose less: so trials are a tenth of the time at most, but for those that
are expected to win."""
_UNTRIED = 1.25
"""Steps of a number that has not been tried are expected to take so much longer."""
_GAIN = 0.97
"""More threads are taken when a step then takes less than this part of the time; fewer when it takes no longer."""
_LEAST_RATE, _LARGEST_RATE, _MEMORY_S = 0.1, 0.25, 0.5
"""Weight of the newest step, once there have been some: its part in the last half second, within limits."""
_FAR = 512
"""Up to this position attention is a small part of a step."""


class StepSize(NamedTuple):
    """What a step's time depends on."""

    first_part: int
    """Of the program's parts, the first that runs."""
    rows: int
    positions: int
    """Sum over its rows."""


@dataclass(slots=True)
class _Speed:
    """Of one number of threads, for steps of one class."""

    seconds: float
    """Of a step, were it the smallest of its class."""
    steps: int = 1
    """Seen since it was last taken up."""

    def observe(self, seconds: float) -> None:
        self.steps += 1
        rate = max(min(max(seconds / _MEMORY_S, _LEAST_RATE), _LARGEST_RATE), 1 / self.steps)
        self.seconds += rate * (min(seconds, 2 * self.seconds) - self.seconds)  # one slow step says little


@dataclass(slots=True)
class _Class:
    """Steps of about one size."""

    used: int
    """The number of threads that is in use."""
    trial: int = 0
    """The number that is tried; 0: none."""
    since_s: float = 0.0
    """Time in steps since the last trial began or ended."""
    upwards: bool = False
    """Where the next trial goes, if it can."""
    speeds: dict[int, _Speed] = field(default_factory=dict)


class TeamSize:
    """Chooses among 1, 2, 4, ... and `most` threads, for each class of steps by itself."""

    def __init__(self, most: int) -> None:
        self._numbers = sorted({min(1 << power, most) for power in range(most.bit_length() + 1)})
        self._classes: dict[tuple[int, int, int], _Class] = {}

    def choose(self, size: StepSize) -> int:
        """The number of threads for a step that is to run now."""
        steps = self._class(size)
        if not steps.trial and steps.used in steps.speeds:
            self._begin_trial(steps)
        return steps.trial or steps.used

    def took(self, size: StepSize, threads: int, seconds: float) -> None:
        """A step ran with so many threads and took so long."""
        steps = self._class(size)
        steps.since_s += seconds
        smallest_rows = 1 << size.rows.bit_length() - 1
        comparable_s = seconds * (smallest_rows / size.rows) ** 0.7
        if threads in steps.speeds:
            steps.speeds[threads].observe(comparable_s)
        else:
            steps.speeds[threads] = _Speed(comparable_s)
        if threads == steps.trial and (steps.since_s >= _TRIAL_S or steps.speeds[threads].steps > _TRIAL_STEPS):
            self._end_trial(steps)

    def _class(self, size: StepSize) -> _Class:
        far = size.positions // (size.rows * _FAR)
        key = size.first_part, size.rows.bit_length(), far.bit_length()
        if key not in self._classes:
            self._classes[key] = _Class(self._numbers[-1])
        return self._classes[key]

    def _begin_trial(self, steps: _Class) -> None:
        """If the time since the last one pays for it."""
        at = self._numbers.index(steps.used)
        others = [self._numbers[i] for i in (at - 1, at + 1) if 0 <= i < len(self._numbers)]
        if not others:
            return
        other = others[-1] if steps.upwards else others[0]
        usual = steps.speeds[steps.used]
        expected_s = steps.speeds[other].seconds if other in steps.speeds else usual.seconds * _UNTRIED
        trial_s = max(expected_s, min(_TRIAL_STEPS * expected_s, _TRIAL_S))
        least_loss = _LOST_SHARE if expected_s < usual.seconds * _GAIN else _LEAST_LOSS
        if steps.since_s * _LOST_SHARE < trial_s * max(1 - usual.seconds / expected_s, least_loss):
            return
        steps.trial, steps.since_s, steps.upwards = other, 0.0, not steps.upwards
        if other in steps.speeds:
            steps.speeds[other].steps = 1  # what it was counts as one step

    def _end_trial(self, steps: _Class) -> None:
        usual, tried = steps.speeds[steps.used].seconds, steps.speeds[steps.trial].seconds
        if tried < usual * _GAIN or (tried <= usual and steps.trial < steps.used):
            steps.used = steps.trial
        steps.trial, steps.since_s = 0, 0.0
