"""The kinds of tasks: one file each, with everything in which it differs from the others.

A new kind is a file here, its head in `models.heads`, and its place in `KINDS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distil_jax.errors import UserError
from distil_jax.tasks.kinds.choice import CHOICE
from distil_jax.tasks.kinds.kind import Logits, Predicted, Prediction, PredictionOptions, TaskKind
from distil_jax.tasks.kinds.question import QUESTION
from distil_jax.tasks.kinds.sequence import CLASS_SETS, CLASSES, SCORES
from distil_jax.tasks.kinds.token import TAGS

if TYPE_CHECKING:
    from distil_jax.models import TaskHead

KINDS: dict[str, TaskKind[Any]] = {kind.name: kind for kind in (CLASSES, CLASS_SETS, SCORES, TAGS, QUESTION, CHOICE)}


def kind_of(head: TaskHead) -> TaskKind[Any]:
    """The kind of task that a model with this head is for: the first that fits.

    Raises:
        UserError: there is none.
    """
    fitting = (kind for kind in KINDS.values() if kind.head == head.kind and kind.fits(head))
    if (found := next(fitting, None)) is None:
        raise UserError(f"a model with a {head.kind} head is for none of the tasks {', '.join(KINDS)}; fine-tune it")
    return found
