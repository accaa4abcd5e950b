"""`distil-jax benchmark` and `distil-jax plan`: the training step of any configuration, measured, or compiled.

`variants` lists what is measured. `run` starts a process of `worker` for each variant, which times the `step` of real
or synthetic `inputs`. `report` writes the table. `plan` says what a run needs on `accelerators`: `compile` compiles its
step for them and `program` reads what came out. Importing this package imports no JAX: PyTorch's side of benchmarks/
uses `serve` and is measured without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.benchmark.accelerators import find_target
    from distil_jax.benchmark.latency import latency_markdown, measure_latency, write_latency
    from distil_jax.benchmark.machine import describe_machine, peak_bytes
    from distil_jax.benchmark.plan import PlanRequest, make_plan
    from distil_jax.benchmark.plan_report import plan_markdown
    from distil_jax.benchmark.process import Worker, peak_memory, pin, serve
    from distil_jax.benchmark.report import benchmark_markdown, benchmark_paths, machine_lines, write_benchmark
    from distil_jax.benchmark.run import run_benchmark
    from distil_jax.benchmark.step import Step
    from distil_jax.benchmark.synthetic import corpus_of_rows, random_params, synthetic_corpus
    from distil_jax.benchmark.timing import Timing, noise_note, summarise
    from distil_jax.benchmark.variants import ALL, stage_of
else:
    __getattr__ = lazy_imports(__name__)
