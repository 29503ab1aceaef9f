"""What a model can do, asked in two ways that every language model understands: which of four answers goes on best, and
how does a text go on, greedily."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from tokenworks.models.text.tokenizer import ModelTokenizer
from tokenworks.quant.forward import Float32, Int32
from tokenworks.quant.measure import log_softmax
from tokenworks.quant.task_questions import Task

ANSWERS = 4

Logits = Callable[[Int32, int], Iterator[tuple[Int32, Float32]]]
"""Like Served.logits."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Tasks as tokens, an answer a row: row ANSWERS * number + answer."""

    kinds: tuple[str, ...]
    """Of each question."""
    windows: Int32
    """[rows, length]: prompt and answer, then padding, which a decoder does not see from before it."""
    answered: npt.NDArray[np.bool_]
    """[rows, length - 1]: the tokens of the answer, each at the token before it, where its probability is found."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What a model makes of Questions."""

    kinds: tuple[str, ...]
    picks: npt.NDArray[np.int64]
    """[questions]: the answer it finds likeliest; 0 is the right one."""

    @property
    def right(self) -> float:
        """Share of the questions."""
        return float((self.picks == 0).mean())

    def right_of(self, kind: str) -> tuple[int, int]:
        """Of the questions of one kind: how many it has right, and how many there are."""
        picks = self.picks[[each == kind for each in self.kinds]]
        return int((picks == 0).sum()), len(picks)

    def same(self, other: "Marks") -> float:
        """Share of the questions where both pick the same answer, right or wrong."""
        return float((self.picks == other.picks).mean())


def as_questions(tasks: Sequence[Task], tokenizer: ModelTokenizer) -> Questions:
    """Tokenised as whole texts; an answer begins where the tokens of its text first differ from those of the prompt."""
    texts: list[tuple[list[int], int]] = []
    for task in tasks:
        prompt = tokenizer.encode(task.prompt)
        for answer in task.answers:
            whole = tokenizer.encode(task.prompt + answer)
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False))
            texts.append((whole, max(1, sum(1 for _ in alike))))
    length = max(len(tokens) for tokens, _ in texts)
    windows = np.zeros((len(texts), length), np.int32)
    answered = np.zeros((len(texts), length - 1), np.bool_)
    for row, (tokens, begin) in enumerate(texts):
        windows[row, : len(tokens)] = tokens
        answered[row, begin - 1 : len(tokens) - 1] = True
    return Questions(tuple(task.kind for task in tasks), windows, answered)


def answer(asked: Questions, logits: Logits) -> Marks:
    """Picks for each question the answer with the highest log-probability. A tie is no knowledge: the right answer has
    to be likelier than all others."""
    following = asked.windows[:, 1:].astype(np.int64)
    scores = np.empty(len(asked.windows))
    for numbers, rows in logits(asked.windows, 0):
        found = np.take_along_axis(log_softmax(rows), following[numbers].reshape(-1, 1), axis=1)
        scores[numbers] = np.where(asked.answered[numbers], found.reshape(len(numbers), -1), 0).sum(axis=1)
    by_question = scores.reshape(-1, ANSWERS)
    return Marks(asked.kinds, ANSWERS - 1 - by_question[:, ::-1].argmax(axis=1))  # the last of the likeliest


def alike_until(one: Int32, other: Int32) -> float:
    """Share of two models' greedy continuations [count, tokens] that lies before their first difference."""
    same: Float32 = np.cumprod(one == other, axis=1).astype(np.float32)
    return float(same.mean())
