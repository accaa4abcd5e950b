"""Items of requests that arrive together, computed together by one thread."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Items = list[Any]


class BusyError(Exception):
    """More items wait than may."""


class Batcher:
    """While a batch is computed, the items of the next requests gather for the next one.

    Attributes:
        waiting: items that wait.
        on_batch: called with the number of items of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Items], Sequence[Any]],
        *,
        most: int,
        most_waiting: int,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Computes nothing yet, see `run`.

        Args:
            compute: items -> a result of each, in their order.
            most: items of a batch, unless one request alone has more.
            most_waiting: items that wait at most.
            on_batch: called with the number of items of each batch.
        """
        self._compute, self._most, self._most_waiting = compute, most, most_waiting
        self._queue: collections.deque[tuple[Items, asyncio.Future[Sequence[Any]]]] = collections.deque()
        self._there = asyncio.Event()
        self.waiting, self.on_batch = 0, on_batch

    async def submit(self, items: Items) -> Sequence[Any]:
        """The results of a request's items. Raises BusyError where too many wait, and what `compute` raises."""
        if self.waiting + len(items) > self._most_waiting:
            raise BusyError
        future: asyncio.Future[Sequence[Any]] = asyncio.get_running_loop().create_future()
        self._queue.append((items, future))
        self.waiting += len(items)
        self._there.set()
        return await future

    async def run(self) -> None:
        """Computes batches until it is cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="compute") as thread:
            while True:
                await self._there.wait()
                requests = self._taken()
                if requests:
                    await loop.run_in_executor(thread, self._answer, requests, loop)

    def _taken(self) -> list[tuple[Items, asyncio.Future[Sequence[Any]]]]:
        """The next requests, without those whose client no longer waits."""
        requests, count = [], 0
        while self._queue and (not requests or count + len(self._queue[0][0]) <= self._most):
            items, future = self._queue.popleft()
            self.waiting -= len(items)
            if not future.done():
                requests.append((items, future))
                count += len(items)
        if not self._queue:
            self._there.clear()
        return requests

    def _answer(self, requests: list[Any], loop: asyncio.AbstractEventLoop) -> None:
        """On the thread: computes the batch; where that fails, each request alone, so that only one of them fails."""
        every = [item for items, _ in requests for item in items]
        self.on_batch(len(every))
        try:
            results = self._compute(every)
        except Exception as error:
            if len(requests) > 1:
                for request in requests:
                    self._answer([request], loop)
                return
            loop.call_soon_threadsafe(_settle, requests[0][1], None, error)
            return
        first = 0
        for items, future in requests:
            loop.call_soon_threadsafe(_settle, future, results[first : first + len(items)], None)
            first += len(items)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():  # the client no longer waits
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
