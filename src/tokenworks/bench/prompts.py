"""Distinct prompts of real English, as token ids.

The text is the Python manual's own topics, which come with every Python: nothing to download, nothing a server has been
tuned to. Every prompt begins somewhere else, and a run begins at a place of its own, so that no server's prefix cache
helps unless it is asked to.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field


def manual_texts() -> list[str]:
    """About 700 kB of English prose and code, in some eighty pieces: tokenising it whole would be the largest thing a
    server has to hold, and its peak memory is one of the figures."""
    from pydoc_data import topics

    return [topics.topics[name] for name in sorted(topics.topics)]


@dataclass(slots=True)
class Prompts:
    """Cuts prompts from `tokens`; no two begin at the same token."""

    tokens: Sequence[int]
    seed: int
    _starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Starts lie 40 tokens apart: prompts may overlap, but none is another's prefix.
        self._starts = list(range(0, len(self.tokens) - 512, 40))
        random.Random(self.seed).shuffle(self._starts)

    def take(self, count: int, length: int) -> list[list[int]]:
        """`count` prompts of `length` tokens (up to 512) that no earlier call has given."""
        taken, self._starts = self._starts[:count], self._starts[count:]
        if len(taken) < count:
            raise ValueError(f"the text is too short for {count} more prompts")
        return [list(self.tokens[start : start + length]) for start in taken]
