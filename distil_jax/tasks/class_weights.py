"""How much each class counts in the loss: by a rule, or as the user says."""

from __future__ import annotations

import numpy as np

from distil_jax.config import TaskSettings, listed_weights
from distil_jax.data.rows import some
from distil_jax.errors import UserError
from distil_jax.tasks.examples import TaskData


def chosen_weights(settings: TaskSettings, data: TaskData) -> np.ndarray | None:
    """The weights [K] float32 that task.class_weights asks for, K classes or tags; None: all count alike.

    Raises:
        UserError: the task has no classes, or other ones, or another number of them.
    """
    text = settings.class_weights
    if text == "none":
        return None
    rule = data.spec.kind.class_weights
    if rule is None:
        raise UserError(f"task.class_weights = {text}: only for classes and tags, not for {data.spec.name}")
    weights = (
        rule([*map(data.spec.kind.label_of, data.train)], len(data.labels))
        if text == "balanced"
        else given_weights(text, data.labels)
    )
    if not weights.any():
        raise UserError(f"task.class_weights = {text}: all weights are 0, so nothing would be learned; raise one")
    return weights


def given_weights(text: str, labels: tuple[str, ...]) -> np.ndarray:
    """Weights [K] float32 from a list of them, in the order of `labels` or by name, where those not named are 1.

    Raises:
        UserError: another number than there are labels, or a name that is none of them, or is there twice.
    """
    found = listed_weights(text)
    names = [name for name, _ in found]
    if not names[0]:
        if len(found) != len(labels):
            raise UserError(
                f"task.class_weights = {text}: {len(found)} weights for the {len(labels)} classes {some(labels)}; give "
                "one a class, in this order"
            )
        return np.array([weight for _, weight in found], np.float32)
    wrong = next((name for name in names if name not in labels or names.count(name) > 1), None)
    if wrong is not None:
        what = "is there twice" if wrong in labels else f"is no class (there are {some(labels)})"
        raise UserError(f"task.class_weights = {text}: {wrong!r} {what}; name a class once")
    return np.array([dict(found).get(label, 1.0) for label in labels], np.float32)
