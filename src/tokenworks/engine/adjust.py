"""What a request's options do to one row of logits before a token is drawn.

In this order: repetition penalty (Keskar et al. 2019, arXiv 1909.05858) over prompt and output; presence and frequency
penalties over the output; logit bias; tokens that would end it before `min_tokens`; what the grammar forbids. What the
rules of written speech forbid depends on the logits themselves: they are asked first, with the row at hand.
"""

from collections.abc import Collection, Iterable

import numpy as np

from tokenworks.engine.constrain import Matcher
from tokenworks.engine.speech import SpeechMask
from tokenworks.kernels.backend import RowChange
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
        self.speech = None if sampling.speech is None else SpeechMask(sampling.speech)
        self._penalises = (
            sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        )
        # Distinct tokens that are changed, and for each: whether it has been seen, how often in the output, and its
        # bias; arrays with room to grow, and each token's index in them.
        self._index: dict[int, int] = {}
        self._ids = np.zeros(64, np.int32)
        self._seen = np.zeros(64, np.bool_)
        self._counts = np.zeros(64, np.float32)
        self._bias = np.zeros(64, np.float32)
        for token, bias in sampling.logit_bias.items():
            at = self._place(token)  # first: it may move the arrays to make room
            self._bias[at] = bias
        self._ends = np.array([self._place(token) for token in ends] if sampling.min_tokens else [], np.intp)
        if sampling.repetition_penalty != 1:
            for token in prompt:
                at = self._place(token)
                self._seen[at] = True
        self.complete = False
        """The grammar allows nothing more."""
        for token in output:
            self.take(token)

    def change(self, row: int, output_tokens: int) -> RowChange:
        """Of logits that follow `output_tokens` of output. Raises EngineError if the grammar cannot go on."""
        sampling, known = self._sampling, len(self._index)
        counts = self._counts[:known]
        offsets = self._bias[:known] - np.float32(sampling.frequency_penalty) * counts
        offsets -= np.float32(sampling.presence_penalty) * (counts > 0)
        if output_tokens < sampling.min_tokens:
            offsets[self._ends] = -np.inf
        penalties = np.where(self._seen[:known], np.float32(sampling.repetition_penalty), np.float32(1))
        allowed = None if self._matcher is None else self._matcher.allowed()
        return RowChange(row, self._ids[:known], penalties, offsets, allowed)

    def take(self, token: int) -> None:
        """The next output token. Raises EngineError if the grammar cannot go on."""
        if self._penalises:
            at = self._place(token)
            self._seen[at] = True
            self._counts[at] += 1
        if self.speech is not None:
            self.speech.take(token)
        if self._matcher is not None:
            self.complete = self._matcher.take(token)

    def _place(self, token: int) -> int:
        at = self._index.get(token)
        if at is None:
            at = self._index[token] = len(self._index)
            if at == len(self._ids):
                self._ids, self._seen, self._counts, self._bias = (
                    np.concatenate([each, np.zeros_like(each)])
                    for each in (self._ids, self._seen, self._counts, self._bias)
                )
            self._ids[at] = token
        return at
