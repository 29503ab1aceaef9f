"""Worker processes on this host: spawn, hear their last words, end, reap.

A worker is the leader of a session of its own, so that a Ctrl-C in the terminal reaches the factory alone, which
decides. Its standard error is a pipe that is always read; the last lines are kept for the message when it dies.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import msgspec

from tokenworks.fleet.link import make_link
from tokenworks.fleet.link_async import GatewayLink
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.protocol.clock import now_s
from tokenworks.protocol.messages import ToGateway, ToWorker

_LAST_BYTES = 4000
_GRACE_S = 1.0
"""A worker exits by itself when its link closes; one that has not by then is killed."""

Command = Callable[[WorkerSettings, int], Sequence[str]]
"""The command line of a worker, from its settings and the number of its inherited end of the link."""


def worker_command(settings: WorkerSettings, link_fd: int) -> list[str]:
    """This package's worker, run by this Python."""
    return [
        *(sys.executable, "-m", "tokenworks.fleet.worker"),
        *("--link", str(link_fd)),
        *("--settings", msgspec.json.encode(settings).decode()),
        *("--spawned", repr(now_s())),
    ]


def describe_exit(status: int) -> str:
    """An exit status (-N: signal N) in words."""
    if status >= 0:
        return f"exited with status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"


class Process:
    """One worker process, from its spawn to its reaping: one call of `run`."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._link: GatewayLink | None = None
        self._last_words = _LastWords()
        self._killed = False

    async def run(self, command: Command, settings: WorkerSettings, on_message: Callable[[ToGateway], None]) -> int:
        """Spawns; returns the exit status when the process is reaped and everything it said has been handled.

        Cancelling ends and reaps it first. Raises OSError when it cannot be spawned.
        """
        if self._killed:
            return -signal.SIGKILL
        loop = asyncio.get_running_loop()
        lost = asyncio.Event()
        ours, theirs = make_link()
        with theirs:
            # Blocks for the millisecond that a vfork takes; only so can `kill` never miss a process being born.
            popen = self._popen = subprocess.Popen(  # noqa: ASYNC220
                command(settings, theirs.fileno()),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self.pid = popen.pid
        try:
            _, self._link = await loop.create_unix_connection(lambda: GatewayLink(on_message, lost.set), sock=ours)
            await loop.connect_read_pipe(lambda: self._last_words, popen.stderr)
            await lost.wait()
        finally:
            if self._link is not None:
                self._link.close()
            ours.close()
            # A cancelled close must not leave an orphan or a zombie: the reaping goes on whoever stops waiting for it.
            await asyncio.shield(loop.create_task(_reap(popen)))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._last_words.ended.wait(), _GRACE_S)
        return popen.returncode

    def send(self, message: ToWorker) -> None:
        """Never blocks; dropped when the process is dying."""
        if self._link is not None:
            self._link.send(message)

    def kill(self) -> None:
        """Ends it at once; `run` returns soon, with no process when it had not begun."""
        self._killed = True
        if self._popen is not None:
            self._popen.kill()

    @property
    def broken(self) -> bool:
        """It was ended for what it sent."""
        return self._link is not None and self._link.broken

    def last_words(self) -> str:
        """The end of what it wrote to its standard error."""
        return self._last_words.text()


async def _reap(popen: subprocess.Popen[bytes]) -> None:
    timer = asyncio.get_running_loop().call_later(_GRACE_S, popen.kill)
    try:
        await asyncio.to_thread(popen.wait)
    finally:
        timer.cancel()


class _LastWords(asyncio.Protocol):
    """Reads a pipe to its end and keeps the last bytes."""

    def __init__(self) -> None:
        self._kept = b""
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-_LAST_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()

    def text(self) -> str:
        return self._kept.decode(errors="replace").strip()
