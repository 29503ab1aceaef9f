"""A factory for one command's own use: `tokenworks serve` as a child process, stopped with the command."""

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import FrameType

from tokenworks.protocol.errors import EngineError

STOP_WITHIN_S = 20.0
POLL_S = 0.02


@contextlib.contextmanager
def own_factory(source: str, config: str | None) -> Iterator[str]:
    """Serves `source` on a free port of this machine; gives the URL once it is ready. Raises EngineError.

    The child has a session of its own: a Ctrl-C in the terminal is the command's to handle, not the server's.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    arguments = ["serve", source, "--host", "127.0.0.1", "--port", str(port)]
    if config:
        arguments += ["--config", config]
    with tempfile.TemporaryFile() as log, _leaving_on(signal.SIGTERM, signal.SIGHUP):
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenworks", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while not _ready(url):
                if process.poll() is not None:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip()
                    raise EngineError(f"the factory did not start:\n{said}")
                time.sleep(POLL_S)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def _leaving_on(*signals: signal.Signals) -> Iterator[None]:
    """Turns signals that would kill this process at once into an orderly exit, so that the child is stopped too."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
