"""Several hosts: processes in network namespaces, each with an address of its own, give what one process gives."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import Config, config_to_toml

ROOT = Path(__file__).resolve().parents[1]
GUARD_SECONDS = 900  # only ends a test that hangs
STEPS, PORT = 20, 45781
ETC = Path("/etc/netns")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def hosts() -> Iterator[Callable[[int], list[str]]]:
    """A function (count) -> names of namespaces on one bridge, with the addresses 10.77.0.1, 10.77.0.2, ..."""
    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("needs root and `ip` for network namespaces")
    bridge, made = f"dj{os.getpid() % 100_000}", []

    def make(count: int) -> list[str]:
        try:
            ip("link", "add", bridge, "type", "bridge")
            ip("link", "set", bridge, "up")
            for number in range(1, count + 1):
                name = f"{bridge}-{number}"
                ip("netns", "add", name)
                made.append(name)
                ip("link", "add", f"{bridge}v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
                ip("link", "set", f"{bridge}v{number}", "master", bridge, "up")
                for words in (("addr", "add", f"10.77.0.{number}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
                    ip("-n", name, *words)
                ip("-n", name, "link", "set", "lo", "up")
                # Gloo listens at the address of the host's name; `ip netns exec` puts this file over /etc/hosts.
                (ETC / name).mkdir(parents=True)
                lines = f"127.0.0.1 localhost\n10.77.0.{number} {socket.gethostname()}\n"
                (ETC / name / "hosts").write_text(lines, encoding="utf-8")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        return made

    yield make
    for name in made:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(ETC / name, ignore_errors=True)
    subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


def found_by(start: str, number: int, count: int) -> tuple[dict[str, str], list[str]]:
    """Variables and flags by which process `number` finds the others."""
    if start == "slurm":
        job = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "10.77.0.1", "SLURM_NTASKS": str(count)}
        one = {"SLURM_PROCID": str(number), "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": str(count)}
        return {**job, **one, "JAX_COORDINATOR_PORT": str(PORT)}, []
    if start == "ompi":
        job = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.77.0.1:34911", "OMPI_COMM_WORLD_SIZE": str(count)}
        one = {"OMPI_COMM_WORLD_RANK": str(number), "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
        return {**job, **one, "JAX_COORDINATOR_PORT": str(PORT)}, []
    flags = ["--parallel.coordinator", f"10.77.0.1:{PORT}", "--parallel.num-processes", str(count)]
    if start == "kubernetes":
        return {"JOB_COMPLETION_INDEX": str(number)}, flags
    return {}, [*flags, "--parallel.process-id", str(number)]


def begin(names: list[str], config: Path, start: str, devices: int) -> list[subprocess.Popen[str]]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))},
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "DISTIL_JAX_RESTART": "0",
        "JAX_COMPILATION_CACHE_DIR": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-m", "distil_jax.cli", "distill", "--config", str(config)]
    processes = []
    for number, name in enumerate(names):
        variables, flags = found_by(start, number, len(names))
        inside = ["ip", "netns", "exec", name] if name else []
        processes.append(
            subprocess.Popen(
                [*inside, *command, *(flags if len(names) > 1 else [])],
                env={**environment, **(variables if len(names) > 1 else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    ends = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=GUARD_SECONDS)
            ends.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return ends


def losses(folder: Path) -> list[dict[str, float]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["metrics"] for row in rows if row["kind"] == "train"]


@pytest.fixture
def write_config(tiny_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Path]:
    def write(output: Path, **changes: Any) -> Path:
        settings = {"training.batch_size": 16, "training.micro_batch_size": 2, "parallel.devices": 8}
        settings |= {"training.steps": STEPS, "checkpoint.every_steps": 0, "evaluation.every_steps": 0}
        path = tmp_path / f"{output.name}.toml"
        path.write_text(config_to_toml(tiny_config(output, {**settings, **changes})))
        return path

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        ({}, {2: "slurm", 4: "kubernetes"}),
        ({"parallel.fsdp": True, "parallel.teacher": "fsdp"}, {2: "ompi", 4: "flags"}),
    ],
    ids=["data parallel", "fsdp"],
)
def test_hosts_give_the_losses_of_one(
    hosts: Callable[[int], list[str]],
    write_config: Callable[..., Path],
    tmp_path: Path,
    settings: dict[str, Any],
    starts: dict[int, str],
) -> None:
    """8 devices in 1, 2 and 4 processes, dropout on; they find each other in a way of their own each."""
    names, found = hosts(4), {}
    for count, start in {1: "", **starts}.items():
        output = tmp_path / f"run{count}"
        used = names[:count] if count > 1 else [""]
        ends = finish(begin(used, write_config(output, **settings), start, 8 // count))
        assert [status for status, _, _ in ends] == [0] * count, (start, ends)
        found[count] = losses(output)
    assert len(found[1]) == STEPS
    for count in starts:
        for one, other in zip(found[1], found[count], strict=True):
            assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_a_cut_link_ends_all_hosts_with_a_reason(
    hosts: Callable[[int], list[str]], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    names, output = hosts(2), tmp_path / "run"
    processes = begin(names, write_config(output, **{"training.steps": 100_000}), "flags", 4)
    metrics, deadline = output / "metrics.jsonl", time.monotonic() + GUARD_SECONDS
    while not (metrics.is_file() and losses(output)) and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.5)
    cut = time.monotonic()
    ip("-n", names[1], "link", "set", "eth0", "down")
    ends = finish(processes)
    assert time.monotonic() - cut < 30
    assert all(status not in (0, None) for status, _, _ in ends)
    assert any("distil-jax: fault" in err for _, _, err in ends) and all(err for _, _, err in ends), ends
