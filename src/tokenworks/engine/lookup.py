"""Guesses what comes next in a sequence from the sequence itself: "prompt lookup" (Saxena 2023), n-gram speculation.

Text repeats: code that is edited, facts that are quoted, JSON of one shape, a small model's loops. Where the last two
tokens have occurred before, what followed them then is the guess; a guess that proves right is followed on, so the
match grows, and the longer it is the surer is the next token.
"""

from itertools import pairwise

LONGEST_MATCH = 24
"""Nothing is learnt from matches beyond this."""
_CLASSES = (2, 3, 4, 6, 9, 14, 24)
"""Matches are counted by length: a class reaches from its number to the next."""
_CLASS = tuple(sum(length >= lowest for lowest in _CLASSES[1:]) for length in range(LONGEST_MATCH + 1))
_PRIOR = (0.3, 0.5, 0.65, 0.75, 0.8, 0.9, 0.97)
"""How often the next token is as guessed, by class: SmolLM2-135M on chat, code and JSON, rounded down. A sequence's own
counts soon outweigh them."""
_PRIOR_WEIGHT = 4.0
_REMEMBERED = 32.0
"""Counts are halved when they reach this, so that a sequence's recent part counts most."""


class PromptLookup:
    """Follows one sequence's list of tokens, which only grows. A new token costs the same however many there are."""

    __slots__ = ("_followed", "_hits", "_latest", "_matched", "_source", "_tokens", "_trials")

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._followed = len(tokens)
        # For each pair of neighbours the position after its latest occurrence.
        self._latest = dict(zip(pairwise(tokens[:-1]), range(2, len(tokens)), strict=True))
        self._source = -1
        """The position whose token is the guess for the next one; -1: no guess."""
        self._matched = 0
        """So many tokens before it equal the sequence's last ones."""
        self._trials = [0.0] * len(_CLASSES)
        self._hits = [0.0] * len(_CLASSES)
        self._find(len(tokens))

    def follow(self) -> None:
        """Takes in the tokens that have come; what was guessed for them is counted, drafted or not."""
        for position in range(self._followed, len(self._tokens)):
            if self._source >= 0:
                self._count(self._tokens[position])
            self._find(position + 1)
        self._followed = len(self._tokens)

    def chances(self, count: int) -> list[float]:
        """For each of the next `count` tokens, the chance that it is as guessed if all before it are; [] if no guess
        is there."""
        if self._source < 0:
            return []
        return [self._chance(_CLASS[min(self._matched + i, LONGEST_MATCH)]) for i in range(count)]

    def guess(self, count: int) -> list[int]:
        """The next `count` tokens. Only when there are chances."""
        source, end = self._source, len(self._tokens)
        assert source >= 0
        guess = self._tokens[source : source + count]
        while len(guess) < count:  # it reaches into itself: a loop
            guess.append(guess[len(guess) - (end - source)])
        return guess

    def _chance(self, of: int) -> float:
        return (self._hits[of] + _PRIOR_WEIGHT * _PRIOR[of]) / (self._trials[of] + _PRIOR_WEIGHT)

    def _count(self, token: int) -> None:
        of = _CLASS[min(self._matched, LONGEST_MATCH)]
        if self._trials[of] >= _REMEMBERED:
            self._trials[of] /= 2
            self._hits[of] /= 2
        self._trials[of] += 1
        if token == self._tokens[self._source]:
            self._hits[of] += 1
            self._source += 1
            self._matched += 1
        else:
            self._source, self._matched = -1, 0

    def _find(self, end: int) -> None:
        """Looks for the last two of the first `end` tokens; the longer match wins, and of equal ones the later."""
        if end < 2:
            return
        tokens = self._tokens
        pair = (tokens[end - 2], tokens[end - 1])
        candidate = self._latest.get(pair, -1)
        self._latest[pair] = end
        if candidate < 0 or candidate == self._source or self._matched >= LONGEST_MATCH:
            return
        length = 2
        while (
            length < LONGEST_MATCH and length < candidate and tokens[candidate - length - 1] == tokens[end - length - 1]
        ):
            length += 1
        if length >= self._matched:
            self._source, self._matched = candidate, length
