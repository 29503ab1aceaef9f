"""A decoder as it is served: packed for a backend's kernels, run over windows of text, and timed."""

from collections.abc import Iterator, Mapping

import numpy as np

from tokenworks.kernels.backend import Backend, CacheType, Limits, StateBatch, StepBatch
from tokenworks.kernels.program import Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.kvcache.layout import state_bytes
from tokenworks.protocol.clock import now_s
from tokenworks.quant.forward import Float32, Int32

STEP_TOKENS = 512
LOGIT_ROWS = 256
"""Rows of logits that are in memory at a time."""
BLOCK_TOKENS = 16
DECODE_FROM, DECODE_STEPS = 128, 32


class Served:
    """The cache holds one step's windows, or one sequence of up to STEP_TOKENS."""

    def __init__(
        self, backend: Backend, program: Program, weights: Mapping[str, Tensor], cache: CacheType, threads: int
    ) -> None:
        blocks = 2 * STEP_TOKENS // BLOCK_TOKENS
        # A window is a whole number of blocks, so there are never more of them than blocks in a step.
        self._state_slots = STEP_TOKENS // BLOCK_TOKENS if state_bytes(program.cache_layers) else 0
        limits = Limits(
            STEP_TOKENS, STEP_TOKENS, LOGIT_ROWS, blocks, BLOCK_TOKENS, cache, threads, state_slots=self._state_slots
        )
        self._executable = backend.compile(program, weights, limits)
        self.weight_bytes = self._executable.weight_bytes

    def logits(self, windows: Int32, first: int) -> Iterator[tuple[Int32, Float32]]:
        """For each step the numbers of its windows, and the logits [their rows, vocabulary] behind tokens `first` to
        the last but one of each, which may be overwritten. `windows` is [count, length], length up to LOGIT_ROWS."""
        length = windows.shape[1]
        rows = np.arange(first, length - 1)
        at_once = min(STEP_TOKENS // _whole_blocks(length), LOGIT_ROWS // len(rows))
        for start in range(0, len(windows), at_once):
            numbers = np.arange(start, min(start + at_once, len(windows)), dtype=np.int32)
            yield numbers, self._run(windows[numbers], 0, rows)

    def prefill_tok_s(self, tokens: Int32, repeats: int = 3) -> float:
        """Tokens per second of a prompt of STEP_TOKENS tokens in one step, the best of `repeats` after the first."""
        prompt, last = tokens[None, :STEP_TOKENS], np.array([STEP_TOKENS - 1])
        return STEP_TOKENS / min(self._seconds(prompt, 0, last) for _ in range(repeats + 1))

    def decode_tok_s(self, tokens: Int32) -> float:
        """Tokens per second of one sequence, a token a step: the best of DECODE_STEPS steps behind DECODE_FROM tokens.

        The best, here and above: what else runs on the machine only ever makes a step slower."""
        self._run(tokens[None, :DECODE_FROM], 0, np.array([DECODE_FROM - 1]))
        steps = range(DECODE_FROM, DECODE_FROM + DECODE_STEPS)
        return 1 / min(self._seconds(tokens[None, at : at + 1], at, np.array([0])) for at in steps)

    def greedy(self, prompts: Int32, tokens: int) -> Int32:
        """[count, tokens]: how each of the prompts [count, length] goes on when the likeliest token always follows."""
        count, length = prompts.shape
        at_once = STEP_TOKENS // _whole_blocks(length + tokens)
        made = np.empty((count, tokens), np.int32)
        for start in range(0, count, at_once):
            windows = prompts[start : start + at_once]
            place, last = 0, np.array([length - 1])
            for step in range(tokens):
                rows = self._run(windows, place, last, length + tokens)
                made[start : start + at_once, step] = rows.argmax(axis=1)
                place, last = length + step, np.array([0])
                windows = made[start : start + at_once, step : step + 1]
        return made

    def _seconds(self, windows: Int32, position: int, rows: Int32) -> float:
        begun_s = now_s()
        self._run(windows, position, rows)
        return now_s() - begun_s

    def _run(self, windows: Int32, position: int, rows: Int32, room: int = 0) -> Float32:
        """One step: each window a sequence of its own whose next position is `position`; logits of its `rows`. Those of
        several windows that go on in further steps have `room` for all their tokens from the first."""
        count, length = windows.shape
        starts = np.arange(count, dtype=np.int32)[:, None]
        slots = np.arange(count, dtype=np.int32)
        states = StateBatch(
            begin=slots if position else np.full(count, -1, np.int32),
            rows=(slots + np.int32(1)) * np.int32(length) - np.int32(1),
            slots=slots,
        )
        per_window = _whole_blocks(max(position + length, room)) // BLOCK_TOKENS
        return self._executable.run(
            StepBatch(
                tokens=np.ascontiguousarray(windows, np.int32).ravel(),
                positions=np.tile(np.arange(position, position + length, dtype=np.int32), count),
                row_starts=np.arange(count + 1, dtype=np.int32) * np.int32(length),
                block_tables=np.arange(count * per_window, dtype=np.int32).reshape(count, per_window),
                logit_rows=(starts * np.int32(length) + rows.astype(np.int32)).ravel(),
                states=states if self._state_slots else None,
            )
        )


def _whole_blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
