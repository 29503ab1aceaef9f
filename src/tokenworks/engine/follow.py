"""What a draft model's own cache holds of each sequence, and what its passes run. Pure accounting.

A draft model follows a sequence: it runs the tokens that the sequence has got since it last looked, the sequence's last
one included, whose logits are its first guess; then its guesses one by one. What it ran of guesses that proved right
stays; the rest is run over. Full blocks are shared in a prefix tree of its own, so that it finds again what a preempted
or a similar sequence has left.
"""

from collections.abc import Iterable
from typing import NamedTuple

from tokenworks.engine.acceptance import Rate
from tokenworks.engine.sequence import Sequence, Tenant
from tokenworks.engine.space import CacheSpace
from tokenworks.kernels.backend import Limits

_REMEMBERED_TRIALS = 32


class Follower(Tenant):
    """One sequence in the draft model's cache; its `tokens` are the sequence's own list."""

    __slots__ = ("barred", "ends", "guesses", "rate", "wanted")

    def __init__(self, sequence: Sequence) -> None:
        super().__init__(sequence.tokens)
        self.ends = sequence.ends
        self.barred = False
        """It has a token that the draft model does not know."""
        self.guesses: list[int] = []
        """Of the tokens to come; all but the last are in the cache behind the `computed` tokens."""
        self.wanted = 0
        """So many guesses."""
        self.rate = Rate(_REMEMBERED_TRIALS)


class Run(NamedTuple):
    """Consecutive tokens of one sequence in a pass; where they reach its end, the last one's logits are a guess."""

    follower: Follower
    start: int
    """Position of the first."""
    tokens: list[int]
    guesses: bool


class Following:
    """Which sequence has which blocks of the draft model's cache."""

    def __init__(self, limits: Limits, context_tokens: int, vocabulary: int) -> None:
        """The draft model knows positions below `context_tokens` and token ids below `vocabulary`."""
        self._step_tokens = limits.step_tokens
        self._context_tokens = min(context_tokens, limits.blocks * limits.block_tokens)
        self._vocabulary = vocabulary
        self.space = CacheSpace(limits.blocks, limits.block_tokens, limits.sequences, self._context_tokens)
        self.followers: dict[str, Follower] = {}

    def of(self, sequence: Sequence) -> Follower:
        """The sequence as the draft model knows it, with what its cache remembers of it."""
        follower = self.followers.get(sequence.request.request_id)
        if follower is None:
            follower = self.followers[sequence.request.request_id] = Follower(sequence)
            self.space.look_up(follower)
            self.space.admit(follower)
        return follower

    def most(self, follower: Follower) -> int:
        """How many guesses there is room for; 0 or less: none."""
        if follower.barred:
            return 0
        room = (follower.blocks + self.space.available) * self.space.block_tokens
        return min(room, self._context_tokens) - len(follower.tokens) + 1

    def first(self, followers: Iterable[Follower], most_tokens: int) -> list[Run]:
        """The pass that catches up, with at most `most_tokens` tokens: those who lack least go first. Who is not done
        by then, for want of blocks too, guesses nothing this time."""
        left = min(most_tokens, self._step_tokens)
        runs: list[Run] = []
        for follower in sorted(followers, key=lambda each: len(each.tokens) - each.computed):
            start = follower.computed
            end = self.space.grow(follower, min(len(follower.tokens), start + left))
            tokens = follower.tokens[start:end]
            follower.barred = bool(tokens) and max(tokens) >= self._vocabulary
            if tokens and not follower.barred:
                runs.append(Run(follower, start, tokens, end == len(follower.tokens)))
                left -= len(tokens)
        return runs

    def ran(self, runs: Iterable[Run], guesses: Iterable[int]) -> list[Run]:
        """A pass is done, with a guess from each run that guesses: returns the next one, of those who want more."""
        coming = iter(guesses)
        after: list[Run] = []
        for follower, start, tokens, has_guess in runs:
            if not follower.guesses:
                follower.computed = start + len(tokens)
                self._share(follower)
            if not has_guess or (guess := next(coming)) in follower.ends:
                continue
            follower.guesses.append(guess)
            end = start + len(tokens)
            if len(follower.guesses) < follower.wanted and self.space.grow(follower, end + 1) > end:
                after.append(Run(follower, end, [guess], True))
        return after

    def made(self, follower: Follower) -> None:
        """The sequence's tokens have come: guesses that were right are computed already."""
        ran, tokens = follower.guesses[:-1], follower.tokens
        for guess in ran:
            if follower.computed == len(tokens) or tokens[follower.computed] != guess:
                break
            follower.computed += 1
        follower.guesses, follower.wanted = [], 0
        self.space.trim(follower)
        self._share(follower)

    def left(self, sequence: Sequence) -> None:
        """Gives its blocks back; full ones stay in the tree while there is room."""
        follower = self.followers.pop(sequence.request.request_id, None)
        if follower is not None:
            self.space.release(follower)

    def _share(self, follower: Follower) -> None:
        if follower.computed >= (len(follower.nodes) + 1) * self.space.block_tokens:
            self.space.share(follower)
