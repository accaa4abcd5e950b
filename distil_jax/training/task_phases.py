"""The phases of a fine-tuning: which terms are learned when, from which rows, at which learning rate.

TinyBERT learns a task in two of them: intermediate layers first, then predictions (Jiao et al. 2020, section 3.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from distil_jax.config import Config, FineTune
from distil_jax.errors import UserError
from distil_jax.objectives import active_activation_terms
from distil_jax.tasks import Encoded, steps_per_epoch

PhaseName = Literal["alone", "match", "predict"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Phase:
    """What a batch is for. It is no array, so that each phase has a compiled step of its own.

    Attributes:
        name: "alone" learns labels without a teacher, "match" the terms on activations, "predict" the rest.
        last: nothing is split off: every term of the settings is learned.
    """

    name: PhaseName = "predict"
    last: bool = True


@dataclasses.dataclass(frozen=True)
class PlannedPhase:
    """A phase of a run: what it is, how many steps it has, its peak learning rate, and the rows [N] it is about."""

    phase: Phase
    steps: int
    learning_rate: float
    rows: np.ndarray


def plan_phases(config: Config, train: Encoded) -> tuple[PlannedPhase, ...]:
    """The phases of a run on these rows, in order; a run without phases has the last one alone.

    Raises:
        UserError: a phase has nothing to learn.
    """
    settings, rate = config.finetune, config.optimizer.learning_rate
    every = np.arange(len(train))
    labelled = every if train.labelled is None else np.flatnonzero(train.labelled)
    alone = _steps(config, settings.alone_steps, settings.alone_epochs, len(labelled))
    match = _steps(config, settings.match_steps, settings.match_epochs, len(train))
    if (settings.alone_steps or settings.alone_epochs) and not len(labelled):
        raise UserError(f"{_setting(settings, 'alone')}: no row has a label to learn from alone; leave it at 0")
    for name, steps in (("alone", alone), ("match", match)):
        if steps and not config.teacher.path:
            raise UserError(
                f"{_setting(settings, name)}: a phase of its own needs teacher.path beside it; leave it at 0"
            )
    if match and not active_activation_terms(settings):
        raise UserError(
            f"{_setting(settings, 'match')}: no term compares activations; set one above 0, such as finetune.hidden, "
            "or leave it at 0"
        )
    if match and not {"task", "kl"} & settings.weights.keys():
        raise UserError(
            f"{_setting(settings, 'match')}: finetune.task and finetune.kl are both 0, so nothing is left to learn"
        )
    last = _steps(config, config.training.steps, config.training.epochs, len(train))
    planned = (
        PlannedPhase(Phase("alone", last=False), alone, settings.alone_learning_rate or rate, labelled),
        PlannedPhase(Phase("match", last=False), match, settings.match_learning_rate or rate, every),
        PlannedPhase(Phase("predict", last=not match), last, rate, every),
    )
    return tuple(phase for phase in planned if phase.steps)


def _steps(config: Config, steps: int, epochs: int, rows: int) -> int:
    return steps or epochs * steps_per_epoch(rows, config.training.batch_size)


def _setting(settings: FineTune, phase: str) -> str:
    """The setting that asks for a phase, as it was given."""
    name = next(name for name in (f"{phase}_steps", f"{phase}_epochs") if getattr(settings, name))
    return f"finetune.{name} = {getattr(settings, name)}"


def phase_weights(settings: FineTune, phase: Phase) -> FineTune:
    """The settings with the weights of the terms that a phase learns."""
    if phase.name == "match":
        return settings.without({"task", "kl"})
    if phase.last or phase.name == "alone":  # which reads no weights
        return settings
    return settings.without(active_activation_terms(settings))


def phase_lines(phases: Sequence[PlannedPhase]) -> list[str]:
    """What is said of the phases before training; nothing of one alone."""
    texts = {"alone": "labels alone", "match": "terms on activations", "predict": "labels and teacher"}
    return [
        f"phase {number}: {texts[one.phase.name]}, {one.steps:,} steps on {len(one.rows):,} rows, learning rate "
        f"{one.learning_rate:g}"
        for number, one in enumerate(phases, 1)
        if len(phases) > 1
    ]
