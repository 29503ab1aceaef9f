"""Embed requests, cut into steps: a long one delays nobody, and short ones share a step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tokenworks.protocol.errors import InvalidRequest
from tokenworks.protocol.messages import Embed, Embedded, EngineStats, StepDone

Inputs = Sequence[Sequence[int]]


class Encodes(Protocol):
    """The part of engine.encoder.Encoder that is needed here."""

    def embed(self, inputs: Inputs) -> npt.NDArray[np.float32]: ...


@dataclass(slots=True)
class _Call:
    request: Embed
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)


class EncoderQueue:
    """The engine of a model that embeds. Requests end in order of arrival, each in one Embedded."""

    def __init__(self, encoder: Encodes, *, step_tokens: int) -> None:
        self._encoder = encoder
        self._step_tokens = step_tokens
        self._calls: dict[str, _Call] = {}
        self._steps = self._tokens = 0

    @property
    def busy(self) -> bool:
        return bool(self._calls)

    def add(self, request: Embed) -> None:
        self._calls[request.request_id] = _Call(request)

    def cancel(self, request_id: str) -> None:
        """Forgets a request; nobody is told."""
        self._calls.pop(request_id, None)

    def step(self) -> tuple[list[Embedded], StepDone]:
        """Encodes up to step_tokens tokens, in order of arrival. Returns what is whole now."""
        batch = self._next_batch()
        try:
            rows = self._encoder.embed([tokens for _, inputs in batch for tokens in inputs])
        except InvalidRequest:
            done = self._one_by_one(batch)
        else:
            done = []
            start = 0
            for call, inputs in batch:
                call.vectors.append(rows[start : start + len(inputs)])
                start += len(inputs)
                done += self._finished(call)
        self._steps += 1
        self._tokens += sum(len(tokens) for _, inputs in batch for tokens in inputs)
        stats = EngineStats(running=len(self._calls), prompt_tokens_total=self._tokens, steps_total=self._steps)
        return done, StepDone((), stats)

    def _next_batch(self) -> list[tuple[_Call, Inputs]]:
        """The next inputs, at least one if there is any; a request with no inputs takes part with none."""
        batch: list[tuple[_Call, Inputs]] = []
        left = self._step_tokens
        for call in self._calls.values():
            inputs = call.request.inputs[sum(map(len, call.vectors)) :]
            count = 0
            for tokens in inputs:
                if len(tokens) > left and left < self._step_tokens:
                    break
                left -= len(tokens)
                count += 1
            batch.append((call, inputs[:count]))
            if count < len(inputs):
                break
        return batch

    def _one_by_one(self, batch: list[tuple[_Call, Inputs]]) -> list[Embedded]:
        """One of them has a bad input: only that one fails."""
        done = []
        for call, inputs in batch:
            try:
                call.vectors.append(self._encoder.embed(inputs))
                done += self._finished(call)
            except InvalidRequest as error:
                del self._calls[call.request.request_id]
                done.append(Embedded(call.request.request_id, error=error.message))
        return done

    def _finished(self, call: _Call) -> list[Embedded]:
        if sum(map(len, call.vectors)) < len(call.request.inputs):
            return []
        vectors = np.concatenate(call.vectors).astype("<f4", copy=False)
        del self._calls[call.request.request_id]
        return [Embedded(call.request.request_id, int(vectors.shape[1]), vectors.tobytes())]
