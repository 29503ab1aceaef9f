"""The engine of a model that embeds: requests wait in line, each step encodes what fits, nothing is kept between steps.

Long requests are cut at their inputs and delay nobody by more than a step; short ones share a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tokenworks.kernels.backend import Executable, Float32, Limits, StepBatch
from tokenworks.protocol.messages import Embed, Embedded, EngineStats, StepDone

Input = Sequence[int]


@dataclass(slots=True)
class _Call:
    request: Embed
    begun: bool = False
    vectors: list[Float32] = field(default_factory=list)
    """[width] each, in the inputs' order; as many as are done."""


_Piece = tuple[_Call, Input, int]
"""An input of a call, and where in it its second text begins."""


class EncoderEngine:
    """`add` requests, call `step` while `busy`; every request ends in one Embedded, unless it is cancelled."""

    def __init__(
        self, executable: Executable, limits: Limits, *, width: int, vocabulary: int, sigmoid: bool = False
    ) -> None:
        """`limits.step_tokens` is the longest input taken; `width` that of a vector. `sigmoid`: of every number."""
        self.on_begin: Callable[[tuple[str, ...]], None] = lambda request_ids: None
        """Called with the requests that are started on, before anything of theirs is computed."""
        self._executable = executable
        self._limits = limits
        self._width = width
        self._vocabulary = vocabulary
        self._sigmoid = sigmoid
        self._calls: dict[str, _Call] = {}
        self._done: list[Embedded] = []
        """Answers that no step has to make, to be told with the next one."""
        self._steps = self._tokens = 0

    @property
    def busy(self) -> bool:
        """`step` has something to do or to tell."""
        return bool(self._calls or self._done)

    def add(self, request: Embed) -> None:
        """Takes a request; one with an input that cannot be encoded is answered with the error, naming the input."""
        error = next(filter(None, (self._objection(number, ids) for number, ids in enumerate(request.inputs))), None)
        if request.second_from and len(request.second_from) != len(request.inputs):
            error = "second_from needs a number for each input"
        if error is not None:
            self._done.append(Embedded(request.request_id, error=error))
        elif not request.inputs:
            self._done.append(Embedded(request.request_id, self._width))
        else:
            self._calls[request.request_id] = _Call(request)

    def cancel(self, request_id: str) -> None:
        """Forgets a request; nobody is told."""
        self._calls.pop(request_id, None)

    def step(self) -> tuple[list[Embedded], StepDone]:
        """Encodes the next inputs, in order of arrival. Returns the requests that are whole now."""
        done, self._done = self._done, []
        batch = self._next_inputs()
        tokens = sum(len(ids) for _, ids, _ in batch)
        if batch:
            self._begin([call for call, _, _ in batch])
            rows = self._executable.run(_step_batch(batch)).copy()
            if self._sigmoid:
                rows = 0.5 + 0.5 * np.tanh(0.5 * rows)
            for (call, _, _), row in zip(batch, rows, strict=True):
                call.vectors.append(row)
                if len(call.vectors) == len(call.request.inputs):
                    del self._calls[call.request.request_id]
                    vectors = np.stack(call.vectors).astype("<f4", copy=False)
                    done.append(Embedded(call.request.request_id, self._width, vectors.tobytes()))
            self._steps += 1
            self._tokens += tokens
        return done, StepDone((), self.stats(), tokens / self._limits.step_tokens)

    def stats(self) -> EngineStats:
        """How much runs and waits now, and how much was done since the start."""
        running = sum(call.begun for call in self._calls.values())
        return EngineStats(
            running=running,
            waiting=len(self._calls) - running,
            prompt_tokens_total=self._tokens,
            steps_total=self._steps,
        )

    def _begin(self, calls: Sequence[_Call]) -> None:
        new = {call.request.request_id: call for call in calls if not call.begun}
        if new:
            self.on_begin(tuple(new))
        for call in new.values():
            call.begun = True

    def _objection(self, number: int, ids: Input) -> str | None:
        if not 0 < len(ids) <= self._limits.step_tokens:
            return f"input {number} has {len(ids)} tokens; from 1 to {self._limits.step_tokens} are taken"
        if not 0 <= min(ids) <= max(ids) < self._vocabulary:
            return f"input {number} has a token id outside the vocabulary of {self._vocabulary}"
        return None

    def _next_inputs(self) -> list[_Piece]:
        batch: list[_Piece] = []
        left = self._limits.step_tokens
        for call in self._calls.values():
            request = call.request
            for number in range(len(call.vectors), len(request.inputs)):
                ids = request.inputs[number]
                if len(ids) > left or len(batch) == self._limits.sequences:
                    return batch
                left -= len(ids)
                batch.append((call, ids, request.second_from[number] if request.second_from else len(ids)))
        return batch


def _step_batch(batch: Sequence[_Piece]) -> StepBatch:
    lengths = np.array([len(ids) for _, ids, _ in batch])
    places = [np.arange(length, dtype=np.int32) for length in lengths]
    of_second = [place >= second for place, (_, _, second) in zip(places, batch, strict=True)]
    return StepBatch(
        tokens=np.concatenate([np.asarray(ids, np.int32) for _, ids, _ in batch]),
        positions=np.concatenate(places),
        row_starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        block_tables=np.empty((len(batch), 0), np.int32),
        logit_rows=np.empty(0, np.int32),
        axes=np.concatenate(of_second).astype(np.int32)[None],
    )
