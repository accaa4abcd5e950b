"""One of two processes dies, raises or hangs: the other ends soon, and says why."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from delayed_command import ENDLESS, Delay, Launched

from distil_jax.config import Config, config_to_toml

LIMIT_SECONDS = 30.0
STALL_MINUTES = 0.5  # more than it takes to get programs from the cache
GOES_ON = Delay("step", 5, 0.3)
Launch = Callable[..., Launched]


@pytest.fixture
def launch(tiny_config: Callable[..., Config], program_cache: Path, tmp_path: Path) -> Launch:
    """A function (*where each process is held up, settings) that starts two processes of one run."""

    def start(*holds: Delay, **changes: object) -> Launched:
        config = tmp_path / "two.toml"
        config.write_text(config_to_toml(tiny_config(tmp_path / "run", {"parallel.devices": 2, **changes})))
        environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(program_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return Launched(["distill", "--config", str(config)], list(holds), tmp_path / "signs", environment)

    return start


def compile_all(launch: Launch, *holds: Delay, **changes: object) -> None:
    """Bring the programs of a run into the cache."""
    with launch(*holds, **changes) as run:
        run.wait_for_signs()


@pytest.mark.fault("a process is killed")
@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_a_step(killed: int, launch: Launch) -> None:
    with launch(GOES_ON, GOES_ON) as run:
        run.wait_for_signs()
        run.send(signal.SIGKILL, killed)
        (end,) = run.ends(1 - killed)
    assert end.status != 0
    assert end.seconds < LIMIT_SECONDS
    if killed:
        assert "distil-jax: fault: a computation of all processes failed" in end.err
        assert "Traceback" not in end.err
    else:  # the others depend on the first one's service: JAX ends them at once
        assert "another task died" in end.err


@pytest.mark.fault("a process is killed")
@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_killed_while_the_other_computes_nothing(killed: int, launch: Launch) -> None:
    with launch(Delay("batch", 8, ENDLESS), Delay("batch", 8, ENDLESS)) as run:
        run.wait_for_signs()
        run.send(signal.SIGKILL, killed)
        (end,) = run.ends(1 - killed)
    assert end.status != 0
    assert end.seconds < LIMIT_SECONDS
    if killed:
        assert end.err.strip() == (
            "distil-jax: fault: process 1 of 0 to 1 gave no heartbeat for 12 seconds: it died, or was stopped"
        )


@pytest.mark.fault("a process raises")
@pytest.mark.parametrize("raising", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_an_exception_in_one(raising: int, launch: Launch) -> None:
    holds = [Delay(), Delay()]
    holds[raising] = Delay("raise", 5)
    with launch(*holds) as run:
        run.wait_for_signs(raising)
        ends = run.ends()
    assert [end.status for end in ends] == [1, 1]
    assert max(end.seconds for end in ends) < LIMIT_SECONDS
    assert "ValueError: something is wrong" in ends[raising].err
    other = ends[1 - raising].err
    assert f"process {raising} of 0 to 1 failed (internal error: ValueError: something is wrong)" in other
    assert "Traceback" not in other


@pytest.mark.fault("a process sleeps forever")
@pytest.mark.parametrize("asleep", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_that_sleeps_forever(asleep: int, launch: Launch) -> None:
    holds = [GOES_ON, GOES_ON]
    compile_all(launch, *holds)
    holds[asleep] = Delay("batch", 8, ENDLESS)
    with launch(*holds, **{"parallel.stall_minutes": STALL_MINUTES}) as run:
        run.wait_for_signs(asleep)
        ends = run.ends()
    for end in ends:
        assert end.status == 1
        assert end.seconds < 60 * STALL_MINUTES + LIMIT_SECONDS
        assert f"nothing was finished for {STALL_MINUTES:g} minutes (parallel.stall_minutes)" in end.err
        assert "in _train" in end.err, "the stacks of all threads, the main one's among them"
        assert "Thread 0x" in end.err
    assert "in reached" in ends[asleep].err, "where it sleeps"


@pytest.mark.fault("a process is stopped (SIGSTOP)")
@pytest.mark.parametrize("stopped", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_that_is_stopped(stopped: int, launch: Launch) -> None:
    with launch(GOES_ON, GOES_ON) as run:
        run.wait_for_signs()
        run.send(signal.SIGSTOP, stopped)
        (end,) = run.ends(1 - stopped)
    assert end.status != 0
    assert end.seconds < LIMIT_SECONDS
    if stopped:
        assert "process 1 of 0 to 1 gave no heartbeat for 12 seconds: it died, or was stopped" in end.err
    else:
        assert "another task died" in end.err


@pytest.mark.fault("a process sleeps forever")
@pytest.mark.slow
def test_one_process_alone_that_sleeps_forever(launch: Launch) -> None:
    settings = {"parallel.stall_minutes": STALL_MINUTES, "parallel.devices": 1}
    compile_all(launch, GOES_ON, **{"parallel.devices": 1})
    with launch(Delay("batch", 8, ENDLESS), **settings) as run:
        run.wait_for_signs()
        (end,) = run.ends()
    assert end.status == 1
    assert end.seconds < 60 * STALL_MINUTES + LIMIT_SECONDS
    assert "in reached" in end.err
