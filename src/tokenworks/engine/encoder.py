"""Runs an encoder: token ids in, one vector per input out. Nothing is kept between steps."""

from collections.abc import Sequence

import numpy as np

from tokenworks.kernels.backend import Executable, Float32, Limits, StepBatch
from tokenworks.protocol.errors import InvalidRequest


class Encoder:
    """Packs inputs into steps within the limits, the longest first, so that a step's inputs are of similar length."""

    def __init__(self, executable: Executable, limits: Limits, *, width: int, vocabulary: int) -> None:
        self._executable = executable
        self._limits = limits
        self._width = width
        self._vocabulary = vocabulary

    def embed(self, inputs: Sequence[Sequence[int]]) -> Float32:
        """[inputs, width] in the inputs' order. Raises InvalidRequest naming the input that cannot be encoded."""
        for number, tokens in enumerate(inputs):
            if not 0 < len(tokens) <= self._limits.step_tokens:
                raise InvalidRequest(
                    f"input {number} has {len(tokens)} tokens; from 1 to {self._limits.step_tokens} are taken",
                    param="input",
                )
            if not (min(tokens) >= 0 and max(tokens) < self._vocabulary):
                raise InvalidRequest(
                    f"input {number} has a token id outside the vocabulary of {self._vocabulary}", param="input"
                )
        vectors = np.empty((len(inputs), self._width), np.float32)
        batch: list[int] = []
        tokens_in_batch = 0
        for number in sorted(range(len(inputs)), key=lambda number: -len(inputs[number])):
            length = len(inputs[number])
            if batch and (tokens_in_batch + length > self._limits.step_tokens or len(batch) == self._limits.sequences):
                vectors[batch] = self._run([inputs[other] for other in batch])
                batch, tokens_in_batch = [], 0
            batch.append(number)
            tokens_in_batch += length
        if batch:
            vectors[batch] = self._run([inputs[other] for other in batch])
        return vectors

    def _run(self, inputs: Sequence[Sequence[int]]) -> Float32:
        lengths = np.array([len(tokens) for tokens in inputs])
        return self._executable.run(
            StepBatch(
                tokens=np.concatenate([np.asarray(tokens, np.int32) for tokens in inputs]),
                positions=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
                row_starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
                block_tables=np.empty((len(inputs), 0), np.int32),
                logit_rows=np.empty(0, np.int32),
            )
        )
