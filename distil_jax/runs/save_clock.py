"""When a checkpoint is due."""

from __future__ import annotations

import time

import jax
import numpy as np

from distil_jax.config import Config


class SaveClock:
    """Every so many steps, or minutes (looked at when metrics are, by the first process)."""

    def __init__(self, config: Config) -> None:
        self._settings = config.checkpoint
        self._look_every = config.logging.every_steps
        self._last = time.monotonic()

    def due(self, number: int) -> bool:
        """Whether to save after step `number`; the same answer in all processes."""
        if is_due(number, self._settings.every_steps):
            return True
        if not self._settings.every_minutes or not is_due(number, self._look_every):
            return False
        elapsed = time.monotonic() - self._last >= 60 * self._settings.every_minutes
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            elapsed = bool(multihost_utils.broadcast_one_to_all(np.asarray(elapsed)))
        return elapsed

    def saved(self) -> None:
        """Start counting minutes anew."""
        self._last = time.monotonic()


def is_due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps, 0 for never, is done after this one."""
    return every > 0 and step % every == 0
