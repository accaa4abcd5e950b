"""Times of repeated rounds, and how noisy they are."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

WIDEST_SPREAD = 0.05  # of the rounds around their median: above it a difference of a few per cent means nothing


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one step, over rounds.

    Attributes:
        median: over rounds.
        spread: half the distance between the quartiles over the median (with fewer than five rounds: between the
            extremes), 0 for rounds that all took the same time.
        rounds: seconds a step of every round, in order.
    """

    median: float
    spread: float
    rounds: tuple[float, ...]

    @property
    def noisy(self) -> bool:
        """Whether the spread is too wide for the median to be quoted."""
        return self.spread > WIDEST_SPREAD


def summarise(rounds: Sequence[float]) -> Timing:
    """The timing of rounds; `ValueError` without any."""
    if not rounds:
        raise ValueError("no round was timed")
    median = statistics.median(rounds)
    if len(rounds) < 5:
        low, high = min(rounds), max(rounds)
    else:
        low, _, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return Timing(median, (high - low) / (2 * median) if median else 0.0, tuple(rounds))


def noise_note(name: str, timing: Timing) -> str:
    """A line for the user where a timing is noisy; "" where it is not."""
    if not timing.noisy:
        return ""
    low, high = min(timing.rounds), max(timing.rounds)
    return (
        f"{name}: noisy, the rounds spread by {timing.spread:.0%} around the median ({1000 * low:.1f} to "
        f"{1000 * high:.1f} ms a step; {WIDEST_SPREAD:.0%} is the limit): stop other programs or raise --repeats"
    )
