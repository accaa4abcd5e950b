"""What exists only for XLA on CPU and for glibc's malloc; `benchmarks/RESULTS.md` has what each form gains.

The environment variable DISTIL_JAX_CPU_FORMS=0 switches all of it off. Models and steps then compute in the plain forms
that other platforms have, with the same numbers to rounding. Importing this package does not import JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.cpu.environment import (
        MALLOC_SETTINGS,
        cpu_environment,
        restart_for_cpu,
        settings_in_force,
        tpu_files,
    )
    from distil_jax.cpu.fences import materialize, no_fuse, order_after
    from distil_jax.cpu.malloc import memory_in_use, trim_memory
    from distil_jax.cpu.products import CHUNK_BYTES, rows_dot, transposed_dot
    from distil_jax.cpu.step_memory import StepMemory
    from distil_jax.cpu.switch import SWITCH, forms_apply, is_on
else:
    __getattr__ = lazy_imports(__name__)
