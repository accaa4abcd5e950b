"""What the server has done, in the text format of Prometheus."""

from __future__ import annotations

import bisect
import collections
from collections.abc import Iterator, Sequence

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts of values up to each of some bounds."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name, self.text, self.bounds = name, text, bounds
        self.counts, self.total = [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it."""
        yield from _header(self.name, self.text, "histogram")
        count = 0
        for bound, own in zip((*self.bounds, float("inf")), self.counts, strict=True):
            count += own
            yield f'{self.name}_bucket{{le="{"+Inf" if bound == float("inf") else f"{bound:g}"}"}} {count}'
        yield f"{self.name}_sum {self.total:g}"
        yield f"{self.name}_count {count}"


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self.requests: collections.Counter[tuple[str, int]] = collections.Counter()
        self.texts = 0
        self.seconds = Histogram("distil_jax_request_seconds", "time of answered requests", _SECONDS)
        self.batches = Histogram("distil_jax_batch_texts", "texts computed together", _TEXTS)

    def text(self, waiting: int) -> str:
        """All of it. `waiting`: texts that wait."""
        name = "distil_jax_requests_total"
        counts = [
            f'{name}{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        texts, queue = "distil_jax_texts_total", "distil_jax_waiting_texts"
        lines = [
            *_header(name, "requests by path and HTTP status", "counter"),
            *counts,
            *_header(texts, "texts answered", "counter"),
            f"{texts} {self.texts}",
            *_header(queue, "texts that wait", "gauge"),
            f"{queue} {waiting}",
            *self.seconds.lines(),
            *self.batches.lines(),
        ]
        return "".join(f"{line}\n" for line in lines)


def _header(name: str, text: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
