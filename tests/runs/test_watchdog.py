"""The thread beside the main one: when to stop, what counts as a stall, who counts as dead."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distil_jax.config import Config, Run
from distil_jax.errors import PreemptedError
from distil_jax.runs import coordination, watchdog
from distil_jax.runs.preemption import Preemption
from distil_jax.runs.watchdog import LOOK_SECONDS, SILENT_SECONDS, Heartbeat, StallTimer, Watchdog


class Cluster:
    """Two processes in one: what they tell each other is in a dictionary, and one of them is at work at a time."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.process = 0

    def publish(self, name: str, text: str, *, overwrite: bool = False) -> None:
        if overwrite or name not in self.texts:
            self.texts[name] = text

    def read_all(self, folder: str) -> dict[str, str]:
        return {name: text for name, text in self.texts.items() if name.startswith(f"{folder}/")}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    monkeypatch.setattr(coordination, "is_distributed", lambda: True)
    monkeypatch.setattr(coordination, "publish", found.publish)
    monkeypatch.setattr(coordination, "read_all", found.read_all)
    monkeypatch.setattr(coordination.jax, "process_index", lambda: found.process)
    monkeypatch.setattr(coordination.jax, "process_count", lambda: 2)
    return found


@pytest.mark.parametrize("told", [0, 1])
def test_processes_agree_to_stop_where_the_first_of_them_is(cluster: Cluster, told: int) -> None:
    """The one that is told first is behind, or ahead."""
    both = [Preemption(), Preemption()]
    for process, done in enumerate((5, 3)):
        cluster.process = process
        for _ in range(done):
            both[process].go()
    cluster.process = told
    both[told].notice(signal.SIGTERM)
    both[told].look()
    assert coordination.STOPPED in cluster.texts
    cluster.process = 1 - told
    both[1 - told].notice(signal.SIGTERM)
    for process in (0, 1):
        cluster.process = process
        both[process].look()
    saved = []
    for process, more in enumerate((0, 2)):
        cluster.process = process
        for _ in range(more):
            both[process].go()
        with pytest.raises(PreemptedError), both[process].interruptible(lambda: saved.append(1) or "saved"):
            both[process].go()
        assert both[process].done == 5
    assert saved == [1, 1]


def test_a_process_waits_until_all_have_said_how_far_they_are(cluster: Cluster) -> None:
    one = Preemption()
    one.go()
    one.notice(signal.SIGTERM)
    ended = threading.Event()

    def go_on() -> None:
        one.go()
        ended.set()

    threading.Thread(target=go_on, daemon=True).start()
    one.look()
    assert not ended.wait(0.2)
    cluster.publish("stops/1", "2")
    one.look()
    assert ended.wait(10)


def test_a_signal_stops_the_run_at_its_next_computation_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    saved: list[str] = []

    def run() -> None:
        with Watchdog(Config()) as on_guard:
            on_guard.go()
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(2000):
                with on_guard.preemption.interruptible(lambda: saved.append("state") or "saved"):
                    time.sleep(0.01)
                    on_guard.go()

    with pytest.raises(PreemptedError) as told:
        run()
    assert told.value.code == 143
    assert saved == ["state"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_was_told_to_end_while_it_finished_does_not_begin_anything_else() -> None:
    def run() -> None:
        with Watchdog(Config()) as on_guard:
            on_guard.go()
            os.kill(os.getpid(), signal.SIGTERM)
            while not on_guard.preemption.noticed:
                time.sleep(0.01)

    with pytest.raises(PreemptedError):
        run()


def test_a_watch_of_another_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run() -> None:
        with Watchdog(Config()) as on_guard:
            on_guard.go()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_only_time_without_anything_finished_is_a_stall() -> None:
    stall = StallTimer(minutes=1)
    assert not stall.check(59)
    stall.progressed("step 7")
    assert not stall.check(59)
    complaint = stall.check(1)
    assert "nothing was finished for 1 minutes (parallel.stall_minutes)" in complaint
    assert "the last thing was step 7" in complaint
    assert not StallTimer(minutes=0).check(1e9)


def test_who_gives_no_sign_any_more_is_dead(cluster: Cluster) -> None:
    heartbeat, looks = Heartbeat(), round(SILENT_SECONDS / LOOK_SECONDS)
    cluster.texts["heartbeats/1"] = "1"
    for number in range(3 * looks):
        cluster.texts["heartbeats/1"] = str(number)
        assert not heartbeat.check()
    mismatches = [heartbeat.check() for _ in range(looks + 1)]
    assert [bool(complaint) for complaint in mismatches] == [False] * (looks - 1) + [True] * 2
    assert "process 1 of 0 to 1 gave no heartbeat for 12 seconds" in mismatches[-1]


def test_who_has_finished_needs_no_signs(cluster: Cluster) -> None:
    heartbeat = Heartbeat()
    cluster.process = 1
    Heartbeat.end()
    cluster.process = 0
    assert not any(heartbeat.check() for _ in range(1000))


def test_only_the_first_process_listens_to_the_others(cluster: Cluster) -> None:
    cluster.process = 1
    heartbeat = Heartbeat()
    cluster.texts["heartbeats/0"] = "1"
    assert not any(heartbeat.check() for _ in range(1000))
    assert cluster.texts["heartbeats/1"] == "1000"


def test_looks_are_frequent_enough_for_what_is_told_at_the_end() -> None:
    assert watchdog.LOOK_SECONDS + watchdog.GRACE_SECONDS < coordination.DELIVERY_SECONDS


ORPHAN = """
import sys, time
from distil_jax.config import Config, Parallel
from distil_jax.runs.watchdog import Watchdog
with Watchdog(Config(parallel=Parallel(stall_minutes=0.01))) as on_guard:
    on_guard.go()
    print("ready", flush=True)
    time.sleep(600)
"""


def test_it_ends_also_where_nobody_reads_what_it_says() -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", ORPHAN], stderr=writer, stdout=subprocess.PIPE)
    os.close(writer)
    os.close(reader)
    try:
        assert process.wait(timeout=300) == 1
    finally:
        process.kill()
        process.communicate()


def test_processes_have_computed_together_before_the_first_is_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a folder that another host may still have: JAX gives the first computation of all half a minute."""
    happened: list[str] = []
    monkeypatch.setattr(coordination, "broadcast", lambda text: happened.append("broadcast") or text)

    @contextlib.contextmanager
    def folder() -> Iterator[None]:
        happened.append("in")
        yield

    with coordination.first_process_in(folder):
        assert happened == ["broadcast", "in", "broadcast"]


def test_ctrl_c_saves_and_says_how_to_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").touch()
    before, saved = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with Watchdog(Config(run=Run(output=str(tmp_path)))) as watchdog_:
            watchdog_.go()
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(2000):
                with watchdog_.preemption.interruptible(lambda: saved.append("state") or "saved step 7"):
                    time.sleep(0.01)
                    watchdog_.go()

    with pytest.raises(PreemptedError) as stopped:
        run()
    assert stopped.value.code == 130
    assert saved == ["state"]
    assert signal.getsignal(signal.SIGINT) == before
    first, last = capsys.readouterr().err.splitlines()
    assert "Ctrl-C again" in first
    assert "saved step 7" in last and f"distil-jax resume {tmp_path}" in last


TWICE = """
import os, signal, time
from distil_jax.config import Config, Run
from distil_jax.runs.watchdog import Watchdog
with Watchdog(Config()) as watchdog:
    watchdog.go()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    time.sleep(600)
"""


def test_ctrl_c_twice_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


def test_a_background_command_ignores_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Watchdog(Config()) as watchdog_:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(3 * LOOK_SECONDS)
            assert not watchdog_.preemption.noticed
    finally:
        signal.signal(signal.SIGINT, before)
