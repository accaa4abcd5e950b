"""Weights and temperature of a step: functions of how far the run is, so that a resumed run has the same."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

from distil_jax.config import ActivationTerms, Schedule

Value = float | Array


def weights_at(settings: ActivationTerms, progress: Value) -> dict[str, Value]:
    """The weight of every term that is above 0 at some step.

    Args:
        settings: with the weights and their schedules.
        progress: () float32, 0 at the first step of the run and 1 at the last.
    """
    scheduled = settings.scheduled
    return {
        name: value_at(scheduled[name], progress) if name in scheduled else weight
        for name, weight in settings.weights.items()
    }


def temperature_at(settings: ActivationTerms, progress: Value) -> Value:
    """The softmax temperature of "kl"; a float where it does not move."""
    schedule = settings.scheduled.get("temperature")
    return settings.temperature if schedule is None else value_at(schedule, progress)


def value_at(schedule: Schedule, progress: Value) -> Array:
    """() float32."""
    done = jnp.clip(progress, 0.0, 1.0)
    if schedule.kind == "cosine":
        done = (1.0 - jnp.cos(math.pi * done)) / 2
    return jnp.float32(schedule.start) + jnp.float32(schedule.end - schedule.start) * done
