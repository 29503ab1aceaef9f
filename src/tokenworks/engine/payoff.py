"""What a step costs by its number of tokens, learnt from the steps themselves."""

from bisect import bisect_right
from math import log2

_KNOTS_PER_DOUBLING = 2
_SHAPE = 0.7
"""Of sizes not seen yet it is assumed that cost grows with tokens ** _SHAPE: about as it does on a CPU."""
_RATE = 0.1
"""Weight of the newest measurement, once there have been some."""
_STALE_STEPS = 1000
"""A size not seen for so many steps counts as not seen: the machine may have been busy with something else then."""


class StepCost:
    """Seconds of a step: a curve through knots at 1, 1.4, 2, 2.8, 4, ... tokens, each a ratio to _SHAPE's curve."""

    def __init__(self, most_tokens: int) -> None:
        knots = _KNOTS_PER_DOUBLING * most_tokens.bit_length() + 2
        self._ratios = [0.0] * knots
        self._weights = [0.0] * knots
        """How much each knot has been seen."""
        self._seen = [-_STALE_STEPS] * knots
        self._steps = 0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long. Moves the two knots beside it by their parts in the error."""
        measured = seconds / tokens**_SHAPE
        at = _KNOTS_PER_DOUBLING * log2(tokens)
        low = int(at)
        predicted = self._ratio(at)
        if not predicted:
            predicted = measured
        error = min(measured, 2 * predicted) - predicted  # one slow step says little: twice as slow at most
        shares = [(knot, weight) for knot, weight in ((low, low + 1 - at), (low + 1, at - low)) if weight > 0.1]
        before = [self._ratio(knot) or predicted for knot, _ in shares]
        self._steps += 1
        for (knot, weight), ratio in zip(shares, before, strict=True):
            if self._steps - self._seen[knot] > _STALE_STEPS:
                self._weights[knot] = 0.0
            self._weights[knot] += weight
            rate = max(_RATE, min(0.5, weight / self._weights[knot]))
            self._ratios[knot] = max(ratio + rate * error * weight / sum(w * w for _, w in shares), ratio / 2)
            self._seen[knot] = self._steps

    def of(self, tokens: int) -> float:
        """Seconds expected of a step of so many tokens; 0 when nothing is known at all."""
        return self._ratio(_KNOTS_PER_DOUBLING * log2(tokens)) * float(tokens**_SHAPE)

    def _ratio(self, at: float) -> float:
        """Between the knots that are known; beyond them as at the last one."""
        known = [knot for knot, seen in enumerate(self._seen) if self._steps - seen < _STALE_STEPS]
        if not known:
            return 0.0
        above = bisect_right(known, at)
        if above == 0 or above == len(known):
            return self._ratios[known[min(above, len(known) - 1)]]
        low, high = known[above - 1], known[above]
        part = (at - low) / (high - low)
        return self._ratios[low] * (1 - part) + self._ratios[high] * part
