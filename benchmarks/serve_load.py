"""Requests a second of `distil-jax serve`: sent at a fixed rate whether answers come or not, with none lost.

    distil-jax serve models/mine --port 8000 &
    python benchmarks/serve_load.py http://127.0.0.1:8000/predict --rate 200 --seconds 60

A request is one short text; a connection is kept for the next request. A server may close a kept connection at any
time, also just when the next request is sent: that one is sent again by a new connection. It prints the number of
answers by status, of requests without an answer by error, of those sent again, and the median and high percentiles of
the times of answers, from when a request was due. Status 1 where one was not answered with 200.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import sys
import time
from urllib.parse import urlsplit

WORDS = [
    "a",
    "warm",
    "funny",
    "film",
    "two",
    "hours",
    "I",
    "will",
    "not",
    "get",
    "back",
    "this",
    "plot",
    "has",
    "no",
    "end",
    "but",
    "the",
    "cast",
    "is",
    "good",
    "and",
    "so",
    "are",
    "songs",
]


class Client:
    """Connections to one server, as many as are needed at a time.

    Attributes:
        again: requests that were sent again, since a kept connection was closed before anything of an answer came.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.path = parts.hostname or "127.0.0.1", parts.port or 80, parts.path
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.again = 0

    async def post(self, body: bytes) -> int:
        """The status of the answer, once it is read whole."""
        reader, writer, head = await self._answered(body)
        length = int(head.partition("content-length:")[2].partition("\r\n")[0])
        await reader.readexactly(length)
        if "connection: close" in head:
            writer.close()
        else:
            self._free.append((reader, writer))
        return int(head.split()[1])

    async def _answered(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        """The connection that the request was sent by, and the head of its answer."""
        request = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():
                try:
                    return reader, writer, await _head(reader, writer, request)
                except (ConnectionError, asyncio.IncompleteReadError) as error:
                    if getattr(error, "partial", b""):
                        raise
                    self.again += 1
            writer.close()
        reader, writer = await asyncio.open_connection(self.host, self.port)
        return reader, writer, await _head(reader, writer, request)


async def _head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> str:
    writer.write(request)
    return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()


async def load(url: str, rate: float, seconds: float) -> bool:
    """Sends the requests and prints the table; whether all were answered."""
    client, chance, times = Client(url), random.Random(0), []
    outcomes: collections.Counter[str] = collections.Counter()

    async def one(due: float, body: bytes) -> None:
        try:
            async with asyncio.timeout(60):
                outcomes[str(await client.post(body))] += 1
            times.append(time.perf_counter() - due)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            outcomes[type(error).__name__] += 1

    started, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        due = started + number / rate
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        text = " ".join(chance.choices(WORDS, k=chance.randint(3, 12)))
        tasks.append(asyncio.create_task(one(due, json.dumps({"inputs": [text]}).encode())))
    await asyncio.gather(*tasks)
    times.sort()
    shares = (0.5, 0.9, 0.99, 1) if times else ()
    parts = ", ".join(f"p{100 * share:g} {1000 * times[int(share * (len(times) - 1))]:.1f}" for share in shares)
    seconds = time.perf_counter() - started
    print(f"{len(tasks)} requests in {seconds:.1f} s: {dict(outcomes)}; sent again: {client.again}; ms: {parts}")
    return outcomes["200"] == len(tasks)


def main() -> int:
    """Reads the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    return 0 if asyncio.run(load(given.url, given.rate, given.seconds)) else 1


if __name__ == "__main__":
    sys.exit(main())
