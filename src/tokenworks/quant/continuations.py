"""A small task made from any text: which of four continuations is the one that really follows?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tokenworks.quant.forward import Float32, Int32
from tokenworks.quant.measure import log_softmax

CHOICES = 4
CONTEXT_TOKENS, CONTINUATION_TOKENS = 40, 8
"""Short, so that the wrong ones, which continue other parts of the same text, are not always easy to tell."""

Logits = Callable[[Int32, int], Iterator[tuple[Int32, Float32]]]
"""Like Served.logits."""


@dataclass(frozen=True, slots=True)
class Answers:
    scores: Float32
    """[questions, CHOICES] log-probability of each continuation; choice 0 is the true one."""

    @property
    def right(self) -> float:
        """Share of questions where the true continuation is the likeliest."""
        return float((self.scores.argmax(axis=1) == 0).mean())


def questions(windows: Int32) -> Int32:
    """[count, CHOICES, length] from windows [count, length] of a text: context and continuation; choice 0 is what
    follows in the text, the others follow in windows a quarter, a half and three quarters of the text away."""
    count = len(windows)
    out = np.repeat(windows[:, None], CHOICES, axis=1)
    for choice in range(1, CHOICES):
        other = (np.arange(count) + choice * max(1, count // CHOICES)) % count
        out[:, choice, -CONTINUATION_TOKENS:] = windows[other, -CONTINUATION_TOKENS:]
    return out


def answer(asked: Int32, logits: Logits) -> Answers:
    """What a model makes of `questions`."""
    count, _, length = asked.shape
    flat = asked.reshape(-1, length)
    scores = np.empty(len(flat), np.float32)
    for numbers, rows in logits(flat, length - 1 - CONTINUATION_TOKENS):
        true = flat[numbers, -CONTINUATION_TOKENS:].reshape(-1, 1).astype(np.int64)
        chosen = np.take_along_axis(log_softmax(rows), true, axis=1)
        scores[numbers] = chosen.reshape(len(numbers), -1).sum(axis=1)
    return Answers(scores.reshape(count, CHOICES))


def same_answers(one: Answers, other: Answers) -> float:
    """Share of questions that both answer alike."""
    return float((one.scores.argmax(axis=1) == other.scores.argmax(axis=1)).mean())
