"""What a guessing model's passes take, by the clock."""

from collections.abc import Callable

from tokenworks.engine.payoff import StepCost

FIRST_TOKENS = 32
"""Of the very first passes, which are there to see what a pass costs."""


class Passes:
    """To be told of the begin of passes that follow each other, and of the end of each."""

    def __init__(self, most_tokens: int, clock: Callable[[], float]) -> None:
        """`most_tokens`: of a pass. `clock` gives seconds."""
        self._cost = StepCost(most_tokens)
        self._clock = clock
        self._since_s = 0.0
        self._warm = False
        self.spent_s = 0.0

    def begin(self) -> None:
        self._since_s = self._clock()

    def done(self, tokens: int) -> None:
        """A pass over so many tokens; 0: one that says nothing of those that guess."""
        now_s = self._clock()
        if self._warm and tokens:  # the first pass also takes the memory
            self._cost.observe(tokens, now_s - self._since_s)
        self.spent_s += now_s - self._since_s
        self._warm, self._since_s = True, now_s

    @property
    def known(self) -> bool:
        """There is something to go by."""
        return bool(self._cost.of(1))

    def seconds(self, tokens: int) -> float:
        """Expected. Of long passes, which are rare, no less than in proportion to short ones, which have been seen."""
        if tokens > FIRST_TOKENS:
            return self._cost.of(FIRST_TOKENS) * tokens / FIRST_TOKENS
        return self._cost.of(tokens) if tokens else 0.0
