"""How far a quantised decoder is from its reference on a text: perplexity, KL divergence, agreement of best tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.program import Linear, Program, Softcap
from tokenworks.kernels.tensor import Tensor
from tokenworks.quant.forward import Float32, Forward, Int32, linear_output, plain_product

ROWS_AT_ONCE = 512
"""Rows of logits that are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Over all tokens of the text but each window's first."""

    tokens: int
    reference_perplexity: float
    perplexity: float
    kl: float
    """Mean KL(reference || candidate) of next-token distributions, in nats."""
    top1_agreement: float
    """Share of positions where both find the same token likeliest."""


def last_hidden(program: Program, weights: Mapping[str, Tensor], tokens: Int32) -> Float32:
    """[windows * length, width]: the input of a decoder's vocabulary head."""
    forward = Forward(program, weights, tokens)
    head = head_of(program)
    while forward.next is not head:
        forward.step(plain_product(weights))
    return forward.input(head.x)


class Tally:
    """Adds up a Divergence, rows by rows."""

    def __init__(self) -> None:
        self._sums = np.zeros(4)
        self._count = 0

    def add(self, reference: Float32, candidate: Float32, following: Int32) -> None:
        """Natural logarithms of next-token probabilities, [rows, vocabulary], and the tokens that did follow [rows]."""
        chosen = following[:, None].astype(np.int64)
        self._count += len(chosen)
        self._sums += (
            np.take_along_axis(reference, chosen, axis=1).sum(dtype=np.float64),
            np.take_along_axis(candidate, chosen, axis=1).sum(dtype=np.float64),
            np.einsum("rv,rv->r", np.exp(reference), reference - candidate).sum(dtype=np.float64),
            (candidate.argmax(axis=1) == reference.argmax(axis=1)).sum(),
        )

    def result(self) -> Divergence:
        of_reference, of_candidate, kl, agreed = (self._sums / self._count).tolist()
        return Divergence(self._count, float(np.exp(-of_reference)), float(np.exp(-of_candidate)), kl, agreed)


def log_softmax(logits: Float32) -> Float32:
    """Of each row, in place."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


class Head:
    """A decoder's vocabulary head, blown up to float32."""

    def __init__(self, program: Program, weights: Mapping[str, Tensor]) -> None:
        self._linear, self._end, self._weights = head_of(program), program.instructions[-1], weights
        self._matrices = [dequantise(weights[name]) for name in self._linear.weights]

    def log_probabilities(self, hidden: Float32) -> Float32:
        """[rows, vocabulary], natural logarithms, from rows of `last_hidden`."""
        rows = linear_output(hidden, self._matrices, self._linear, self._weights)
        if isinstance(self._end, Softcap):
            rows = np.float32(self._end.cap) * np.tanh(rows / np.float32(self._end.cap))
        return log_softmax(rows)


def compare(
    program: Program,
    reference: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    tokens: Int32,
    *,
    reference_hidden: Float32 | None = None,
) -> Divergence:
    """`reference_hidden`, if given, is last_hidden(program, reference, tokens): many candidates share it."""
    if reference_hidden is None:
        reference_hidden = last_hidden(program, reference, tokens)
    hidden = last_hidden(program, candidate, tokens)
    ours_head, reference_head = Head(program, candidate), Head(program, reference)
    following = np.append(tokens[:, 1:], np.full((len(tokens), 1), -1, np.int32), axis=1).ravel()
    tally = Tally()
    for start in range(0, len(hidden), ROWS_AT_ONCE):
        rows = np.flatnonzero(following[start : start + ROWS_AT_ONCE] >= 0) + start
        ours = ours_head.log_probabilities(hidden[rows])
        tally.add(reference_head.log_probabilities(reference_hidden[rows]), ours, following[rows])
    return tally.result()


def head_of(program: Program) -> Linear:
    """A decoder's vocabulary head."""
    return next(each for each in reversed(program.instructions) if isinstance(each, Linear))
