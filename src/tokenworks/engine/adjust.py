"""What a request's options do to one row of logits before a token is drawn.

In this order: repetition penalty (Keskar et al. 2019, arXiv 1909.05858) over prompt and output; presence and frequency
penalties over the output; logit bias; tokens that would end it before `min_tokens`; what the rules of written speech
forbid; what the grammar forbids.
"""

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from tokenworks.engine.constrain import Matcher
from tokenworks.engine.speech import SpeechMask
from tokenworks.kernels.backend import Float32
from tokenworks.protocol.errors import EngineError
from tokenworks.protocol.sampling import Sampling


class Adjustment:
    """One sequence's changes to its logits; it is told every output token, so that a step costs no look back."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: Iterable[int],
        output: Iterable[int],
        ends: Collection[int],
        matcher: Matcher | None,
    ) -> None:
        """`ends` are the tokens to suppress before min_tokens. The matcher has not seen `output` yet."""
        self._sampling = sampling
        self._matcher = matcher
        self._speech = None if sampling.speech is None else SpeechMask(sampling.speech)
        self._ends = np.fromiter(ends, np.int64)
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float32)
        self._penalises = (
            sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        )
        # Distinct tokens seen, and how often in the output; arrays with room to grow, and each token's index in them.
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)
        self._index: dict[int, int] = {}
        if sampling.repetition_penalty != 1:
            for token in prompt:
                self._see(token)
        self.complete = False
        """The grammar allows nothing more."""
        for token in output:
            self.take(token)

    def apply(self, row: Float32, output_tokens: int) -> None:
        """Changes a row [vocabulary] of logits in place; `output_tokens` have been made so far.

        Raises EngineError if that leaves no token to choose, or the grammar cannot go on.
        """
        if self._penalises:
            self._penalise(row)
        if len(self._bias):
            row[self._bias_ids] += self._bias
        if output_tokens < self._sampling.min_tokens:
            row[self._ends] = -np.inf
        if self._speech is not None:
            self._speech.apply(row)
        if self._matcher is not None:
            np.copyto(row, -np.inf, where=self._matcher.forbidden())
        if row.max() == -np.inf:
            raise EngineError("grammar, rules and logit bias leave no token to choose")

    def take(self, token: int) -> None:
        """The next output token. Raises EngineError if the grammar cannot go on."""
        if self._penalises:
            index = self._see(token)  # first: it may move the arrays to make room
            self._counts[index] += 1
        if self._speech is not None:
            self._speech.take(token)
        if self._matcher is not None:
            self.complete = self._matcher.take(token)

    def _penalise(self, row: Float32) -> None:
        seen = len(self._index)
        ids, counts = self._ids[:seen], self._counts[:seen]
        values: npt.NDArray[np.float32] = row[ids]
        penalty = np.float32(self._sampling.repetition_penalty)
        if penalty != 1:
            values = np.where(values > 0, values / penalty, values * penalty)
        values -= np.float32(self._sampling.frequency_penalty) * counts
        values -= np.float32(self._sampling.presence_penalty) * (counts > 0)
        row[ids] = values

    def _see(self, token: int) -> int:
        index = self._index.get(token)
        if index is None:
            index = self._index[token] = len(self._index)
            if index == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[index] = token
        return index
