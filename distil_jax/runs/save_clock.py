"""When a checkpoint is due."""

from __future__ import annotations

import time

import jax
import numpy as np

from distil_jax.config import Config


class SaveClock:
    """A checkpoint every so many steps, and every so many minutes by the first process's clock."""

    def __init__(self, config: Config) -> None:
        self._settings = config.checkpoint
        self._last = self._looked = time.monotonic()
        self._step = -1  # of the last look
        self._next = 0  # step of the next look; every process looks at the same steps

    def due(self, number: int) -> bool:
        """Whether to save after step `number`; the same answer in all processes."""
        if is_due(number, self._settings.every_steps):
            return True
        if not self._settings.every_minutes or number < self._next:
            return False
        now, limit = time.monotonic(), self._last + 60 * self._settings.every_minutes
        steps = number - self._step if self._step >= 0 else 1
        # The next look comes halfway to the limit, so that processes seldom wait for each other to agree; and after
        # at most twice as many steps as this one, since the speed may change.
        halfway = int((limit - now) / 2 / max((now - self._looked) / steps, 1e-6))
        elapsed, self._next = self._agreed(now >= limit, number + max(min(halfway, 2 * steps), 1))
        self._looked, self._step = now, number
        return elapsed

    @staticmethod
    def _agreed(elapsed: bool, following: int) -> tuple[bool, int]:
        """The first process's values, in all."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            found = multihost_utils.broadcast_one_to_all(np.array([elapsed, min(following, 2**31 - 1)], np.int32))
            elapsed, following = bool(found[0]), int(found[1])
        return elapsed, following

    def saved(self) -> None:
        """Start counting minutes again."""
        self._last = time.monotonic()


def is_due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps, 0 for never, is done after this one."""
    return every > 0 and step % every == 0
