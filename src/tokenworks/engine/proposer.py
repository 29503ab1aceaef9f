"""Who guesses what comes next in a sequence: the interface, and the proposer that looks in the sequence's own text.

engine/speculate.py weighs the proposers against each other and against not guessing at all. A guess costs nothing but
its row of the step, or passes of a model as well; who proposes never changes the output, only how soon it comes.
"""

from collections.abc import Sequence as SequenceOf
from typing import Protocol

from tokenworks.engine.lookup import PromptLookup
from tokenworks.engine.sequence import Sequence


class Proposer(Protocol):
    """One way to guess. Its `j`-th guesses for all sequences come from one pass over these sequences."""

    drafted: int
    accepted: int
    """Of its guesses so many ran, and so many of these proved right."""

    @property
    def spent_s(self) -> float:
        """Seconds that it has taken, where it takes any worth counting."""

    def chances(self, sequence: Sequence, most: int) -> SequenceOf[float]:
        """For each of the next tokens, `most` at most, the chance that it is as guessed if all before it are; empty
        where no guess can be made."""

    def lacking(self, sequence: Sequence) -> int:
        """So many tokens of the sequence its first pass has to run; 0 where passes run nothing."""

    def seconds(self, tokens: int) -> float:
        """Expected of a pass over so many tokens; 0 where nothing is known yet."""

    def propose(self, wanted: SequenceOf[tuple[Sequence, int]]) -> list[list[int]]:
        """For each sequence up to so many guesses, none of which ends it. Fewer, or none, where that is all it has."""

    def made(self, sequence: Sequence, tokens: int, drafted: int) -> None:
        """The sequence has got so many tokens. Of this proposer's guesses `drafted` ran; if any did, all of these
        tokens but the last are right guesses."""

    def left(self, sequence: Sequence) -> None:
        """The sequence ends, or loses its slot and may come back; its blocks are still its own."""


class FromText:
    """Guesses by prompt lookup: for nothing."""

    def __init__(self) -> None:
        self.drafted = self.accepted = 0
        self.spent_s = 0.0

    def chances(self, sequence: Sequence, most: int) -> SequenceOf[float]:
        if sequence.lookup is None:
            sequence.lookup = PromptLookup(sequence.tokens)
        return sequence.lookup.chances(most)

    def lacking(self, sequence: Sequence) -> int:
        return 0

    def seconds(self, tokens: int) -> float:
        return 0.0

    def propose(self, wanted: SequenceOf[tuple[Sequence, int]]) -> list[list[int]]:
        """Only of sequences that have chances."""
        guesses = []
        for sequence, count in wanted:
            assert sequence.lookup is not None
            guess = sequence.lookup.guess(count)
            guesses.append(guess[: next((i for i, token in enumerate(guess) if token in sequence.ends), count)])
        return guesses

    def made(self, sequence: Sequence, tokens: int, drafted: int) -> None:
        if drafted:
            self.drafted += drafted
            self.accepted += tokens - 1
        if sequence.lookup is not None:
            sequence.lookup.follow()

    def left(self, sequence: Sequence) -> None:
        """What was learnt of its text stays with the sequence."""
