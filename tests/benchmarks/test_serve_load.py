"""The load client against servers that close connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def outcome(script: Callable[[str], Any], answer: bytes, requests: int, *, pause: float = 0) -> bool:
    """Whether all requests are answered by a server that closes a connection after some, without saying so before.

    Args:
        script: the fixture.
        answer: what it sends.
        requests: after which it closes.
        pause: seconds until it does.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(requests):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
                writer.write(answer)
            await asyncio.sleep(pause)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.transport.abort() if pause else writer.close()

    async def run() -> bool:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await script("serve_load").load(f"http://127.0.0.1:{port}/predict", 100, 0.5)

    return asyncio.run(run())


@pytest.mark.parametrize("pause", [0, 0.002, 0.02])
def test_a_connection_that_the_server_closes_loses_no_answer(
    script: Callable[[str], Any], capsys: pytest.CaptureFixture[str], pause: float
) -> None:
    assert outcome(script, ANSWER, 2, pause=pause)
    assert "'200': 50" in capsys.readouterr().out


def test_what_is_not_answered_is_counted(script: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert not outcome(script, ANSWER[:-1], 1)
    assert "'IncompleteReadError': 50" in capsys.readouterr().out
    assert not outcome(script, ANSWER.replace(b"200 OK", b"503 Busy"), 10)
    assert "'503': 50" in capsys.readouterr().out
