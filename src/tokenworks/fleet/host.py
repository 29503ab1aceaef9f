"""Worker processes on this host: spawn, hear their last words, end, reap.

A worker is the leader of a session of its own, so that a Ctrl-C in the terminal reaches the factory alone, which
decides. Its standard error is a pipe that is always read; the last lines are kept for the message when it dies.
"""

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from tokenworks.fleet.link import make_link
from tokenworks.fleet.link_async import GatewayLink
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.protocol.clock import now_s
from tokenworks.protocol.messages import ToGateway, ToWorker

LAST_LINES = 20
_LINE_BYTES = 2000

UNUSABLE_STATUS = 2
"""A worker's exit status when its model cannot be used, and another try would end the same way."""

_log = logging.getLogger(__name__)

Command = Callable[[WorkerSettings, int], Sequence[str]]
"""The command line of a worker, from its settings and the number of its inherited link."""


def worker_command(settings: WorkerSettings, link_fd: int) -> list[str]:
    """The worker of this package, run by this Python."""
    return [
        *(sys.executable, "-m", "tokenworks.fleet.worker"),
        *("--link", str(link_fd)),
        *("--settings", msgspec.json.encode(settings).decode()),
        *("--spawned", repr(now_s())),
    ]


class Process:
    """One worker process. `on_death` is called once, when it is reaped, with its exit status (-N: signal N)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._lost = asyncio.Event()
        self._silent = asyncio.Event()

    async def run(
        self,
        command: Command,
        settings: WorkerSettings,
        on_message: Callable[[ToGateway], None],
    ) -> int:
        """Spawns, then returns the exit status once the process is dead and everything it said has been handled.

        Cancelling kills and reaps it. Raises OSError when it cannot be spawned.
        """
        ours, theirs = make_link()
        with ours, theirs:
            self._popen = subprocess.Popen(
                command(settings, theirs.fileno()),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
