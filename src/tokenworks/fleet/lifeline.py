"""A process that must not outlive the one that spawned it."""

import ctypes
import os
import select
import signal
import sys
import threading
from typing import Protocol

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when the one that spawned it ends."""


class End(Protocol):
    """Of a socket to the one that spawned it."""

    def fileno(self) -> int: ...


def die_with(end: End) -> None:
    """Ends this process when the other end of the link is closed, whatever it is doing.

    A thread cannot do that while the process is stopped (SIGSTOP, a debugger): there Linux kills it with the thread
    that spawned it, the spawner's main one. What dies before this line is noticed by the link.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        poll = select.poll()
        poll.register(end.fileno(), 0)  # a hang-up is reported unasked
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, name="link-watch", daemon=True).start()
