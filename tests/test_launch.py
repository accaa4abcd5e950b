"""Launch scripts, with the programs they start replaced by one that records how it was called."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from distil_jax.config import SECTIONS

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
    left_out = ("TPU", "ZONE", "PROJECT", "SETUP", "GPUS", "CUDA_VISIBLE_DEVICES", "ACCELERATOR", "VERSION")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in left_out and not name.startswith(("SLURM_", "SBATCH_"))
    }
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
    return shlex.split(done.stdout, comments=True)


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


@pytest.mark.parametrize("stage", ["pretrain", "distill", "finetune", "study", "cache-teacher"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_training_insists_on_the_accelerator(programs: Path, script: str, stage: str) -> None:
    with_gpus(programs)
    words = dry_run(programs, script, stage, "--config", "x", **SLICE)
    if script == "tpu_vm.sh":
        assert f"distil-jax\\ {stage}\\ --config\\ x\\ --run.platform\\ tpu" in words[-1]
    else:
        assert words[-2:] == ["--run.platform", "gpu"]


def test_slurm_has_a_task_for_each_gpu_and_its_options_come_before_any_command() -> None:
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line.split()[1] for line in lines[:first_command] if line.startswith("#SBATCH")]
    assert len(options) == sum(line.startswith("#SBATCH") for line in lines)
    values = {option[2:].partition("=")[0]: option.partition("=")[2] for option in options}
    assert values["ntasks-per-node"] == values["gpus-per-node"]


@pytest.mark.parametrize("place", [0, 3, len(ARGUMENTS)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_may_stand_anywhere(programs: Path, script: str, place: int) -> None:
    arguments = [*ARGUMENTS[:place], "--dry-run", *ARGUMENTS[place:]]
    done = launch(programs, script, *arguments, **SLICE)
    assert done.returncode == 0 and not (programs.parent / "called").exists()
    assert shlex.split(done.stdout, comments=True) == dry_run(programs, script, *ARGUMENTS, **SLICE)


def test_slurm_shows_what_it_asks_for(programs: Path) -> None:
    shown = launch(programs, "slurm.sbatch", "--dry-run", *ARGUMENTS).stdout
    for line in ("# nodes: 1", "# ntasks-per-node: 8", "# gpus-per-node: 8", "# time: 24:00:00", "# signal: TERM@180"):
        assert line in shown.splitlines()
    inside = launch(programs, "slurm.sbatch", "--dry-run", *ARGUMENTS, SLURM_JOB_NUM_NODES="4").stdout
    assert "# nodes: 4" in inside.splitlines()


def test_a_preempted_slurm_job_is_requeued_and_continues(programs: Path, tmp_path: Path) -> None:
    """srun ends with 143 once; scontrol puts the job into the queue, which here means to run the script again."""
    script = shlex.quote(str(LAUNCH / "slurm.sbatch"))
    (programs / "srun").write_text(
        f'#!/bin/sh\necho srun "$@" >> "{tmp_path}/calls"\n[ -e "{tmp_path}/once" ] && exit 0\n'
        f'touch "{tmp_path}/once"; exit 143\n'
    )
    (programs / "scontrol").write_text(
        f'#!/bin/sh\necho scontrol "$@" >> "{tmp_path}/calls"\nbash {script} distill --config x\n'
    )
    (programs / "scontrol").chmod(0o755)
    done = launch(programs, "slurm.sbatch", "distill", "--config", "x", SLURM_JOB_ID="42")
    calls = [line.split()[0:3] for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[0] for call in calls] == ["srun", "scontrol", "srun"]
    assert calls[1] == ["scontrol", "requeue", "42"]
    assert done.returncode == 143


def test_a_slurm_job_that_fails_is_not_requeued(programs: Path, tmp_path: Path) -> None:
    (programs / "srun").write_text("#!/bin/sh\nexit 1\n")
    (programs / "scontrol").write_text(f'#!/bin/sh\ntouch "{tmp_path}/requeued"\n')
    (programs / "scontrol").chmod(0o755)
    assert launch(programs, "slurm.sbatch", "distill", SLURM_JOB_ID="42").returncode == 1
    assert not (tmp_path / "requeued").exists()


def test_tpu_vm(programs: Path) -> None:
    more = {"PROJECT": "mine", "SETUP": "source venv/bin/activate"}
    command = dry_run(programs, "tpu_vm.sh", *ARGUMENTS, **SLICE, **more)
    assert command[:-1] == [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=zone-a", "--project=mine", "--worker=all")
    ]
    assert launch(programs, "tpu_vm.sh", *ARGUMENTS, **SLICE, **more).returncode == 0
    assert called(programs) == [*command, "devices="]


@pytest.fixture
def slice_of_two(programs: Path, tmp_path: Path) -> Path:
    """A gcloud whose workers are two homes on this host; its file `state` is the slice's. Returns their folder."""
    homes = tmp_path / "homes"
    for worker in "01":
        (homes / worker).mkdir(parents=True)
    (homes / "state").write_text("READY")
    (programs / "gcloud").write_text(
        f"""#!/bin/bash
cd {homes}
echo "$4" >> actions
case "$4" in
  describe) cat state ;;
  create) echo READY > state; rm -rf {{0,1}}/.distil_jax ;;
  ssh)
    for argument in "$@"; do
      case "$argument" in
        --worker=all) workers="0 1" ;;
        --worker=*) workers="${{argument#--worker=}}" ;;
        --command=*) command="${{argument#--command=}}" ;;
      esac
    done
    for worker in $workers; do HOME={homes}/$worker bash -c "$command" || exit; done ;;
esac
"""
    )
    (programs / "distil-jax").write_text(
        '#!/bin/bash\nprintf "%s\\n" "$@"\ntrap "exit 143" TERM\nwhile [ -e "$HOME/wait" ]; do sleep 0.05; done\n'
        'exit "$(cat "$HOME/exit" 2>/dev/null || echo 0)"\n'
    )
    return homes


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_tpu_command_runs_detached_on_every_worker(programs: Path, slice_of_two: Path) -> None:
    """The script returns while the command runs; a second one is refused; --status and --stop see it."""
    for worker in "01":
        (slice_of_two / worker / "wait").touch()
    assert launch(programs, "tpu_vm.sh", *ARGUMENTS, SETUP="export X=1", **SLICE).returncode == 0
    logs = [slice_of_two / worker / ".distil_jax" / "log" for worker in "01"]
    wanted = [*ARGUMENTS, "--run.platform", "tpu"]
    for log in logs:
        wait_until(lambda log=log: log.read_text().splitlines() == wanted)
    assert launch(programs, "tpu_vm.sh", "--status", **SLICE).stdout.count("running") == 2
    second = launch(programs, "tpu_vm.sh", *ARGUMENTS, **SLICE)
    assert second.returncode == 1 and "--status" in second.stderr
    assert launch(programs, "tpu_vm.sh", "--stop", **SLICE).returncode == 0
    wait_until(lambda: launch(programs, "tpu_vm.sh", "--status", **SLICE).stdout.count("status 143") == 2)


@pytest.mark.parametrize("status", [0, 3])
def test_a_preempted_slice_is_created_again_and_the_command_continues(
    programs: Path, slice_of_two: Path, status: int
) -> None:
    (slice_of_two / "state").write_text("PREEMPTED")
    for worker in "01":
        (slice_of_two / worker / "exit").write_text(str(status))
    more = {"ACCELERATOR": "v5litepod-16", "VERSION": "v2-alpha-tpuv5-lite", "POLL_SECONDS": "0.2"}
    done = launch(programs, "tpu_vm.sh", "--keep", *ARGUMENTS, **SLICE, **more)
    assert (done.returncode != 0) == (status != 0), done.stderr
    assert done.stdout.count(f"status {status}") == 2
    actions = (slice_of_two / "actions").read_text().split()
    assert actions[:5] == ["ssh", "describe", "delete", "create", "ssh"]


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


def known_flags(words: list[str]) -> bool:
    """Whether each --section.key is a setting; --config is one of the command."""
    flags = [
        word[2:].replace("-", "_").partition(".") for word in words if word.startswith("--") and word != "--config"
    ]
    return bool(flags) and all(hasattr(SECTIONS[section], key) for section, _, key in flags)


def test_jobset_gives_the_run_time_to_save_and_starts_it_again() -> None:
    spec = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert spec["failurePolicy"]["maxRestarts"] > 0 and job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    (container,) = pod["containers"]
    assert container["args"][0] == "distill" and known_flags(container["args"])
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    folders = [word for word in container["args"] if word.startswith("/")]
    assert folders and all(word.startswith(mounted["data"]) for word in folders)


def test_skypilot_runs_the_script_of_one_host() -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    words = shlex.split(task["run"])
    assert "launch/local.sh" in words and known_flags(words[words.index("launch/local.sh") :])
    assert task["envs"]["OUTPUT"].startswith(next(iter(task["file_mounts"])))


def test_images_install_extras_that_exist() -> None:
    extras = tomllib.loads((LAUNCH.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    assert next(line for line in lines if line.startswith("ARG EXTRA=")).partition("=")[2] in extras
    named = [
        word.partition("=")[2].rstrip(".;") for line in lines for word in line.split() if word.startswith("EXTRA=")
    ]
    assert {*named} <= {*extras}
    assert lines[-1] == 'ENTRYPOINT ["distil-jax"]'
