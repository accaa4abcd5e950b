"""The one switch of this package."""

from __future__ import annotations

import os

from distil_jax.target import target_device

SWITCH = "DISTIL_JAX_CPU_FORMS"  # 0: the plain forms, and malloc and XLA as they are


def is_on() -> bool:
    """Whether the forms of this package are wanted, on whatever platform."""
    return os.environ.get(SWITCH) != "0"


def forms_apply() -> bool:
    """Whether what is traced now takes the forms of this package: they are wanted, and it is for a CPU."""
    return is_on() and target_device().platform == "cpu"
