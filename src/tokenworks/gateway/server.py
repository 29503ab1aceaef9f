"""The server's life: bind, start the workers, serve until a signal, and end everything it started."""

import asyncio
import resource
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenworks.config import ServerSettings
from tokenworks.fleet.pool import Pool, PoolModel
from tokenworks.gateway.responses_store import ResponsesStore
from tokenworks.protocol.errors import UserError
from tokenworks.protocol.messages import Ready

_BACKLOG = 2048
OPEN_FILES_MAX = 65_536


class AddressInUse(UserError):
    """The port (or the host) cannot be listened on."""


def bind(settings: ServerSettings) -> socket.socket:
    """The listening socket: bound before anything heavy starts, so that a port in use is said at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise AddressInUse(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}. "
            "Choose another with --port, or end what listens there."
        ) from error
    listener.listen(_BACKLOG)
    return listener


def allow_open_files() -> None:
    """Each client is an open file, of which shells allow 1024: as many as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def serve(
    models: Sequence[PoolModel],
    settings: ServerSettings,
    data_directory: Path,
    on_ready: Callable[[str, dict[str, Ready]], None],
) -> None:
    """Serves until SIGINT or SIGTERM; every process it started has ended when it returns.

    `on_ready(url, model -> what its worker said)` is called once, when all models that start now can answer.
    Raises AddressInUse; ModelError when such a model cannot be used.
    """
    import uvloop

    allow_open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(models, settings, data_directory, on_ready))


async def _serve(
    models: Sequence[PoolModel],
    settings: ServerSettings,
    data_directory: Path,
    on_ready: Callable[[str, dict[str, Ready]], None],
) -> None:
    listener = bind(settings)
    pool = Pool()
    store = ResponsesStore(data_directory / "responses.sqlite")
    try:
        await pool.start(models)
        # The web stack is imported while the workers, which take longer to get ready, start.
        from tokenworks.gateway.http_server import answer_until_signal

        await answer_until_signal(listener, pool, models, settings, store, on_ready)
    finally:
        listener.close()
        await pool.close()
        store.close()
