"""Requests a second of `distil-jax serve`: sent at a fixed rate whether answers come or not, with none lost.

    distil-jax serve models/mine --port 8000 &
    python benchmarks/serve_load.py http://127.0.0.1:8000/predict --rate 200 --seconds 60

A request is one short text; a connection is kept for the next request. It prints how many were answered with status 200
and the median and high percentiles of their times, from when a request was due. Status 1 where one was lost.
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
_REUSED_SECONDS = 2.0  # after which the server may be about to close a connection that nothing came by


class Client:
    """Connections to one server, as many as are needed at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.path = parts.hostname or "127.0.0.1", parts.port or 80, parts.path
        self._free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> int:
        """The status of the answer, once it is read whole."""
        since, reader, writer = self._free.pop() if self._free else (0.0, None, None)
        if reader is None or writer is None or time.monotonic() - since > _REUSED_SECONDS:
            reader, writer = await asyncio.open_connection(self.host, self.port)
        head = f"POST {self.path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(answer.partition("content-length:")[2].partition("\r\n")[0])
        await reader.readexactly(length)
        if "connection: close" in answer:
            writer.close()
        else:
            self._free.append((time.monotonic(), reader, writer))
        return int(answer.split()[1])


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
    parts = ", ".join(
        f"p{100 * share:g} {1000 * times[int(share * (len(times) - 1))]:.1f}" for share in (0.5, 0.9, 0.99, 1)
    )
    print(f"{len(tasks)} requests in {time.perf_counter() - started:.1f} s: {dict(outcomes)}; ms: {parts}")
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
