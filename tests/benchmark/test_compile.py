from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import pytest

from distil_jax.benchmark.accelerators import Target
from distil_jax.benchmark.compile import compile_step
from distil_jax.benchmark.inputs import make_inputs
from distil_jax.benchmark.step import Step
from distil_jax.benchmark.variants import Stage
from distil_jax.config import Config, load_config, with_overrides
from distil_jax.target import target_device

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here() -> Target:
    return Target("this", target_device(), jax.devices(), 1 << 30, 1e11, 1e10, 0.0)


@pytest.mark.usefixtures("program_cache")
@pytest.mark.parametrize("stage", ["distill", pytest.param("finetune", marks=pytest.mark.slow)])
def test_a_plan_from_shapes_is_that_of_the_real_step(tiny: dict[str, Any], here: Target, stage: Stage) -> None:
    base = load_config("finetune") if stage == "finetune" else Config()
    config = with_overrides(base, {**tiny, "task.max_length": 32, "finetune.buckets": (32,)})
    planned = compile_step(make_inputs(config, stage, 60, shapes_only=True).spec, here)
    step = Step(make_inputs(config, stage, 60).spec)
    step.program(step.batches(1)[0])
    assert planned.memory.total == pytest.approx(step.planned_bytes, rel=0.01)
    assert planned.positions == 8 * 32
    # Adam has two moments a parameter, beside its counts; everything is trained.
    assert planned.memory.moments == pytest.approx(2 * planned.memory.parameters, rel=0.1)
    assert (planned.memory.teacher > 0) == (stage == "distill")
    assert planned.program is not None


@pytest.mark.usefixtures("program_cache")
def test_matrix_work_is_what_the_formula_says(tiny: dict[str, Any], here: Target) -> None:
    config = with_overrides(Config(), {**tiny, "objective.restrict_kl_to_mask": False})
    spec = make_inputs(config, "distill", 60, shapes_only=True).spec
    found = compile_step(spec, here)
    assert found.program is not None
    kernels = found.program.kernels()
    flops = sum(kernel.flops * kernel.times for kernel in kernels)
    # Beyond the formula: the inner layer computed again for its gradient, and what XLA makes no product of.
    assert flops == pytest.approx(spec.flops_per_token * found.positions, rel=0.35)
    assert {"teacher", "student", "attention", "vocabulary", "optimizer"} <= {kernel.part for kernel in kernels}


# The step of a small model with heads as wide as real ones. Prints its memory, transfers and library calls.
ABSENT = """
import json, sys
from distil_jax.benchmark.accelerators import find_target
target = find_target(sys.argv[1], "bfloat16")
from distil_jax.benchmark.compile import compile_step
from distil_jax.benchmark.inputs import make_inputs
from distil_jax.config import Config, with_overrides
sizes = {"model.num_layers": 2, "model.hidden_size": 128, "model.num_heads": 2, "model.intermediate_size": 256}
rows = {"training.batch_size": 32, "training.micro_batch_size": 4, "corpus.sequence_length": 128}
config = with_overrides(Config(), {**sizes, **rows, "training.compute_dtype": "bfloat16"})
spec = make_inputs(config, "distill", 1000, shapes_only=True).spec
found = compile_step(spec, target)
kernels = found.program.kernels()
print(json.dumps({
    "memory": found.memory.total, "parameters": found.memory.parameters,
    "collectives": sorted(one.operation for one in found.program.collectives()),
    "targets": sorted({one.target for one in kernels if one.target}),
    "flops": sum(one.flops * one.times for one in kernels),
    "formula": spec.flops_per_token * found.positions / target.count,
}))
"""


def absent(name: str) -> dict[str, Any]:
    import json

    done = subprocess.run(
        [sys.executable, "-c", ABSENT, name],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu, the compiler for TPUs")
def test_a_step_compiled_for_tpus() -> None:
    found = absent("v5e:2x2")
    # One sum of the gradients a step, and the counts of the rows.
    assert found["collectives"].count("all-reduce") == 1
    assert set(found["collectives"]) <= {"all-reduce", "all-gather"} and len(found["collectives"]) == 2
    assert not [one for one in found["targets"] if "callback" in one.lower()]
    assert found["parameters"] < found["memory"] < 1 << 30
    assert found["flops"] == pytest.approx(found["formula"], rel=0.3)


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("jax_plugins") is None or find_spec("jax_plugins.xla_cuda13") is None,
    reason="needs JAX's plug-in for CUDA 13",
)
def test_a_step_compiled_for_gpus() -> None:
    found = absent("h100:4")
    assert found["collectives"].count("all-reduce") == 1
    assert any("fmha" in one for one in found["targets"]), "the teacher's attention is cuDNN's"
    assert found["parameters"] < found["memory"] < 1 << 30
    assert found["flops"] == pytest.approx(found["formula"], rel=0.3)
