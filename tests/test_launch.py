"""Launch scripts, with the programs they start replaced by one that records how it was called."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = ["local.sh", "slurm.sbatch", "tpu_vm.sh"]
ARGUMENTS = ["distill", "--config", "a b.toml", "--corpus.train", "x*.txt", "it's"]
SLICE = {"TPU": "slice", "ZONE": "zone-a"}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of stand-ins that write their arguments, a line each, into a file `called`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("distil-jax", "srun", "gcloud"):
        (folder / name).write_text(
            f'#!/bin/sh\nprintf "%s\\n" {name} "$@" "devices=$CUDA_VISIBLE_DEVICES" > "{tmp_path}/called"\n'
        )
    (folder / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    for program in folder.iterdir():
        program.chmod(0o755)
    return folder


def launch(programs: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    left_out = ("TPU", "ZONE", "PROJECT", "SETUP", "GPUS", "CUDA_VISIBLE_DEVICES", "SLURM_CPUS_PER_TASK")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    path = f"{programs}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env={**kept, **environment, "PATH": path},
        capture_output=True,
        text=True,
    )


def dry_run(programs: Path, script: str, *arguments: str, **environment: str) -> list[str]:
    """Words of the command that would run; nothing has run."""
    done = launch(programs, script, "--dry-run", *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (programs.parent / "called").exists()
    return shlex.split(done.stdout)


def called(programs: Path) -> list[str]:
    return (programs.parent / "called").read_text().splitlines()


def with_gpus(programs: Path) -> None:
    (programs / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: x)'\n")


def test_local_on_cpu(programs: Path) -> None:
    assert dry_run(programs, "local.sh", *ARGUMENTS) == ["distil-jax", *ARGUMENTS]


def test_local_on_gpus(programs: Path) -> None:
    with_gpus(programs)
    assert dry_run(programs, "local.sh", *ARGUMENTS) == ["distil-jax", *ARGUMENTS, "--run.platform", "gpu"]
    assert dry_run(programs, "local.sh", *ARGUMENTS, GPUS="0,1") == [
        *("env", "CUDA_VISIBLE_DEVICES=0,1", "distil-jax", *ARGUMENTS, "--run.platform", "gpu")
    ]
    own = ["distill", "--run.platform", "any"]
    assert dry_run(programs, "local.sh", *own) == ["distil-jax", *own]
    assert dry_run(programs, "local.sh", "prepare", "--config", "x") == ["distil-jax", "prepare", "--config", "x"]


def test_local_runs_what_it_prints(programs: Path) -> None:
    with_gpus(programs)
    done = launch(programs, "local.sh", *ARGUMENTS, GPUS="3")
    assert done.returncode == 0, done.stderr
    assert called(programs) == ["distil-jax", *ARGUMENTS, "--run.platform", "gpu", "devices=3"]


def test_slurm(programs: Path) -> None:
    command = ["srun", "--kill-on-bad-exit=1", "--gpu-bind=none", "--label", "distil-jax", *ARGUMENTS]
    assert dry_run(programs, "slurm.sbatch", *ARGUMENTS) == [*command, "--run.platform", "gpu"]
    done = launch(programs, "slurm.sbatch", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert called(programs) == [*command, "--run.platform", "gpu", "devices="]


def test_slurm_gives_a_process_the_cores_that_sbatch_was_asked_for(programs: Path) -> None:
    """srun does not take them from sbatch by itself, and would give it a single one."""
    srun = dry_run(programs, "slurm.sbatch", *ARGUMENTS, SLURM_CPUS_PER_TASK="6")
    assert srun[: srun.index("distil-jax")] == [
        *("srun", "--kill-on-bad-exit=1", "--gpu-bind=none", "--cpus-per-task=6", "--label")
    ]


@pytest.mark.parametrize("stage", ["pretrain", "distill", "finetune"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_training_insists_on_the_accelerator(programs: Path, script: str, stage: str) -> None:
    with_gpus(programs)
    words = dry_run(programs, script, stage, "--config", "x", **SLICE)
    if script == "tpu_vm.sh":
        assert words[-1] == f"--command=distil-jax {stage} --config x --run.platform tpu"
    else:
        assert words[-2:] == ["--run.platform", "gpu"]


def test_slurm_has_a_task_for_each_gpu_and_its_options_come_before_any_command() -> None:
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line.split()[1] for line in lines[:first_command] if line.startswith("#SBATCH")]
    assert len(options) == sum(line.startswith("#SBATCH") for line in lines)
    values = {option[2:].partition("=")[0]: option.partition("=")[2] for option in options}
    assert values["ntasks-per-node"] == values["gpus-per-node"]


def test_tpu_vm(programs: Path) -> None:
    command = dry_run(programs, "tpu_vm.sh", *ARGUMENTS, **SLICE)
    assert command[:-1] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=zone-a", "--worker=all"]
    remote = command[-1].removeprefix("--command=")
    assert shlex.split(remote) == ["distil-jax", *ARGUMENTS, "--run.platform", "tpu"]
    assert launch(programs, "tpu_vm.sh", *ARGUMENTS, **SLICE).returncode == 0
    assert called(programs) == [*command, "devices="]


def test_tpu_vm_with_project_and_setup(programs: Path) -> None:
    more = {"PROJECT": "mine", "SETUP": "source venv/bin/activate"}
    command = dry_run(programs, "tpu_vm.sh", "evaluate", "x", **SLICE, **more)
    assert "--project=mine" in command
    assert command[-1] == "--command=source venv/bin/activate && distil-jax evaluate x"


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_command_it_explains_itself(programs: Path, script: str) -> None:
    for arguments in ([], ["--dry-run"]):
        done = launch(programs, script, *arguments, **SLICE)
        assert done.returncode == 2
        assert f"launch/{script}" in done.stderr
    assert not (programs.parent / "called").exists()


def test_tpu_vm_needs_the_name_of_the_slice(programs: Path) -> None:
    done = launch(programs, "tpu_vm.sh", "distill", ZONE="zone-a")
    assert done.returncode == 2
    assert "TPU=NAME" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_failure_is_passed_on(programs: Path, script: str) -> None:
    for name in ("distil-jax", "srun", "gcloud"):
        (programs / name).write_text("#!/bin/sh\nexit 7\n")
    assert launch(programs, script, "distill", **SLICE).returncode == 7


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_strict_and_documented(script: str) -> None:
    path = LAUNCH / script
    text = path.read_text()
    assert os.access(path, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    assert "--dry-run" in text.partition("set -euo")[0]
