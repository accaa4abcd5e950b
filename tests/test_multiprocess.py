"""Two real processes through the command line give what one process gives, and end together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import Config, config_to_toml
from distil_jax.runs import read_metrics
from distil_jax.training.distill import distill

ROOT = Path(__file__).resolve().parents[1]
GUARD_SECONDS = 900  # only ends a test that hangs
End = tuple[int, str, str]
Together = Callable[[Path], list[End]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def together(tiny_config: Callable[..., Config], tmp_path: Path) -> Together:
    """A function (output) that runs `distill` in two processes of a device each -> status, stdout, stderr of both."""

    def run(output: Path) -> list[End]:
        config = tmp_path / "two.toml"
        config.write_text(config_to_toml(tiny_config(output, {"parallel.devices": 2, "checkpoint.every_steps": 6})))
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "DISTIL_JAX_RESTART": "0",
            "JAX_COMPILATION_CACHE_DIR": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster, with other rounding errors
        }
        cluster = ["--parallel.coordinator", f"localhost:{free_port()}", "--parallel.num-processes", "2"]
        command = [sys.executable, "-m", "distil_jax.cli", "distill", "--config", str(config), *cluster]
        processes = [
            subprocess.Popen(
                [*command, "--parallel.process-id", str(number)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        ends = []
        try:
            for process in processes:
                out, err = process.communicate(timeout=GUARD_SECONDS)
                ends.append((process.returncode, out, err))
        finally:
            for process in processes:
                process.kill()
        return ends

    return run


def rows_of(folder: Path) -> list[Mapping[str, Any]]:
    return [{"step": row["step"], "kind": row["kind"], **row["metrics"]} for row in read_metrics(folder)]


def test_two_processes_give_what_one_gives(
    together: Together, tiny_config: Callable[..., Config], whole_run: Any, tmp_path: Path
) -> None:
    """The one process has one device, the two have one each; dropout is on."""
    folder = tmp_path / "run"
    ends = together(folder)
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert "finished, step 12" in ends[0][1]
    assert "finished" not in ends[1][1], "only the first process speaks"
    found, expected = rows_of(folder), rows_of(whole_run.folder)
    assert [(row["step"], row["kind"]) for row in found] == [(row["step"], row["kind"]) for row in expected]
    for one, other in zip(found, expected, strict=True):
        numbers = {name: value for name, value in one.items() if name != "kind"}
        assert numbers == pytest.approx({name: other[name] for name in numbers}, rel=5e-5)
    # The checkpoint of two processes is one of the run, for any number of processes.
    outcome = distill(tiny_config(folder))
    assert outcome.resumed_from == 12
    state = jax.tree.map(np.asarray, outcome.state)
    for (path, found_leaf), leaf in zip(
        jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(whole_run.state.params), strict=True
    ):
        name = jax.tree_util.keystr(path)
        # No softmax depends on the bias of the keys: their gradients are rounding errors, which AdamW makes large.
        noise = name.endswith("['key']['bias']")
        np.testing.assert_allclose(found_leaf, leaf, atol=2e-4 if noise else 5e-6, rtol=1e-5, err_msg=name)


def test_a_mistake_that_one_process_finds_ends_both(together: Together, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    ends = together(folder)
    for status, _, err in ends:
        assert status == 2
        assert "not empty and not the folder of a run" in err
    assert [entry.name for entry in folder.iterdir()] == ["thesis.txt"]
