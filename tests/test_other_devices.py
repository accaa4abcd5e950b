"""A run continues with another number of devices or processes: same examples, masks and dropout, nearly the same bits.

What rows are made of is written down where the train step makes them (`recorded_run.py`), and compared with what the
corpus, the seed and the numbers of step and row alone say.
"""

from __future__ import annotations

import os
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from distil_jax.config import Config, config_to_toml
from distil_jax.data.corpus import open_corpus
from distil_jax.data.corpus.batches import training_batches
from distil_jax.runs import read_metrics
from distil_jax.training import text_step
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.distill import distill

HERE = Path(__file__).resolve().parent
STEPS, STOPPED, BATCH = 20, 10, 8
GUARD_SECONDS = 900  # only ends a test that hangs
CHANGES = {
    "training.steps": STEPS,
    "training.micro_batch_size": 1,
    "checkpoint.every_steps": STOPPED,
    "evaluation.every_steps": STOPPED,
    "parallel.devices": 0,
}


class Recorded(NamedTuple):
    """A run's folder, and the rows that its processes have computed, by name, in the order of their dropout keys."""

    folder: Path
    rows: list[dict[str, np.ndarray]]


Go = Callable[..., Recorded]


@pytest.fixture(scope="module")
def go(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Go:
    """A function (folder, devices=, processes=1) that runs or resumes `distill` on CPU devices of that number."""

    def run(folder: Path, devices: int, processes: int = 1) -> Recorded:
        work = tmp_path_factory.mktemp("recorded")
        (work / "config.toml").write_text(config_to_toml(tiny_config(folder, CHANGES)))
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE.parent),
            "JAX_NUM_CPU_DEVICES": str(devices // processes),
            "DISTIL_JAX_RESTART": "0",
            "JAX_COMPILATION_CACHE_DIR": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster, with other rounding errors
        }
        command = [sys.executable, str(HERE / "recorded_run.py")]
        what = ["distill", "--config", str(work / "config.toml")]
        if processes > 1:
            what += ["--parallel.coordinator", f"localhost:{free_port()}", "--parallel.num-processes", str(processes)]
        started = []
        for number in range(processes):
            which = ["--parallel.process-id", str(number)] if processes > 1 else []
            arguments = [*command, str(work / f"{number}.npz"), *what, *which]
            started.append(subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True))
        try:
            said = [process.communicate(timeout=GUARD_SECONDS)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0] * processes, said
        return Recorded(folder, [dict(np.load(work / f"{number}.npz")) for number in range(processes)])

    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def on_four(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The run on four devices, from start to end."""
    return go(tmp_path_factory.mktemp("four") / "run", devices=4)


def expected_keys(steps: range) -> np.ndarray:
    """Dropout keys [n, 2] of the rows of `steps`, in order of step and row: all that dropout depends on."""

    def key(step: Any, row: Any) -> Any:
        one = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), row)
        return jax.random.key_data(jax.random.fold_in(one, 1))

    steps_, rows = np.divmod(np.arange(steps.start * BATCH, steps.stop * BATCH), BATCH)
    return np.asarray(jax.vmap(key)(steps_, rows))


def by_key(keys: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(key) for key in keys.tolist()]


def assert_rows_are_those(found: Recorded, whole: Recorded, config: Config) -> None:
    """Of the steps after the checkpoint, each row once, over all processes; and as in the run on four devices."""
    keys = by_key(expected_keys(range(STOPPED, STEPS)))
    computed = [key for rows in found.rows for key in by_key(rows["keys"])]
    assert sorted(computed) == sorted(keys)
    before = {key: number for number, key in enumerate(by_key(whole.rows[0]["keys"]))}
    for rows in found.rows:
        same = [before[key] for key in by_key(rows["keys"])]
        for name, values in rows.items():
            np.testing.assert_array_equal(values, whole.rows[0][name][same], name)
    corpus = open_corpus(Path(config.corpus.folder) / "train")
    batches = training_batches(
        corpus, batch_size=BATCH, seed=0, steps=range(STOPPED, STEPS), part=slice(0, BATCH), threads=1
    )
    examples = dict(zip(keys, np.concatenate(list(batches)), strict=True))
    for rows in found.rows:
        np.testing.assert_array_equal(rows["ids"], [examples[key] for key in by_key(rows["keys"])])


def params_of(folder: Path, like: Any) -> dict[str, np.ndarray]:
    params = Checkpoints(folder / "checkpoints", read_only=True).params(STEPS, like)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}


def difference(found: Recorded, whole: Recorded, like: Any) -> float:
    """The largest difference of two parameters."""
    one, other = params_of(found.folder, like), params_of(whole.folder, like)
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def resumed_on(
    go: Go, on_four: Recorded, whole_run: Any, folder: Path, config: Config, devices: int, processes: int
) -> float:
    """Resume the run of four devices after half of its steps on others -> the largest difference of parameters."""
    shutil.copytree(on_four.folder, folder)
    shutil.rmtree(folder / "checkpoints" / str(STEPS))  # as if it had been stopped then
    found = go(folder, devices, processes)
    assert_rows_are_those(found, on_four, config)
    rows, expected = read_metrics(folder), read_metrics(on_four.folder)
    assert [(row["step"], row["kind"]) for row in rows] == [(row["step"], row["kind"]) for row in expected]
    for one, other in zip(rows, expected, strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-4, abs=1e-6)
    return difference(found, on_four, whole_run.outcome.state.params)


@pytest.mark.fault("other devices or processes on resume")
def test_resumed_on_two_devices(
    whole_run: Any, tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run on one; once more on one, for the rows of that."""
    record = runpy.run_path(str(HERE / "recorded_run.py"))["record"]
    states, found, half = [], [], 6
    for devices in (1, 2):
        folder, rows = tmp_path / f"{devices}", []
        shutil.copytree(whole_run.folder, folder)
        for step in (8, 10, 12):
            shutil.rmtree(folder / "checkpoints" / str(step))
        with monkeypatch.context() as patch:
            patch.setattr(text_step, "make_micro_batch", text_step.make_micro_batch)  # to be put back
            record(rows)
            outcome = distill(tiny_config(folder, {"parallel.devices": devices}))
            jax.effects_barrier()
        assert outcome.resumed_from == half
        states.append(jax.tree.map(np.asarray, outcome.state))
        found.append({tuple(row[0].tolist()): row for row in rows})
        assert len(rows) == len(found[-1]), "each row once"
    assert sorted(found[0]) == sorted(found[1]) == sorted(by_key(expected_keys(range(half, 12))))
    for key, row in found[0].items():
        for one, other in zip(row, found[1][key], strict=True):
            np.testing.assert_array_equal(one, other)
    jax.tree.map(np.testing.assert_array_equal, states[0], whole_run.state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), states[1].params, whole_run.state.params)


@pytest.mark.slow
@pytest.mark.fault("other devices or processes on resume")
@pytest.mark.parametrize(("devices", "processes"), [(1, 1), (2, 1), (8, 1), (2, 2), (4, 2)])
def test_resumed_on_other_devices(
    go: Go,
    on_four: Recorded,
    whole_run: Any,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    devices: int,
    processes: int,
) -> None:
    keys = by_key(expected_keys(range(STEPS)))
    assert sorted(by_key(on_four.rows[0]["keys"])) == sorted(keys), "the whole run"
    config = tiny_config(tmp_path / "run", CHANGES)
    largest = resumed_on(go, on_four, whole_run, tmp_path / "run", config, devices, processes)
    print(f"{devices} devices, {processes} processes: {largest:.2e}")  # noqa: T201
    assert largest < 1e-3
