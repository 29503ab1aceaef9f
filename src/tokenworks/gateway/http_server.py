"""uvicorn with the gateway's routes, from the first request to a signal, and the requests in flight then."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from tokenworks.config import ServerSettings
from tokenworks.fleet.pool import Pool, PoolModel
from tokenworks.gateway.app import build_app
from tokenworks.gateway.http_protocol import HttpProtocol
from tokenworks.gateway.responses_store import ResponsesStore
from tokenworks.gateway.serving import Serving
from tokenworks.protocol.messages import Ready

DRAIN_LIMIT_S = 10
"""How long requests in flight may go on after a signal; a second signal ends them at once."""
_KEEP_ALIVE_S = 75


async def answer_until_signal(
    listener: socket.socket,
    pool: Pool,
    models: Sequence[PoolModel],
    settings: ServerSettings,
    store: ResponsesStore,
    on_ready: Callable[[str, dict[str, Ready]], None],
) -> None:
    """Answers on `listener`, whose workers `pool` has started, until SIGINT or SIGTERM.

    `on_ready(url, model -> what its worker said)` is called once, when all models that start now can answer.
    Raises ModelError when such a model cannot be used.
    """
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
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
        )
    )
    starting = asyncio.create_task(serving.started())
    serving_task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        with _on_signals(server.ask_to_exit):
            await asyncio.wait({starting, serving_task}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and starting.exception() is None and not server.should_exit:
                on_ready(url, starting.result())
            elif not serving_task.done():
                server.ask_to_exit()
            await serving_task
        if starting.done():
            starting.result()
    finally:
        starting.cancel()  # a signal may have come before ours were set up, and nobody waits for it


class _Server(uvicorn.Server):
    """uvicorn's server without its own signal handling, which would re-raise what it caught."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def ask_to_exit(self) -> None:
        if self.should_exit:  # the second time
            self._leave()
        self.should_exit = True
        asyncio.get_running_loop().call_later(DRAIN_LIMIT_S, self._leave)

    def _leave(self) -> None:
        """Waits no longer. Who is still in flight hears of it when the pool is closed."""
        self.force_exit = True


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
