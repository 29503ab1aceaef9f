"""A draft model for tests: by a clock that ticks, and asked in season and out."""

import random
from collections.abc import Sequence as SequenceOf

from small_model import limits, small_model

from tokenworks.engine.draft import DraftModel
from tokenworks.engine.engine import Engine
from tokenworks.engine.sequence import Sequence
from tokenworks.engine.speculate import Speculator
from tokenworks.kernels.backend import Backend, Limits


class Ticks:
    """A clock that goes on by so much with each look."""

    def __init__(self, tick_s: float) -> None:
        self.now_s, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


class Eager(Speculator):
    """Has the draft model guess at random times, whatever it costs."""

    def __init__(self, draft: DraftModel, seed: int) -> None:
        super().__init__(1000, draft)
        self.draft, self.draw = draft, random.Random(seed)

    def choose(self, sequences: SequenceOf[Sequence], room: int) -> list[tuple[int, list[int]]]:
        wanted: list[tuple[Sequence, int]] = []
        for sequence in sequences:
            most = min(room, sequence.longest - len(sequence.tokens) - 1, self.draw.randrange(7))
            wanted.append((sequence, len(self.draft.chances(sequence, most))))
            room -= wanted[-1][1]
            self._whose[sequence.request.request_id] = self.draft
        chosen = [index for index, (_, count) in enumerate(wanted) if count]
        return list(zip(chosen, self.draft.propose([wanted[index] for index in chosen]), strict=True))


def use(engine: Engine, speculator: Speculator) -> None:
    engine._speculator = engine._scheduler._speculator = speculator


def small_draft(backend: Backend, vocabulary: int, *, seed: int = 3, sizes: Limits | None = None) -> DraftModel:
    """The small model itself, or another one by its seed."""
    sizes = sizes or limits()
    return DraftModel(
        backend.compile(*small_model(vocabulary, seed), sizes), sizes, context_tokens=200,
        vocabularies=(vocabulary, vocabulary), clock=Ticks(0.0005),
    )  # fmt: skip
