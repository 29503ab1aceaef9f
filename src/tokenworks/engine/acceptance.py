"""How often a model's guesses prove right: of all sequences, and of each as far as it differs."""

_PRIOR = 0.7
"""Of a model never tried: hopeful enough to try it."""
_WEIGHT = 4.0
"""So many trials weigh as much as what was believed before."""
_FADE_TOKENS = 64
"""After so many tokens without a trial a sequence's own trials count half: its text may have become easier."""


class Rate:
    """Right guesses of trials; the latest count most."""

    __slots__ = ("_hits", "_idle", "_remembered", "_trials")

    def __init__(self, remembered: int) -> None:
        """Counts are halved when they reach `remembered`."""
        self._remembered = remembered
        self._trials = self._hits = 0.0
        self._idle = 0

    def given(self, prior: float) -> float:
        return (self._hits + _WEIGHT * prior) / (self._trials + _WEIGHT)

    def count(self, trials: int, hits: int) -> None:
        self._idle = 0
        self._trials += trials
        self._hits += hits
        if self._trials >= self._remembered:
            self._halve()

    def pass_by(self, tokens: int) -> None:
        """So many tokens came without a guess."""
        self._idle += tokens
        if self._idle >= _FADE_TOKENS:
            self._idle = 0
            self._halve()

    def _halve(self) -> None:
        self._trials /= 2
        self._hits /= 2


class Acceptance:
    """Of all sequences together."""

    def __init__(self) -> None:
        self._all = Rate(128)

    def rate(self, own: Rate, prior: float | None = None) -> float:
        """The chance that the next guess for a sequence with this history is right, if those before it are. `prior`:
        what is believed before anything is known."""
        return own.given(self._all.given(_PRIOR if prior is None else prior))

    def count(self, own: Rate, drafted: int, accepted: int) -> None:
        """`drafted` guesses ran, the first `accepted` were right: the one after these was tried too, no later one."""
        trials = min(drafted, accepted + 1)
        own.count(trials, accepted)
        self._all.count(trials, accepted)
