"""Which guesses are worth running: speculative decoding (Leviathan et al. 2023, arXiv 2211.17192), without loss.

A step may run guesses of a sequence's next tokens behind its last one. Each row is then sampled as if it were a step of
its own, with that position's own random number, and counts while the tokens before it proved right. So the output is
the same, token for token, greedy or sampled, and a guess is kept as often as the model itself would have said it.

A guess costs its row of the step, and saves its share of a later one if it proves right. Both are known from what has
been seen: the cost from the steps' times (engine/payoff.py), the chance from how often such guesses were right, run or
not (engine/lookup.py). `choose` takes those that give the most tokens in a second: none where that is best.
"""

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

from tokenworks.engine.lookup import PromptLookup
from tokenworks.engine.payoff import StepCost
from tokenworks.engine.sequence import Sequence

MOST_GUESSES = 20
"""Of one sequence in one step."""
_GAIN = 0.93
"""Guesses must make a token so much cheaper: a smaller gain may be an error of the estimates."""


class Speculator:
    """Pure: the caller hands in the times."""

    def __init__(self, most_tokens: int) -> None:
        """A step never has more than `most_tokens` tokens."""
        self._cost = StepCost(most_tokens)
        self.drafted = 0
        self.accepted = 0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of decoding sequences only, drafts included, had so many tokens and took so long."""
        self._cost.observe(tokens, seconds)

    def choose(self, sequences: SequenceOf[Sequence], room: int) -> Iterator[tuple[int, list[int]]]:
        """Guesses for the decoding `sequences`, at most `room` tokens in all, as (index, the tokens to draft)."""
        decoding = len(sequences)
        plain = self._cost.of(decoding)
        if room <= 0 or not plain:
            return
        worth = plain / decoding  # seconds that a token costs now: a draft row must not cost more
        ahead = min(room, 8)
        least_chance = max(0.05, (self._cost.of(decoding + ahead) - plain) / ahead / worth)
        if least_chance >= 1:
            return
        offers: list[tuple[float, int]] = []
        for index, sequence in enumerate(sequences):
            if sequence.lookup is None:
                sequence.lookup = PromptLookup(sequence.tokens)
            chance = 1.0
            for one in sequence.lookup.chances(min(room, MOST_GUESSES, sequence.longest - len(sequence.tokens) - 1)):
                chance *= one
                if chance < least_chance:
                    break
                offers.append((chance, index))
        offers.sort(key=lambda offer: -offer[0])
        expected, best, taken = float(decoding), worth * _GAIN, 0
        for count, (chance, _) in enumerate(offers[:room], 1):
            expected += chance
            price = self._cost.of(decoding + count) / expected
            if price < best:
                best, taken = price, count
        for index, count in Counter(index for _, index in offers[:taken]).items():
            lookup = sequences[index].lookup
            assert lookup is not None
            guess = lookup.guess(count)
            ends = sequences[index].ends
            yield index, guess[: next((i for i, token in enumerate(guess) if token in ends), count)]

    def made(self, sequence: Sequence, drafted: int, made: int) -> None:
        """A sequence has got `made` tokens, of which all but one were drafted."""
        if drafted:
            self.drafted += drafted
            self.accepted += made - 1
        if sequence.lookup is not None:
            sequence.lookup.follow()
