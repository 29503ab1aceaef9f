"""What a step costs by its number of tokens, learnt from the steps themselves."""

from bisect import bisect_right
from math import log2

_SHAPE = 0.5
"""What is assumed of sizes not seen yet: cost grows with tokens ** _SHAPE. Too little, if anything: they are tried."""
_RATE = 0.125
"""Weight of the newest measurement."""
_STALE_STEPS = 1000
"""A size not seen for so many steps counts as not seen: the machine may have been busy with something else then."""


class StepCost:
    """Seconds of a step of 1, 2, 4, 8, ... tokens; between those the cost is interpolated."""

    def __init__(self, most_tokens: int) -> None:
        knots = most_tokens.bit_length() + 1
        self._ratio: list[float] = [0.0] * knots
        """Of each power of two: measured seconds / tokens ** _SHAPE."""
        self._seen: list[int] = [-_STALE_STEPS] * knots
        self._steps = 0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._steps += 1
        at = log2(tokens)
        low = int(at)
        ratio = seconds / tokens**_SHAPE
        for knot, weight in ((low, low + 1 - at), (low + 1, at - low)):
            if weight < 0.25:
                continue
            if self._steps - self._seen[knot] >= _STALE_STEPS:
                self._ratio[knot] = ratio
            else:
                known = self._ratio[knot]
                # One slow step says little: it counts as twice as slow at most.
                self._ratio[knot] += _RATE * weight * (min(ratio, 2 * known) - known)
            self._seen[knot] = self._steps

    def of(self, tokens: int) -> float:
        """Seconds expected of a step of so many tokens; 0 when nothing is known at all."""
        known = [k for k, seen in enumerate(self._seen) if self._steps - seen < _STALE_STEPS]
        if not known:
            return 0.0
        at = log2(tokens)
        above = bisect_right(known, at)
        if above == 0 or above == len(known):
            ratio = self._ratio[known[min(above, len(known) - 1)]]
        else:
            low, high = known[above - 1], known[above]
            part = (at - low) / (high - low)
            ratio = self._ratio[low] * (1 - part) + self._ratio[high] * part
        return float(ratio * tokens**_SHAPE)
