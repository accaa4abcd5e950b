"""Which evaluation of a run was the best, and when to stop waiting for a better one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

Evaluations = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Choose by `measure` (more is better); stop after `patience` evaluations without a better one (0: never)."""

    measure: str
    patience: int = 0

    def best_step(self, evaluations: Evaluations) -> int | None:
        """The step of the best evaluation, the first of equals; None without any."""
        scores = self._scores(evaluations)
        return max(scores, key=lambda step: (scores[step], -step)) if scores else None

    def exhausted(self, evaluations: Evaluations) -> bool:
        """Whether the last `patience` evaluations brought nothing better than one before them."""
        best = self.best_step(evaluations)
        if not self.patience or best is None:
            return False
        return sum(step > best for step in self._scores(evaluations)) >= self.patience

    def _scores(self, evaluations: Evaluations) -> dict[int, float]:
        found = {int(step): measures[self.measure] for step, measures in evaluations.items()}
        return {step: -math.inf if math.isnan(value) else value for step, value in found.items()}
