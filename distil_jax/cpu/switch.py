"""The one switch of this package."""

from __future__ import annotations

import os

SWITCH = "DISTIL_JAX_CPU_FORMS"  # 0: the plain forms, and malloc and XLA as they are


def is_on() -> bool:
    """Whether the forms of this package are wanted, on whatever platform."""
    return os.environ.get(SWITCH) != "0"


def forms_apply() -> bool:
    """Whether what is traced now takes the forms of this package: they are wanted, and JAX computes on CPU."""
    import jax

    return is_on() and jax.default_backend() == "cpu"
