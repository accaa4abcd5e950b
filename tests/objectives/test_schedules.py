"""Weights and temperature that move over a run."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest

from distil_jax.config import FineTune, Objective
from distil_jax.errors import UserError
from distil_jax.objectives import temperature_at, weights_at

MOVING = Objective(mlm=0, schedules=("kl linear 5 1", "hidden cosine 0 2", "temperature cosine 4 1"))


@pytest.mark.parametrize("done", [0.0, 0.25, 0.5, 1.0, 1.5])
def test_values_at_a_part_of_the_run(done: float) -> None:
    at = min(done, 1.0)
    found = jax.jit(lambda x: (weights_at(MOVING, x), temperature_at(MOVING, x)))(jnp.float32(done))
    half_cosine = (1 + math.cos(math.pi * at)) / 2
    assert found[0] == pytest.approx({"kl": 5 - 4 * at, "cosine": 1, "hidden": 2 - 2 * half_cosine})
    assert found[1] == pytest.approx(1 + 3 * half_cosine)


def test_what_does_not_move_is_a_number_of_the_program() -> None:
    assert weights_at(Objective(), 0.3) == {"kl": 5.0, "mlm": 2.0, "cosine": 1.0}
    assert temperature_at(Objective(), 0.3) == 2.0
    assert MOVING.weights == {"kl": 5, "cosine": 1, "hidden": 2}


@pytest.mark.parametrize(
    ("schedule", "facts"),
    [
        ("hiden linear 0 1", "hiden"),
        ("hidden_layers linear 0 1", "hidden_layers"),
        ("kl steps 5 1", "kl linear 5 1.*cosine"),
        ("kl linear 5", "kl linear 5 1"),
        ("kl linear 5 x", "kl linear 5 1"),
        ("kl linear 5 -1", "kl = -1"),
        ("temperature linear 4 0", "temperature = 0"),
    ],
)
def test_schedules_that_cannot_be_read_are_refused(schedule: str, facts: str) -> None:
    for section in (Objective, FineTune):
        with pytest.raises(UserError, match=f"{section.full_name('schedules')}.*{facts}"):
            section(schedules=(schedule,))
    with pytest.raises(UserError, match="once"):
        Objective(schedules=("kl linear 1 2", "kl linear 2 3"))
