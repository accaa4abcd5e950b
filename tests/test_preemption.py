"""SIGTERM and Ctrl-C: the state is saved, the process ends soon, and the run that continues ends with the same bits."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from delayed_command import ENDLESS, Delay, Ended, Launched

from distil_jax.config import Config, config_to_toml
from distil_jax.runs import read_metrics
from distil_jax.runs.lock import LOCK_FILE
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.distill import distill

LIMIT_SECONDS = 10.0  # and two steps
STEP_SECONDS = 0.3
Launch = Callable[..., Launched]


@pytest.fixture
def launch(tiny_config: Callable[..., Config], program_cache: Path, tmp_path: Path) -> Launch:
    """A function (output, *where each process is held up) that starts the command that `whole_run` is the result of."""

    def start(output: Path, *holds: Delay) -> Launched:
        several = len(holds) > 1
        config = tmp_path / f"{output.name}.toml"
        changes = {"parallel.devices": len(holds)}
        config.write_text(config_to_toml(tiny_config(output, changes)))
        environment = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(program_cache)}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        if several:
            environment["JAX_NUM_CPU_DEVICES"] = "1"
        return Launched(["distill", "--config", str(config)], list(holds), tmp_path / "signs", environment)

    return start


def saved_step(end: Ended) -> int | None:
    """The step that a preempted process has saved, None where it says that there was nothing new."""
    lines = [line for line in end.err.splitlines() if "the same command continues" in line]
    assert len(lines) == 1, end.err
    step = re.search(r"saved step (\d+)", lines[0])
    assert step or "nothing new" in lines[0], lines[0]
    return int(step[1]) if step else None


def assert_preempted(ends: list[Ended], number: int = signal.SIGTERM) -> int | None:
    """All ended in good order and in time; the step that was saved."""
    for end in ends:
        assert end.status == 128 + number, end.err
        assert end.seconds < LIMIT_SECONDS + 2 * STEP_SECONDS
        assert "Traceback" not in end.err
    assert all("continues" not in end.err for end in ends[1:]), "only the first process prints"
    return saved_step(ends[0])


def rows_of(folder: Path) -> list[tuple[int, str, dict[str, float]]]:
    return [(row["step"], row["kind"], row["metrics"]) for row in read_metrics(folder)]


def assert_ends_like(whole_run: Any, config: Config, step: int | None, *before: int) -> None:
    """The preempted run, started again, continues from `step` and leaves the rows and the checkpoints of `whole_run`.

    Besides those that were saved when it was preempted, at `step` and `before`.
    """
    folder = Path(config.run.output)
    if step is not None:
        assert Checkpoints(folder / "checkpoints", read_only=True).latest_step() == step
    outcome = distill(config)
    assert outcome.resumed_from == (step or 0)
    assert rows_of(folder) == rows_of(whole_run.folder)
    found, expected = (Checkpoints(run / "checkpoints", read_only=True) for run in (folder, whole_run.folder))
    assert set(found.all_steps()) == {*expected.all_steps(), *before, *([step] if step else [])}
    for number in expected.all_steps():
        states = [kept.restore(number, whole_run.outcome.state) for kept in (found, expected)]
        jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(np.asarray, state) for state in states))


def preempted_at(
    launch: Launch, tiny_config: Any, folder: Path, hold: Delay, number: int = signal.SIGTERM
) -> tuple[Config, int | None]:
    with launch(folder, hold) as run:
        run.wait_for_signs()
        run.send(number)
        step = assert_preempted(run.ends(), number)
    lock = folder / LOCK_FILE
    assert not lock.is_file() or not lock.read_text(), "another host that continues would wait for its heartbeat"
    return tiny_config(folder), step


@pytest.mark.fault("SIGTERM, one process")
def test_while_training(launch: Launch, tiny_config: Any, whole_run: Any, tmp_path: Path) -> None:
    config, step = preempted_at(launch, tiny_config, tmp_path / "run", Delay("step", 5, STEP_SECONDS))
    assert step == 5, "the step that was about to begin"
    assert_ends_like(whole_run, config, step)


@pytest.mark.parametrize("at", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_ctrl_c(at: int, launch: Launch, tiny_config: Any, whole_run: Any, tmp_path: Path) -> None:
    """Nothing is lost but the step that was about to begin; `resume` continues."""
    hold = Delay("step", at, STEP_SECONDS)
    config, step = preempted_at(launch, tiny_config, tmp_path / "run", hold, signal.SIGINT)
    assert step == at
    assert_ends_like(whole_run, config, step, *([] if at % 2 == 0 else [at]))


MOMENTS = {
    # while it ...: where it is held up, and the step that is saved
    "reads its inputs": (Delay("inputs", 1, ENDLESS), None),
    "measures before the first step": (Delay("evaluation", 2, 0.5), None),
    "compiles the first step": (Delay("compile", 1), None),
    "compiles for other shapes": (Delay("compile", 6), 5),
    "measures": (Delay("evaluation", 6, 0.5), 6),  # the second batch of the third measurement
    "measures, without an end": (Delay("evaluation", 6, ENDLESS), 6),
    "measures in the end": (Delay("evaluation", 9, 0.5), 12),
    "waits for rows": (Delay("batch", 8, ENDLESS), 7),
}
QUICK = ("compiles for other shapes", "measures", "reads its inputs")


@pytest.mark.fault("SIGTERM while compiling or evaluating")
@pytest.mark.parametrize("moment", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MOMENTS])
def test_while_it(moment: str, launch: Launch, tiny_config: Any, whole_run: Any, tmp_path: Path) -> None:
    hold, expected = MOMENTS[moment]
    config, step = preempted_at(launch, tiny_config, tmp_path / "run", hold)
    assert step == expected
    assert_ends_like(whole_run, config, step)


@pytest.mark.fault("SIGTERM, one process", tries=3)
@pytest.mark.slow
def test_again_and_again(launch: Launch, tiny_config: Any, whole_run: Any, tmp_path: Path) -> None:
    """Also while a measurement is made up for that was cut off before."""
    folder = tmp_path / "run"
    _, step = preempted_at(launch, tiny_config, folder, Delay("evaluation", 4, 0.5))
    assert step == 3
    _, step = preempted_at(launch, tiny_config, folder, Delay("evaluation", 2, 0.5))
    assert step is None, "it is saved already"
    config, step = preempted_at(launch, tiny_config, folder, Delay("step", 8, STEP_SECONDS))
    assert step == 11
    assert_ends_like(whole_run, config, step, 3)


TOLD = [
    pytest.param(Delay("step", 5, STEP_SECONDS), (1,), 5, id="one of them while training"),
    pytest.param(Delay("step", 5, STEP_SECONDS), (0, 1), 5, id="both while training", marks=pytest.mark.slow),
    pytest.param(Delay("evaluation", 6, 0.5), (0,), 6, id="one while measuring", marks=pytest.mark.slow),
    pytest.param(Delay("compile", 6), (0, 1), 5, id="both while compiling", marks=pytest.mark.slow),
    pytest.param(Delay("batch", 8, ENDLESS), (1,), 7, id="one while reading", marks=pytest.mark.slow),
    pytest.param(Delay("inputs", 1, ENDLESS), (0,), None, id="one while reading inputs", marks=pytest.mark.slow),
]


@pytest.mark.fault("SIGTERM, two processes")
@pytest.mark.parametrize(("hold", "told", "least"), TOLD)
def test_two_processes_stop_at_the_same_step(
    hold: Delay, told: tuple[int, ...], least: int | None, launch: Launch, tmp_path: Path
) -> None:
    """Which both have saved together, and from which they go on."""
    folder = tmp_path / "run"
    with launch(folder, hold, hold) as run:
        run.wait_for_signs()
        run.send(signal.SIGTERM, *told)
        step = assert_preempted(run.ends())
    if least is None:
        assert step is None
        return
    assert step is not None
    assert least <= step <= least + (6 if hold.moment == "step" else 0)  # it takes a second to agree
    assert Checkpoints(folder / "checkpoints", read_only=True).latest_step() == step


@pytest.mark.fault("SIGTERM, two processes")
@pytest.mark.slow
def test_two_processes_that_were_preempted_end_with_the_same_bits(launch: Launch, tmp_path: Path) -> None:
    for name, holds in (
        ("whole", [Delay()]),
        ("stopped", [Delay("evaluation", 6, 0.5), Delay("step", 3, 0.3), Delay()]),
    ):
        for hold in holds:
            with launch(tmp_path / name, hold, hold) as run:
                if hold.moment:
                    run.wait_for_signs()
                    run.send(signal.SIGTERM, 0)
                    assert_preempted(run.ends())
                else:
                    assert [end.status for end in run.ends()] == [0, 0]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert rows_of(stopped) == rows_of(whole)
    hashes = [json.loads((run / "checkpoints" / "12" / "hashes" / "metadata").read_text()) for run in (whole, stopped)]
    for item in ("params", "optimizer"):
        assert hashes[0][item] == hashes[1][item]
