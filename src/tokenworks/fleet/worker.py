"""A worker process: one model, one engine, one loop.

    python -m tokenworks.fleet.worker --link FD --settings JSON --spawned SECONDS

Loads the model, says Ready, then: take the messages that have come, run a step, send what it made; asleep when there
is nothing to do. How it ends:
- The link closes (the gateway closed it, or is dead): at once, also in the middle of a load or a step. On Linux the
  kernel sees to it that a dead gateway's worker dies even while it is stopped.
- Drain or SIGTERM: when what runs is finished. What comes meanwhile is not taken; the next worker gets it.
- The model cannot be used: UNUSABLE_STATUS, the reason on standard error.
- A step raises: the worker dies of it, since the engine's state can no longer be trusted. The supervisor carries the
  requests on in a new worker, and finds the one that kills.
SIGINT is ignored: a Ctrl-C is the gateway's to answer.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import msgspec

from tokenworks.fleet.lifeline import die_with
from tokenworks.fleet.link import WorkerLink
from tokenworks.fleet.settings import UNUSABLE_STATUS, WorkerSettings
from tokenworks.protocol.clock import now_s
from tokenworks.protocol.errors import ModelError
from tokenworks.protocol.messages import (
    AdapterLoaded,
    Begun,
    Cancel,
    Drain,
    DropAdapter,
    Embed,
    Embedded,
    Finish,
    Generate,
    LoadAdapter,
    StepDone,
    TokenChunk,
)

if TYPE_CHECKING:
    from tokenworks.engine.encoder import EncoderEngine
    from tokenworks.engine.engine import Engine


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    started_s = now_s()
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    end = socket.socket(fileno=int(options["--link"]))
    settings = msgspec.json.decode(options["--settings"], type=WorkerSettings)
    termination = _Termination()
    die_with(end)
    from tokenworks.fleet.load import load

    phases_s = {"python": started_s - float(options["--spawned"]), "imports": now_s() - started_s}
    try:
        engine, ready, keep_packed = load(settings, phases_s)
    except ModelError as error:
        sys.stderr.write(error.message + "\n")
        return UNUSABLE_STATUS
    except MemoryError:
        sys.stderr.write(
            f"{settings.path}: there is not enough memory for its weights and cache. Lower `cache_mb` under `engine` "
            "in factory.yaml, or take a model of fewer or smaller weights.\n"
        )
        return UNUSABLE_STATUS
    link = WorkerLink(end, termination.wake_fd)
    engine.on_begin = lambda request_ids: link.send(Begun(request_ids))
    link.send(ready)
    threading.Thread(target=_keep, args=[keep_packed], name="keep-packed", daemon=True).start()
    if ready.kind in ("generate", "transcribe"):
        _generate(link, cast("Engine", engine), termination)
    else:
        _embed(link, cast("EncoderEngine", engine), termination)
    return 0


def _keep(keep_packed: Sequence[Callable[[], None]]) -> None:
    """Beside the steps, and behind them: on Linux a thread has a niceness of its own."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    try:
        for keep in keep_packed:
            keep()
    except OSError as error:  # a full disk, a home that cannot be written to: the next start packs again
        sys.stderr.write(f"Packed weights are not kept: {error}.\n")


def _generate(link: WorkerLink, engine: "Engine", termination: "_Termination") -> None:
    while engine.busy or not termination.asked:
        for message in link.receive(wait=not engine.busy):
            match message:
                case Generate() if not termination.asked:
                    _add(engine, message, link)
                case Cancel(request_id):
                    engine.cancel(request_id)
                case Embed(request_id) if not termination.asked:
                    link.send(Embedded(request_id, error="This model generates text; it makes no embeddings."))
                case LoadAdapter(request_id, adapter) if not termination.asked:
                    link.send(Begun((request_id,)))
                    link.send(AdapterLoaded(request_id, engine.load_adapter(adapter)))
                case DropAdapter(adapter):
                    engine.drop_adapter(adapter)
                case Drain():
                    termination.asked = True
        if engine.busy:
            link.send(engine.step(now_s()))


def _add(engine: "Engine", message: Generate, link: WorkerLink) -> None:
    try:
        engine.add(message, now_s())
    except Exception:  # this worker dies of it, and it is not those that run who are to blame
        link.send(Begun((message.request_id,)))
        raise


def _embed(link: WorkerLink, engine: "EncoderEngine", termination: "_Termination") -> None:
    while engine.busy or not termination.asked:
        for message in link.receive(wait=not engine.busy):
            match message:
                case Embed() if not termination.asked:
                    engine.add(message)
                case Cancel(request_id):
                    engine.cancel(request_id)
                case Generate(request_id) if not termination.asked:
                    error = "This model makes embeddings; it generates no text."
                    chunk = TokenChunk(request_id, finish=Finish.FAILED, error=error)
                    link.send(StepDone((chunk,), engine.stats()))
                case LoadAdapter(request_id) if not termination.asked:
                    link.send(AdapterLoaded(request_id, "This model is an encoder, and takes no adapters."))
                case Drain():
                    termination.asked = True
        if engine.busy:
            done, step = engine.step()
            link.send(step)  # first: who has an answer finds it counted in the metrics
            for embedded in done:
                link.send(embedded)


class _Termination:
    """Turns SIGTERM into a flag and a readable fd, so that it ends a sleep and never tears a step apart."""

    def __init__(self) -> None:
        self.asked = False
        self.wake_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EOFError:  # the gateway is gone
        sys.exit(0)
