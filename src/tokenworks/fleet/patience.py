"""How long a worker may say nothing while it has work: pure, no clock.

A worker speaks after every step, so this follows from what the largest step can take, which steps themselves teach: the
one with most tokens so far, its slowest run scaled up to the largest there can be. Work grows with tokens, and a step
has costs that do not, so scaling up errs on the long side. FACTOR is for what the tokens do not say: attention over a
long context (a prompt's last 512 tokens of 8,000 take SmolLM2 about four times as long as its first), logits for every
row of a prompt, a machine that is busy with other things.
"""

from dataclasses import dataclass

LIMIT_S = 120.0
"""While nothing is known, and the most: the longest step of the largest model on the slowest machine, and then some."""
FLOOR_S = 15.0
"""The least: a machine may stall for seconds for reasons of its own."""
FACTOR = 8
FIRST_FACTOR = 4
"""Times that for a process's first step, which may have to fetch weights from disk."""


@dataclass(slots=True)
class Patience:
    """What the steps of one model on this machine have taught; it outlives the worker processes."""

    _share: float = 0.0
    """Of the largest step there can be: the largest that has been seen."""
    _slowest_s: float = 0.0
    """The longest silence before such a step, or before any smaller one."""
    _spoken: bool = False
    """This process has made a step."""

    def begin(self) -> None:
        """Another process."""
        self._spoken = False

    def step(self, silence_s: float, share: float) -> bool:
        """A step came after `silence_s`; its tokens are `share` (above 0) of those of the largest step there can be.
        True when the limit may be shorter now."""
        shorter = not self._spoken or share > self._share
        if share > self._share:
            self._share, self._slowest_s = share, silence_s
        else:
            self._slowest_s = max(self._slowest_s, silence_s)
        self._spoken = True
        return shorter

    @property
    def limit_s(self) -> float:
        """How long a silence may last."""
        if not self._share:
            return LIMIT_S
        wanted_s = max(FLOOR_S, FACTOR * self._slowest_s / self._share)
        return min(LIMIT_S, wanted_s if self._spoken else wanted_s * FIRST_FACTOR)
