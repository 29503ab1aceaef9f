"""How much memory the experts of a model larger than memory may take; which of them, experts/kept.h decides.

What is kept is memory of the process: the system cannot take it back as it takes a file's cache, so it is asked now and
then how much is left, and experts give way before it becomes short.
"""

from tokenworks.kernels.cpu import _cpu
from tokenworks.telemetry.memory import memory_available_bytes

MARGIN_SHARE = 1 / 16
"""Of the memory available at the start: left for others."""

LEAST_MARGIN_BYTES = 64 << 20

LOOK_TOKENS = 16
"""Run between two looks, at least: asking takes about as long as a step of a tiny model."""


def allowed_bytes(now_bytes: int, most_bytes: int, taken_bytes: int, spare_bytes: int, margin_bytes: int) -> int:
    """What experts may take from now on: `now_bytes` while `spare_bytes`, the memory that nobody uses, is near
    `margin_bytes`; less when it is under half of that, and up to `most_bytes` again when it is over one and a half."""
    if margin_bytes / 2 <= spare_bytes and (spare_bytes <= margin_bytes * 3 / 2 or now_bytes >= most_bytes):
        return now_bytes
    return max(0, min(most_bytes, taken_bytes + spare_bytes - margin_bytes))


class ExpertKeeper:
    """Of an executor whose matrices lie in a file, when its program is written."""

    def __init__(self, executor: _cpu.Executor, step_cache_bytes: int) -> None:
        """`step_cache_bytes`: what the largest step writes into the cache, whose memory is taken as it is written."""
        self._executor = executor
        # Other matrices are needed in every step: they stay in the file's cache, which counts as memory to be had.
        self._others_bytes = executor.weight_bytes - executor.expert_bytes
        available_bytes = memory_available_bytes() or 0
        self._margin_bytes = max(LEAST_MARGIN_BYTES, int(available_bytes * MARGIN_SHARE), 2 * step_cache_bytes)
        free_bytes = available_bytes - self._others_bytes - self._margin_bytes
        self._most_bytes = self._now_bytes = max(0, min(free_bytes, executor.expert_bytes))
        self._tokens = 0
        executor.keep_experts(self._now_bytes)

    def step_done(self, tokens: int) -> None:
        self._tokens += tokens
        if self._tokens < LOOK_TOKENS:
            return
        self._tokens = 0
        available_bytes = memory_available_bytes()
        if available_bytes is None:
            return
        allowed = allowed_bytes(
            self._now_bytes,
            self._most_bytes,
            self._executor.kept_expert_bytes,
            available_bytes - self._others_bytes,
            self._margin_bytes,
        )
        if allowed != self._now_bytes:
            self._now_bytes = allowed
            self._executor.keep_experts(allowed)
