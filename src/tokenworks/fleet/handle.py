"""The shell around one Supervisor: carries out its actions, and tells it what happened."""

import asyncio
import logging
import signal

from tokenworks.fleet.host import Command, Process, describe_exit
from tokenworks.fleet.link import BadFrame
from tokenworks.fleet.settings import UNUSABLE_STATUS, WorkerSettings
from tokenworks.fleet.stream import EmbedCall, LoadCall, TokenStream
from tokenworks.fleet.supervisor import PROGRESS_TOKENS, Action, Death, Fail, Kill, Phase, Spawn, Submit, Supervisor
from tokenworks.protocol.clock import now_s
from tokenworks.protocol.errors import InvalidRequest, ModelError, WorkerLost
from tokenworks.protocol.messages import (
    AdapterLoaded,
    Begun,
    Cancel,
    DropAdapter,
    Embedded,
    EngineStats,
    Finish,
    Ready,
    StepDone,
    ToGateway,
)

_log = logging.getLogger(__name__)

_SHOWN_LINES = 6

Call = TokenStream | EmbedCall | LoadCall


class WorkerHandle:
    """One served model: its worker process, whichever it is at the moment, and the requests it carries."""

    def __init__(self, name: str, settings: WorkerSettings, command: Command, supervisor: Supervisor) -> None:
        self.name = name
        self.ready_message: Ready | None = None
        """Of the latest worker that got ready."""
        self.stats = EngineStats()
        """As of the latest step; zero again after a death."""
        self.restarts = 0
        """Starts because the process before had died."""
        self._settings = settings
        self._command = command
        self._supervisor = supervisor
        self._calls: dict[str, Call] = {}
        self._process: Process | None = None
        self._life: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._unusable = False
        self._died_before = False
        self._changed = asyncio.Event()

    @property
    def phase(self) -> Phase:
        return self._supervisor.phase

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._calls)

    def want(self) -> None:
        """Starts the worker if need be."""
        self._perform(self._supervisor.wanted(now_s()))

    async def ready(self) -> Ready:
        """What the worker said about its model; starts it if need be.

        While a worker is replaced, its predecessor's answer stands. Raises ModelError when the model cannot be used,
        WorkerLost when the worker was given up or the factory shuts down.
        """
        while True:
            if self.phase is Phase.CLOSED:
                raise WorkerLost("The factory is shutting down.")
            self.want()
            if self.phase is Phase.GIVEN_UP:
                raise (ModelError if self._unusable else WorkerLost)(self._supervisor.reason)
            if self.ready_message is not None:
                return self.ready_message
            await self._changed.wait()

    def submit(self, request_id: str, call: Call) -> None:
        """Takes a request on; it will end through `call`, unless `leave` comes first."""
        if request_id in self._calls:
            raise InvalidRequest(f"A request {request_id!r} is already running.", param="request_id")
        if self.phase is Phase.CLOSED:
            raise WorkerLost("The factory is shutting down.")
        self._calls[request_id] = call
        self._perform(self._supervisor.asked(request_id, now_s()))

    def leave(self, request_id: str) -> None:
        """The client is gone, or has its answer."""
        if self._calls.pop(request_id, None) is None:
            return
        if self._process is not None:
            self._process.send(Cancel(request_id))
        self._perform(self._supervisor.ended(request_id, now_s(), well=False))

    def tell(self, message: DropAdapter) -> None:
        """To the process, if there is one; a later one need not know."""
        if self._process is not None:
            self._process.send(message)

    async def idle(self) -> None:
        """Waits until no request is left."""
        while self._calls:
            await self._changed.wait()

    async def close(self) -> None:
        """Ends everything: requests left are failed, the process is gone when this returns."""
        if self.phase is not Phase.CLOSED:
            self._perform(self._supervisor.closed(now_s()))
        if self._timer is not None:
            self._timer.cancel()
        if self._life is not None:
            await asyncio.wait([self._life])

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Spawn():
                    self.restarts += self._died_before
                    self._process = Process()
                    self._life = asyncio.get_running_loop().create_task(self._live(self._process))
                case Kill():
                    assert self._process is not None
                    self._process.kill()
                case Submit(request_id):
                    self._send(request_id)
                case Fail(request_id, reason):
                    self._calls.pop(request_id).fail(WorkerLost(reason))
        self._arm()
        if actions or not self._calls:
            self._changed.set()
            self._changed = asyncio.Event()

    def _send(self, request_id: str) -> None:
        assert self._process is not None
        try:
            self._process.send(self._calls[request_id].message())
        except BadFrame as error:
            self._calls.pop(request_id).fail(InvalidRequest(str(error)))
            self._perform(self._supervisor.ended(request_id, now_s(), well=False))

    def _arm(self) -> None:
        """One timer, at the supervisor's next due time or before it."""
        due_s = self._supervisor.due_s()
        if due_s is None:
            return
        loop = asyncio.get_running_loop()
        at_s = loop.time() + max(0.0, due_s - now_s())
        if self._timer is None or self._timer_at_s > at_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at_s = loop.call_at(at_s, self._tick), at_s

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._supervisor.tick(now_s()))

    async def _live(self, process: Process) -> None:
        """One process from spawn to death, and what follows."""
        try:
            status = await process.run(self._command, self._settings, self._on_message)
            exit_text = describe_exit(status)
        except OSError as error:
            status, exit_text = 1, f"could not be spawned: {error}"
        self._process = None
        self.stats = EngineStats()
        self._died(status, exit_text, process.last_words(), broken=process.broken)

    def _died(self, status: int, exit_text: str, last_words: str, *, broken: bool) -> None:
        starting = self.phase is Phase.STARTING
        how: Death = "crashed"
        reason = f"The worker of {self.name!r} {exit_text}."
        if self._supervisor.overdue:
            reason = f"The worker of {self.name!r} kept us waiting too long and was ended."
        elif broken:
            reason = f"The worker of {self.name!r} sent what cannot be taken and was ended."
        elif starting and status == UNUSABLE_STATUS:
            how, reason = "unusable", last_words
        elif not starting and status == 0:
            how = "drained"
        elif status == -signal.SIGKILL:
            how = "killed"
        if how in ("crashed", "killed"):
            if starting and last_words:
                reason += " It said:\n" + "\n".join(last_words.splitlines()[-_SHOWN_LINES:])
            elif self.phase is not Phase.CLOSED:
                _log.warning("%s %d requests in flight.\n%s", reason, len(self._calls), last_words)
        self._unusable = how == "unusable"
        self._died_before = how in ("crashed", "killed")
        progressed = {name for name, call in self._calls.items() if call.made_tokens >= PROGRESS_TOKENS}
        self._perform(self._supervisor.died(now_s(), how, reason, progressed))

    def _on_message(self, message: ToGateway) -> None:
        if type(message) is StepDone:
            self._on_step(message)
        elif type(message) is Embedded:
            call = self._calls.pop(message.request_id, None)
            if isinstance(call, EmbedCall):
                call.take(message)
                self._perform(self._supervisor.ended(message.request_id, now_s(), well=True))
        elif type(message) is AdapterLoaded:
            call = self._calls.pop(message.request_id, None)
            if isinstance(call, LoadCall):
                call.take(message)
                self._perform(self._supervisor.ended(message.request_id, now_s(), well=True))
        elif type(message) is Begun:
            self._supervisor.begun(message.request_ids)
        elif type(message) is Ready and self.phase is Phase.STARTING:
            self.ready_message = message
            self._perform(self._supervisor.ready(now_s()))

    def _on_step(self, step: StepDone) -> None:
        """The hot path: one dictionary look-up for each sequence of each step."""
        self.stats = step.stats
        calls = self._calls
        if self._supervisor.heard(now_s(), step.share):
            self._arm()
        for chunk in step.chunks:
            stream = calls.get(chunk.request_id)
            if not isinstance(stream, TokenStream):
                continue  # its client has left
            stream.take(chunk)
            if chunk.finish is not None:
                del calls[chunk.request_id]
                well = chunk.finish is not Finish.CANCELLED
                self._perform(self._supervisor.ended(chunk.request_id, now_s(), well=well))
        suspect = self._supervisor.suspect
        if suspect is not None and calls[suspect].made_tokens >= PROGRESS_TOKENS:
            self._perform(self._supervisor.progressed(suspect, now_s()))
