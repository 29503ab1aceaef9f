"""The factory's workers as one object: who wants tokens names a model and reads a stream."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from tokenworks.fleet.handle import WorkerHandle
from tokenworks.fleet.host import Command, worker_command
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.fleet.stream import EmbedCall, LoadCall, TokenStream
from tokenworks.fleet.supervisor import START_LIMIT_S, Phase, Supervisor
from tokenworks.protocol.errors import EngineError, InvalidRequest, ModelError, ModelNotFound, Overloaded
from tokenworks.protocol.messages import (
    Adapter,
    DropAdapter,
    Embed,
    Embedded,
    EngineStats,
    Generate,
    LoadAdapter,
    Ready,
    TokenChunk,
)


@dataclass(frozen=True, slots=True)
class PoolModel:
    """One model to serve."""

    name: str
    settings: WorkerSettings
    start: Literal["now", "on_demand"] = "now"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """How one model's worker is, for /metrics, /ready and people."""

    name: str
    phase: Phase
    pid: int | None
    restarts: int
    in_flight: int
    stats: EngineStats


class Pool:
    """Worker processes by model name. All methods belong to one event loop.

    A worker that dies is replaced, and its requests are carried on from the tokens already received: a stream simply
    goes on. A request that cannot be carried on ends with WorkerLost.
    """

    def __init__(self, *, command: Command = worker_command, start_limit_s: float = START_LIMIT_S) -> None:
        """`command` makes a worker's command line; a worker that is not ready after `start_limit_s` is replaced."""
        self._command = command
        self._start_limit_s = start_limit_s
        self._handles: dict[str, WorkerHandle] = {}
        self._draining = False
        self._adapters: dict[str, tuple[str, Adapter]] = {}
        """By the name that clients ask for: the model, and the adapter."""
        self._versions = 0

    async def start(self, models: Iterable[PoolModel]) -> None:
        """Spawns the workers that start now, and returns at once: wait with `ready`."""
        for model in models:
            supervisor = Supervisor(on_demand=model.start == "on_demand", start_limit_s=self._start_limit_s)
            handle = WorkerHandle(model.name, model.settings, self._command, supervisor)
            self._handles[model.name] = handle
            self._adapters |= {adapter.name: (model.name, adapter) for adapter in model.settings.adapters}
            if model.start == "now":
                handle.want()
        await asyncio.sleep(0)  # each spawn is a task's first step

    @property
    def names(self) -> list[str]:
        """The models served, in the order given to `start`."""
        return list(self._handles)

    async def ready(self, name: str) -> Ready:
        """What the worker says about its model; starts it if need be.

        Raises ModelNotFound; ModelError when the files cannot be used; WorkerLost when the worker was given up.
        """
        return await self._handle(name).ready()

    async def generate(self, name: str, request: Generate) -> AsyncIterator[TokenChunk]:
        """The output of one request; the chunk with `finish` is the last. Closing the iterator cancels the request.

        Raises ModelNotFound, Overloaded while draining, WorkerLost.
        """
        handle = self._open_handle(name)
        if name in self._adapters:
            request = replace(request, adapter=self._adapters[name][1])
        stream = TokenStream(request)
        handle.submit(request.request_id, stream)
        try:
            while True:
                chunk = await stream.next()
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            handle.leave(request.request_id)

    async def embed(self, name: str, inputs: Sequence[Sequence[int]], second_from: Sequence[int] = ()) -> Embedded:
        """One vector for each input, or one score (Embed says what `second_from` is).

        Raises ModelNotFound, Overloaded while draining, WorkerLost, EngineError.
        """
        handle = self._open_handle(name)
        request = Embed(uuid.uuid4().hex, tuple(tuple(token_ids) for token_ids in inputs), tuple(second_from))
        call = EmbedCall(request)
        handle.submit(request.request_id, call)
        try:
            embedded = await call.result
        finally:
            handle.leave(request.request_id)
        if embedded.error is not None:
            raise EngineError(embedded.error)
        return embedded

    @property
    def adapters(self) -> dict[str, str]:
        """The adapters served, and their models."""
        return {name: model for name, (model, _) in self._adapters.items()}

    async def load_adapter(self, model: str, name: str, path: str) -> None:
        """From now on `name` is served: the model with the adapter in the folder `path`.

        Raises InvalidRequest for a name in use, ModelNotFound, ModelError when the adapter cannot be used, Overloaded,
        WorkerLost.
        """
        handle = self._open_handle(model)
        self._versions += 1
        adapter = Adapter(name, path, self._versions)
        request = LoadAdapter(uuid.uuid4().hex, adapter)
        self._refuse_used(name)
        call = LoadCall(request)
        handle.submit(request.request_id, call)
        try:
            loaded = await call.result
        finally:
            handle.leave(request.request_id)
        if loaded.error is not None:
            raise ModelError(loaded.error)
        self._refuse_used(name)
        self._adapters[name] = (model, adapter)

    def unload_adapter(self, name: str) -> None:
        """No new request can name it; those that run with it finish. Raises ModelNotFound."""
        if name not in self._adapters:
            raise ModelNotFound(name, list(self._adapters))
        model, adapter = self._adapters.pop(name)
        self._handles[model].tell(DropAdapter(adapter))

    def _refuse_used(self, name: str) -> None:
        if name in self._handles or name in self._adapters:
            raise InvalidRequest(f"The name {name!r} is served already.", param="lora_name")

    def known(self, name: str) -> Ready | None:
        """What the model's latest worker said about it; None while no worker has ever got ready."""
        return self._handle(name).ready_message

    def stats(self, name: str) -> EngineStats:
        """The engine's state after its latest step."""
        return self._handle(name).stats

    def statuses(self) -> list[WorkerStatus]:
        """Of every model, in the order given to `start`."""
        return [
            WorkerStatus(name, handle.phase, handle.pid, handle.restarts, handle.in_flight, handle.stats)
            for name, handle in self._handles.items()
        ]

    async def drain(self, limit_s: float) -> bool:
        """Takes no more requests, and waits for those in flight; True when all have ended in time."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(handle.idle() for handle in self._handles.values()))
                return True
        return False

    async def close(self) -> None:
        """Ends every worker; requests in flight end with WorkerLost. No process is left when this returns."""
        await asyncio.gather(*(handle.close() for handle in self._handles.values()))

    def _handle(self, name: str) -> WorkerHandle:
        handle = self._handles.get(self._adapters[name][0] if name in self._adapters else name)
        if handle is None:
            raise ModelNotFound(name, [*self.names, *self._adapters])
        return handle

    def _open_handle(self, name: str) -> WorkerHandle:
        if self._draining:
            raise Overloaded("The factory is shutting down and takes no new requests.")
        return self._handle(name)
