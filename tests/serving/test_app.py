"""The server over real sockets, with an engine of its own: answers, refusals, and clients that mean no good."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason='pip install "distil_jax[serve]"')
pytest.importorskip("starlette", reason='pip install "distil_jax[serve]"')

import h11

from distil_jax.config import ServeArguments
from distil_jax.data.rows import BadRowError
from distil_jax.errors import UserError
from distil_jax.serving.app import make_app
from distil_jax.serving.engine import Engine
from distil_jax.serving.server import SlowClients, make_server

LIMITS = {"max_texts": 4, "max_bytes": 2000, "max_characters": 50, "max_waiting": 6, "timeout": 1.0}


@dataclasses.dataclass
class Running:
    """A server on a thread, whose engine gives the length of each text, and waits while `gate` is closed."""

    port: int
    gate: threading.Event
    batches: list[list[str]]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def post(self, body: Any, path: str = "/predict", method: str = "POST") -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        with self.connect() as client:
            client.sendall(head.encode() + data)
            return answer_of(client)


def answer_of(client: socket.socket) -> tuple[int, Any]:
    """Status and body of what comes until the server closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    if not head:
        return 0, None
    is_json = b"application/json" in head
    return int(head.split()[1]), json.loads(body) if is_json else body.decode()


@pytest.fixture
def running() -> Iterator[Running]:
    gate, batches = threading.Event(), []
    gate.set()

    def check(value: Any, _: dict[str, Any]) -> str:
        if not isinstance(value, str):
            raise BadRowError("no text")
        return value

    def compute(texts: list[str]) -> list[int]:
        batches.append(texts)
        gate.wait(10)
        if "poison" in texts:
            raise UserError("poisoned")
        if "bug" in texts:
            raise ZeroDivisionError
        return [*map(len, texts)]

    with started(Engine("/predict", "predictions", "jax", check, compute, "a text")) as port:
        yield Running(port, gate, batches)
        gate.set()


@contextlib.contextmanager
def started(engine: Engine) -> Iterator[int]:
    given = ServeArguments("model", **LIMITS)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = make_server(make_app(engine, given), given.timeout)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield bound.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each call returns, all at the same time."""
    found: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        found[place] = calls[place]()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_requests_are_answered_in_order(running: Running) -> None:
    assert running.post({"inputs": ["a", "bcd", ""]}) == (200, {"predictions": [1, 3, 0]})
    assert running.post({"inputs": "four"}) == (200, {"predictions": [4]})
    assert running.post(b"", "/health", "GET")[1]["status"] == "ok"
    assert 'status="200"} 2' in running.post(b"", "/metrics", "GET")[1]
    schema = running.post(b"", "/openapi.json", "GET")[1]
    assert schema["openapi"].startswith("3.") and "/predict" in schema["paths"]
    assert "/predict" in running.post(b"", "/", "GET")[1]


def test_requests_that_arrive_together_are_computed_together(running: Running) -> None:
    running.gate.clear()
    opening = threading.Timer(0.5, running.gate.set)
    opening.start()
    found = in_threads([lambda n=n: running.post({"inputs": ["x" * n]}) for n in range(1, 6)])
    assert found == [(200, {"predictions": [n]}) for n in range(1, 6)]
    assert len(running.batches) < 5 and max(map(len, running.batches)) > 1


def test_a_request_that_fails_fails_alone(running: Running) -> None:
    running.gate.clear()
    threading.Timer(0.5, running.gate.set).start()
    texts = ["first", "poison", "good"]
    found = in_threads([lambda text=text: running.post({"inputs": [text]}) for text in texts])
    assert [status for status, _ in found] == [200, 500, 200]


def test_an_exception_is_answered_as_json_and_counted(running: Running) -> None:
    status, answer = running.post({"inputs": ["bug"]})
    assert status == 500 and "log" in answer["error"]
    assert 'path="/predict",status="500"} 1' in running.post(b"", "/metrics", "GET")[1]
    assert running.post({"inputs": ["good"]})[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "fact"),
    [
        (b"{", 400, "JSON"),
        (b"\xff\xfe", 400, "JSON"),
        (b"[" * 1900, 400, "JSON"),
        ([1], 422, "inputs"),
        ({"texts": ["a"]}, 422, "inputs"),
        ({"inputs": []}, 422, "empty"),
        ({"inputs": ["a", 3]}, 422, "inputs[1]"),
        ({"inputs": ["a"] * 5}, 413, "5 inputs"),
        ({"inputs": ["x" * 51]}, 413, "50 characters"),
        ({"inputs": ["x" * 3000]}, 413, "2000 bytes"),
    ],
)
def test_what_cannot_be_answered_is_refused(running: Running, body: Any, status: int, fact: str) -> None:
    found, answer = running.post(body)
    assert found == status and fact in answer["error"]
    assert running.post({"inputs": ["a"]})[0] == 200


def test_other_paths_and_methods(running: Running) -> None:
    assert running.post({"inputs": ["a"]}, "/embed")[0] == 404
    assert running.post({"inputs": ["a"]}, "/nowhere")[0] == 404
    assert running.post(b"", "/predict", "GET")[0] == 405
    assert running.post(b"", "/health", "POST")[0] == 405


def test_too_many_that_wait_are_refused(running: Running) -> None:
    running.gate.clear()
    threading.Timer(0.6, running.gate.set).start()
    found = in_threads([lambda: running.post({"inputs": ["a"] * 3})] * 6)
    statuses = sorted(status for status, _ in found)
    assert statuses[0] == 200 and statuses[-1] == 503
    assert running.post({"inputs": ["a"]})[0] == 200


def test_what_takes_too_long_is_said(running: Running) -> None:
    running.gate.clear()
    assert running.post({"inputs": ["a"]})[0] == 504
    running.gate.set()
    assert running.post({"inputs": ["a"]})[0] == 200


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
HOSTILE = {
    "no HTTP": b"\x16\x03\x01 hello\r\n\r\n",
    "binary": bytes(range(256)) * 8,
    "an endless head": HEAD + b"X: " + b"x" * (1 << 18),
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a huge length": HEAD + b"Content-Length: 99999999999999\r\n\r\n",
    "a length of many digits": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "endless chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n" * 4,
    "a wrong chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_never_stop_it(running: Running, name: str) -> None:
    with running.connect() as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(HOSTILE[name])
        assert answer_of(client)[0] in (0, 400, 408, 413, 431)
    assert running.post({"inputs": ["a"]}) == (200, {"predictions": [1]})


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /pre", HEAD + b"X: 1\r\n", HEAD + b"Content-Length: 50\r\n\r\n{"],
    ids=["nothing", "a line", "a head", "a body"],
)
def test_slow_clients_are_ended_while_others_are_answered(running: Running, sent: bytes) -> None:
    """One that says nothing, that stops within its head, and within its body."""
    slow = [running.connect() for _ in range(20)]
    for client in slow:
        client.sendall(sent)
    assert running.post({"inputs": ["a"]})[0] == 200
    began = time.monotonic()
    for client in slow:
        status, _ = answer_of(client)
        assert status in (0, 408)
        client.close()
    assert time.monotonic() - began < 6


def test_a_connection_in_use_is_kept(running: Running) -> None:
    """For longer than the deadline of one request, with pauses shorter than it."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    connection.connect()
    own, until, pauses = connection.sock, time.monotonic() + 4 * LIMITS["timeout"], itertools.cycle([0, 0.01, 0.2, 0.6])
    while time.monotonic() < until:
        connection.request("POST", "/predict", b'{"inputs": ["a"]}')
        assert json.loads(connection.getresponse().read()) == {"predictions": [1]}
        assert connection.sock is own
        time.sleep(next(pauses))
    connection.close()


class Cycle:
    """A request of a connection as uvicorn has it, answered."""

    response_complete = True


class Connection:
    """uvicorn's, that waits for the next head."""

    def __init__(self) -> None:
        self.cycle, self.timeout_keep_alive_task, self.ended = Cycle(), None, False
        self.flow, self.conn, self.transport = SimpleNamespace(write_paused=False), h11.Connection(h11.SERVER), self

    def abort(self) -> None:
        self.ended = True


def test_requests_of_a_connection_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one may get the address of one that is gone."""
    slow, connection, now = SlowClients(5), Connection(), itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    for _ in range(50):
        del connection.cycle
        connection.cycle = Cycle()
        slow.end({connection})
    assert not connection.ended
    for _ in range(7):
        slow.end({connection})
    assert connection.ended


def test_clients_that_leave_cost_nothing(running: Running) -> None:
    running.gate.clear()
    body = b'{"inputs": ["gone"]}'
    for _ in range(6):
        with running.connect() as client:
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    time.sleep(1.3)  # their deadline: what they asked for no longer waits
    running.gate.set()
    assert running.post({"inputs": ["a"] * 4})[0] == 200


def test_a_client_that_does_not_read_is_ended() -> None:
    """Its answer is larger than what the system holds for it."""
    large = "y" * (1 << 20)
    engine = Engine("/predict", "answers", "jax", lambda value, _: value, lambda texts: [16 * large for _ in texts], "")
    with started(engine) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        body = b'{"inputs": ["a"]}'
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(4)
        client.settimeout(10)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(1 << 16):
                received += len(part)
        assert received < 16 << 20
