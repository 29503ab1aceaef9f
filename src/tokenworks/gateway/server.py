"""The server's life: bind, start the workers, serve, and on a signal drain and end everything it started."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn

from tokenworks.config import ServerSettings
from tokenworks.fleet.pool import Pool, PoolModel
from tokenworks.gateway.app import build_app
from tokenworks.gateway.http_protocol import HttpProtocol
from tokenworks.gateway.responses_store import ResponsesStore
from tokenworks.gateway.serving import Serving
from tokenworks.protocol.errors import UserError
from tokenworks.protocol.messages import Ready

DRAIN_LIMIT_S = 10
"""How long requests in flight may go on after a signal; a second signal ends them at once."""
_KEEP_ALIVE_S = 75
_BACKLOG = 2048


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

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(models, settings, data_directory, on_ready))


async def _serve(
    models: Sequence[PoolModel],
    settings: ServerSettings,
    data_directory: Path,
    on_ready: Callable[[str, dict[str, Ready]], None],
) -> None:
    listener = bind(settings)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    pool = Pool()
    store = ResponsesStore(data_directory / "responses.sqlite")
    try:
        await pool.start(models)
        app = build_app(pool, models, settings, store)
        serving: Serving = app.state.gateway
        serving.warm()
        server = _Server(
            uvicorn.Config(
                app,
                http=HttpProtocol,
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=DRAIN_LIMIT_S,
            )
        )
        starting = asyncio.create_task(serving.started())
        serving_task = asyncio.create_task(server.serve(sockets=[listener]))
        with _on_signals(server.ask_to_exit):
            await asyncio.wait({starting, serving_task}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and starting.exception() is None and not server.should_exit:
                on_ready(url, starting.result())
            elif not serving_task.done():
                server.should_exit = True
            await serving_task
        if starting.done():
            starting.result()
        starting.cancel()
    finally:
        listener.close()
        await pool.close()
        store.close()


class _Server(uvicorn.Server):
    """uvicorn's server without its own signal handling, which would re-raise what it caught."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def ask_to_exit(self) -> None:
        self.force_exit = self.should_exit  # the second time
        self.should_exit = True


@contextlib.contextmanager
def _on_signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for each in signals:
        loop.add_signal_handler(each, handler)
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)
