"""Two runs in one folder: the second is refused at once and told by whom; what a dead owner left is taken over."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distil_jax.config import Config, config_to_toml
from distil_jax.errors import FaultError, UserError
from distil_jax.runs import check_owner, lock, lock_folder
from distil_jax.runs.lock import LOCK_FILE, STALE_SECONDS, Owner

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from pathlib import Path
from distil_jax.runs import lock
{before}
with lock.lock_folder(Path(sys.argv[1])):
    print("mine", flush=True)
    input()
"""
ELSEWHERE = "lock._this_process = lambda: lock.Owner('elsewhere', 17, '12345')\nlock.HEARTBEAT_SECONDS = 0.05"
PREEMPTED = """
from distil_jax.runs import preemption
with lock.lock_folder(Path(sys.argv[1])):
    preemption.exit_now(143)
"""
NO_FLOCK = "def none(*_): raise OSError(__import__('errno').ENOLCK, 'no locks here')\nlock.fcntl.flock = none"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function (before="") that starts a process which owns tmp_path, after some lines of Python."""
    made: list[subprocess.Popen[str]] = []

    def begin(before: str = "") -> subprocess.Popen[str]:
        code = HOLDER.format(before=before)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code, str(tmp_path)]
        made.append(subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True))
        stdout = made[-1].stdout
        assert stdout is not None
        assert stdout.readline() == "mine\n"
        return made[-1]

    yield begin
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners on other hosts are watched for a moment only."""
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.2)
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.01)


def refused(folder: Path) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as caught, lock_folder(folder):
        raise AssertionError("the folder was given away")
    assert time.monotonic() - began < 5
    return str(caught.value)


def forge(folder: Path, owner: Owner, age: float = 0.0) -> None:
    """A lock as `owner` would have left it, last touched `age` seconds ago."""
    (folder / LOCK_FILE).write_text(json.dumps(dataclasses.asdict(owner)))
    now = time.time()
    os.utime(folder / LOCK_FILE, (now - age, now - age))


def taken_over(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """The line that is said when the folder is taken over at once."""
    (line,) = said_on_the_way(folder, caplog)
    return line


def said_on_the_way(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines that are said until the folder is owned."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="distil_jax"), lock_folder(folder):
        check_owner(folder)
    return caplog.messages


@pytest.mark.fault("two runs in one folder")
@pytest.mark.parametrize("before", ["", NO_FLOCK], ids=["flock", "storage without locks"])
def test_the_second_is_told_host_and_process_of_the_first(before: str, start: Start, tmp_path: Path) -> None:
    process = start(before)
    line = refused(tmp_path)
    assert f"{tmp_path}: in use by {socket.gethostname()} process {process.pid}; wait for it" in line
    assert "\n" not in line
    process.communicate("\n")
    with lock_folder(tmp_path):  # it has ended
        pass


@pytest.mark.fault("stale lock")
@pytest.mark.parametrize("before", ["", NO_FLOCK], ids=["flock", "storage without locks"])
def test_what_a_killed_owner_left_is_taken_over(
    before: str, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = start(before)
    process.send_signal(signal.SIGKILL)
    process.wait()
    line = taken_over(tmp_path, caplog)
    assert f"taken over from {socket.gethostname()} process {process.pid}, which ended without releasing it" in line


@pytest.mark.fault("stale lock")
def test_an_owner_that_nobody_has_waited_for_is_dead_too(start: Start, tmp_path: Path) -> None:
    """As in a container whose first process does not wait for its children."""
    process = start(NO_FLOCK)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while " Z " not in Path(f"/proc/{process.pid}/stat").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    with lock_folder(tmp_path):
        pass


@pytest.mark.fault("stale lock")
def test_a_number_that_another_process_has_now(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The owner is dead, and its number has been given to somebody else: here to this test's parent."""
    forge(tmp_path, Owner(socket.gethostname(), os.getppid(), "12345"))
    assert f"process {os.getppid()}, which ended" in taken_over(tmp_path, caplog)


@pytest.mark.fault("stale lock")
@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**70])
def test_a_number_that_no_process_has(pid: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forge(tmp_path, Owner(socket.gethostname(), pid, "12345"))
    assert f"process {pid}, which ended" in taken_over(tmp_path, caplog)


@pytest.mark.fault("stale lock")
def test_another_host_is_believed_while_it_is_heard_of(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(f"{NO_FLOCK}\n{ELSEWHERE}")
    with caplog.at_level(logging.WARNING, logger="distil_jax"):
        assert f"{tmp_path}: in use by elsewhere process 17" in refused(tmp_path)
    (line,) = caplog.messages
    assert "up to 120 s" in line


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("age", "shown"), [(60, "6"), (-3600, "0")], ids=["just gone", "its clock is ahead"])
def test_another_host_that_has_gone_is_waited_for_and_taken_over_from(
    age: float, shown: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that was killed and starts again on another host."""
    forge(tmp_path, Owner("elsewhere", 17, "12345"), age=age)
    first, second = said_on_the_way(tmp_path, caplog)
    assert f"{tmp_path}: last heartbeat of elsewhere process 17 {shown}" in first
    assert f"{tmp_path}: taken over from elsewhere process 17, no heartbeat for {shown}" in second


def test_another_host_that_was_not_heard_of_for_long_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forge(tmp_path, Owner("elsewhere", 17, "12345"), age=STALE_SECONDS + 60)
    assert "taken over from elsewhere process 17, no heartbeat for 36" in taken_over(tmp_path, caplog)


def test_another_host_that_ends_while_it_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forge(tmp_path, Owner("elsewhere", 17, "12345"))
    end = threading.Timer(0.3, (tmp_path / LOCK_FILE).write_text, [""])
    end.start()
    began = time.monotonic()
    (line,) = said_on_the_way(tmp_path, caplog)
    assert "waiting up to 120 s" in line
    assert time.monotonic() - began < 5
    end.join()


def test_a_preempted_process_gives_its_folder_up(tmp_path: Path) -> None:
    """Where the watching thread ends it, no block is left: another host would have to wait for its heartbeat."""
    code = HOLDER.partition("{before}")[0] + PREEMPTED
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    assert (tmp_path / LOCK_FILE).read_text() == ""


def test_an_owner_is_heard_of_while_it_does_nothing(start: Start, tmp_path: Path) -> None:
    start("lock.HEARTBEAT_SECONDS = 0.05")
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    deadline = time.monotonic() + 30
    while (tmp_path / LOCK_FILE).stat().st_mtime < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.time() - (tmp_path / LOCK_FILE).stat().st_mtime < 30


@pytest.mark.fault("stale lock")
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "oak process 17", '{"host": "x"}', '{"host":1,"pid":"a"}', "\0"]
)
def test_a_lock_that_names_nobody_is_free(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    with caplog.at_level(logging.WARNING, logger="distil_jax"), lock_folder(tmp_path):
        check_owner(tmp_path)
    assert caplog.messages == []
    assert (tmp_path / LOCK_FILE).read_text() == ""  # closed in the usual way


@pytest.mark.usefixtures("impatient")
def test_hostile_names_stay_on_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forge(tmp_path, Owner("bad\nhost\x1b[2J" + "x" * 2000, 17, ""))
    lines = said_on_the_way(tmp_path, caplog)
    assert len(lines) == 2
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


@pytest.mark.fault("two runs in one folder")
def test_an_owner_notices_that_it_is_none_any_more(tmp_path: Path) -> None:
    """Another host took over while this one was suspended: two writers would destroy the run."""
    with lock_folder(tmp_path):
        check_owner(tmp_path)
        forge(tmp_path, Owner("elsewhere", 17, "12345"))
        with pytest.raises(FaultError, match="was taken over by elsewhere process 17"):
            check_owner(tmp_path)
    assert "elsewhere" in (tmp_path / LOCK_FILE).read_text()


def test_an_owner_notices_that_its_folder_is_gone(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        (tmp_path / LOCK_FILE).unlink()
        with pytest.raises(FaultError, match=f"{tmp_path}.*No such file or directory.*{LOCK_FILE}"):
            check_owner(tmp_path)


@pytest.mark.usefixtures("impatient")
def test_times_are_those_of_the_storage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's clock is an hour ahead of that of the files."""
    forge(tmp_path, Owner("elsewhere", 17, "12345"), age=10)
    ahead = time.time() + 3600
    monkeypatch.setattr(lock.time, "time", lambda: ahead)
    assert "last heartbeat of elsewhere process 17 1" in said_on_the_way(tmp_path, caplog)[0]


@pytest.mark.fault("two runs in one folder")
def test_two_studies_in_one_folder(start: Start, tmp_path: Path) -> None:
    """Each of their runs has a lock too, but they would write one report."""
    from distil_jax.config import with_overrides
    from distil_jax.evaluation.study import run_study

    process = start()
    config = with_overrides(
        Config(), {"run.output": str(tmp_path), "model.initial": "nowhere", "task.name": "cola,rte"}
    )
    with pytest.raises(UserError, match=f"in use by .* process {process.pid}"):
        run_study(config)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_two_commands_on_one_folder(tiny_config: Callable[..., Config], program_cache: Path, tmp_path: Path) -> None:
    """The second ends with status 2 in a few seconds after its start-up; the first is not disturbed."""
    folder = tmp_path / "run"
    (tmp_path / "config.toml").write_text(config_to_toml(tiny_config(folder)))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "DISTIL_JAX_RESTART": "0",
        "JAX_COMPILATION_CACHE_DIR": str(program_cache),
    }
    command = [sys.executable, "-m", "distil_jax.cli", "distill", "--config", str(tmp_path / "config.toml")]
    first = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)
    try:
        while first.poll() is None and not (folder / "metrics.jsonl").exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        first.send_signal(signal.SIGCONT)
        _, err = first.communicate(timeout=300)
    finally:
        first.kill()
    assert (second.returncode, len(second.stderr.splitlines())) == (2, 1), second.stderr
    assert f"in use by {socket.gethostname()} process {first.pid}" in second.stderr
    assert first.returncode == 0, err
