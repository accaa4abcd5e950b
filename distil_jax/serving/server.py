"""The process around the application: its socket, its end, and clients that are too slow."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from distil_jax.config import ServeArguments
from distil_jax.errors import UserError

_CONNECTIONS = 1000  # open at once; more get status 503
_KEEP_ALIVE_SECONDS = 5
_TICKS = 10  # of a tenth of a second, between looks at the connections


def serve_model(given: ServeArguments, show: Callable[[str], None] = lambda _: None) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then answer what was accepted, and return.

    Args:
        given: the command's arguments.
        show: takes a line once the server answers, and one when it ends.

    Raises:
        UserError: the model cannot be loaded, the address not be used, or a package is missing.
    """
    try:
        import h11  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f'{error.name} is missing; pip install "distil_jax[serve]"') from None
    bound = _bound(given.host, given.port)  # a mistake in the address shows before the model is loaded
    with contextlib.closing(bound):
        from distil_jax.serving.app import make_app
        from distil_jax.serving.engine import load_engine

        engine = load_engine(given)
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        show(f"serving {given.model} at http://{shown}:{port}{engine.path} ({engine.runtime}); Ctrl-C ends it")
        server = make_server(make_app(engine, given), given.timeout)
        asyncio.run(server.serve([bound]))
        show("all accepted requests are answered")


def _bound(host: str, port: int) -> socket.socket:
    """A socket with this address, which does not listen yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose another one") from error
    return found


def make_server(app: Any, timeout: float) -> Any:
    """A uvicorn server of an ASGI application, whose clients have `timeout` seconds for each part of a request."""
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn's, with deadlines for clients and signals that end it with status 0."""

        slow = SlowClients(timeout)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.handle_exit, number, None)
            try:
                yield
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)

        async def on_tick(self, counter: int) -> bool:
            if counter % _TICKS == 0:
                self.slow.end(self.server_state.connections)
            return await super().on_tick(counter)

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(int(timeout), 1),
        limit_concurrency=_CONNECTIONS,
    )
    return Server(config)


class SlowClients:
    """Ends connections that wait for the same thing for too long: the head of a request, or a client that reads.

    uvicorn has no deadline for either. The rest of a request has one in the application; connections that are kept
    between two requests are closed by uvicorn.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[Any, tuple[Any, float]] = {}  # connection -> what it waits for, and since when

    def end(self, connections: set[Any]) -> None:
        """Looks at uvicorn's open connections."""
        now, before = time.monotonic(), self._since
        self._since = {}
        for connection in connections:
            waits_for = _waits_for(connection)
            if waits_for is None:
                continue
            known, since = before.get(connection, (None, now))
            since = since if known == waits_for else now
            self._since[connection] = waits_for, since
            if now - since > self._seconds:
                connection.transport.abort()


def _waits_for(connection: Any) -> tuple[str, Any] | None:
    """What a connection waits for from its client, with its last request, which as an object stays another one."""
    import h11

    cycle = connection.cycle
    if connection.flow.write_paused:
        return "reading", cycle
    if connection.timeout_keep_alive_task is not None or not (cycle is None or cycle.response_complete):
        return None
    return ("head", cycle) if connection.conn.their_state is h11.IDLE else ("end", cycle)
