"""Settings of malloc and XLA for a CPU run, and the restart that makes them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from distil_jax.cpu import MALLOC_SETTINGS, cpu_environment, environment, restart_for_cpu

ROOT = Path(__file__).resolve().parents[2]


def test_settings_for_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []  # device files
    monkeypatch.setattr(environment.glob, "glob", lambda pattern: found if "nvidia" in pattern else [])
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    settings = {**MALLOC_SETTINGS, "XLA_FLAGS": "--xla_cpu_enable_concurrency_optimized_scheduler=false"}
    assert settings["MALLOC_TRIM_THRESHOLD_"] == "17179869184"
    assert settings["MALLOC_TOP_PAD_"] == "268435456"
    assert cpu_environment({}, "any") == settings
    assert cpu_environment({"JAX_PLATFORMS": "cpu"}, "any") == settings
    assert cpu_environment({}, "gpu") == {}
    assert cpu_environment({"JAX_PLATFORMS": "cuda"}, "any") == {}
    for switch in ("DISTIL_JAX_RESTART", "DISTIL_JAX_CPU_FORMS"):
        assert cpu_environment({switch: "0"}, "cpu") == {}
        assert cpu_environment({switch: "1"}, "cpu") == settings
    assert cpu_environment({"MALLOC_ARENA_MAX": "4"}, "cpu") == {}  # the user's own choice
    added = cpu_environment({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, "cpu")["XLA_FLAGS"]
    assert added == f"--xla_force_host_platform_device_count=2 {settings['XLA_FLAGS']}"
    chosen = {"XLA_FLAGS": "--xla_cpu_enable_concurrency_optimized_scheduler=true"}
    assert cpu_environment(chosen, "cpu") == MALLOC_SETTINGS
    found.append("/dev/nvidia0")
    assert cpu_environment({}, "any") == {}
    assert cpu_environment({}, "cpu") == settings
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert cpu_environment({}, "cpu") == {}


def test_the_command_restarts_itself_once_and_silently(tmp_path: Path) -> None:
    script = tmp_path / "distil-jax"
    script.write_text(
        "import os, sys\nfrom distil_jax.cpu import restart_for_cpu\nrestart_for_cpu('cpu')\n"
        "print(os.getpid(), os.environ.get('MALLOC_ARENA_MAX'), sys.argv[1:], sys.flags.no_user_site)\n"
    )
    left_out = ("MALLOC_", "JAX_", "XLA_", "DISTIL_JAX_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}

    def run(**changes: str) -> tuple[int, str, str]:
        process = subprocess.Popen(
            [sys.executable, "-s", str(script), "a b", "--flag"],
            env={**kept, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **changes},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        out, err = process.communicate(timeout=240)
        return process.pid, out.strip(), err

    pid, out, err = run()
    assert out == f"{pid} 1 ['a b', '--flag'] 1"  # the same process, arguments and interpreter flags
    assert err == ""
    for switch in ("DISTIL_JAX_RESTART", "DISTIL_JAX_CPU_FORMS"):
        pid, out, err = run(**{switch: "0"})
        assert (out, err) == (f"{pid} None ['a b', '--flag'] 1", "")


def test_nothing_restarts_outside_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("restarted the tests")

    for name in (*MALLOC_SETTINGS, "DISTIL_JAX_RESTART", "DISTIL_JAX_CPU_FORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "execve", fail)
    restart_for_cpu("cpu")
