"""Which evaluation of a run is the best, and when to stop early."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

Evaluations = Mapping[int, Mapping[str, float]]  # held-out measures by step


@dataclasses.dataclass(frozen=True)
class Selection:
    """Choose by `measure` (more is better); stop after `patience` evaluations without a better one (0: never).

    Evaluations up to step `after` do not count. Without a measure none is the best.
    """

    measure: str = ""
    patience: int = 0
    after: int = 0

    def best_step(self, evaluations: Evaluations) -> int | None:
        """The step of the best evaluation, the first of equals; None without any."""
        if not self.measure:
            return None
        values = {step: measures[self.measure] for step, measures in evaluations.items() if step > self.after}
        scores = {step: value if math.isfinite(value) else -math.inf for step, value in values.items()}
        return max(scores, key=lambda step: (scores[step], -step)) if scores else None

    def exhausted(self, evaluations: Evaluations) -> bool:
        """Whether none of the last `patience` evaluations is better than the best one before them."""
        best = self.best_step(evaluations)
        if not self.patience or best is None:
            return False
        return sum(step > best for step in evaluations) >= self.patience


NO_CHOICE = Selection()  # the last step is the result
