"""A lock on a folder: one process at a time writes into it, on this machine and on others that share its storage.

The file `run.lock` is locked by flock, which ends with its owner however that ends. It names the owner: host, process
and when that process started. Not every shared storage passes locks on to other hosts, so the owner also touches the
file every `HEARTBEAT_SECONDS`. A lock of another host is taken over after `WATCH_SECONDS` without a touch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from distil_jax.errors import FaultError, UserError, one_line, writing

LOCK_FILE = "run.lock"
HEARTBEAT_SECONDS = 20.0
WATCH_SECONDS = 120.0  # three heartbeats and a minute: network file systems may show a touch that much late
STALE_SECONDS = 300.0  # without a heartbeat, after which the lock is taken over at once
LOOK_SECONDS = 0.5
UNKNOWN = "unknown"
_NAMING_SECONDS = 1.0  # within which an owner has written its name into the lock
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_LOG = logging.getLogger("distil_jax")
_held: dict[Path, TextIO] = {}  # locks of this process by folder, for `release_all`


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process: its host, its number, and when it started, since numbers are used again."""

    host: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{one_line(self.host, 80)} process {self.pid}"

    def is_alive(self) -> bool:
        """Whether it still runs; only valid on its own host."""
        if self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except PermissionError:
            pass  # it belongs to another user
        except (ProcessLookupError, OverflowError):
            return False
        return _start_of(self.pid) in (self.started, UNKNOWN)


@contextlib.contextmanager
def lock_folder(folder: Path, name: str = "run.output") -> Iterator[None]:
    """Own the existing `folder` for the length of the block.

    The lock of a killed process is taken over, that of another host after `WATCH_SECONDS` without a heartbeat; a line
    of the log says so.

    Args:
        folder: what is owned.
        name: the setting that names it, for messages.

    Raises:
        UserError: another process owns it, or it cannot be written.
    """
    with writing(f"{name} = {folder}"):
        lock = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    with lock:
        if owner := _other_owner(lock, folder):
            raise UserError(f"{name} = {folder}: in use by {owner}; wait for it or choose another folder")
        stop = threading.Event()
        with writing(f"{name} = {folder}", "free some space or choose another folder"):
            _write(lock, json.dumps(dataclasses.asdict(_this_process())))
        heartbeat = threading.Thread(target=_touch_regularly, args=(lock.fileno(), stop), name="run.lock", daemon=True)
        heartbeat.start()
        _held[folder] = lock
        try:
            yield
        finally:
            del _held[folder]
            stop.set()
            heartbeat.join()
            _clear(lock, folder)


def release_all() -> None:
    """Release all folders of this process, which is about to end without leaving their blocks.

    A process on another host that continues need not wait for heartbeats then.
    """
    for folder, lock in [*_held.items()]:
        with contextlib.suppress(ValueError):  # the main thread has just closed it
            _clear(lock, folder)


def _clear(lock: TextIO, folder: Path) -> None:
    with contextlib.suppress(OSError, FaultError):
        check_owner(folder)  # what another process has taken over stays
        _write(lock, "")


def check_owner(folder: Path) -> None:
    """Check that this process still owns `folder`.

    Raises:
        FaultError: it was deleted, or taken over by another host.
    """
    try:
        owner = _parsed((folder / LOCK_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise FaultError(
            f"{folder}: was deleted or moved during the run ({error.strerror}: {LOCK_FILE}); if it was moved, "
            "`distil-jax resume` continues it at its new place; the same command starts again from step 0"
        ) from None
    if owner != _this_process():
        raise FaultError(f"{folder}: was taken over by {owner or 'another process'}; this process ends")


def _other_owner(lock: TextIO, folder: Path) -> str:
    """The other process that owns the folder; "" where there is none and this one has the lock now."""
    deadline = time.monotonic() + _NAMING_SECONDS
    while not _locked(lock):
        if owner := _parsed(_read(lock)):
            return str(owner)
        if time.monotonic() > deadline:
            return "another process"
        time.sleep(0.05)
    owner = _parsed(_read(lock))
    if owner is None or owner == _this_process():
        return ""
    if owner.host != _this_process().host:
        return _watched(owner, lock, folder)
    if owner.is_alive():
        return str(owner)  # the storage has no locks
    _LOG.warning("%s: taken over from %s, which ended without releasing it", folder, owner)
    return ""


def _watched(owner: Owner, lock: TextIO, folder: Path) -> str:
    """The owner on another host if it touches the lock; "" if it does not, or has released the folder."""
    age = _seconds_since_heartbeat(lock, folder)
    if age < STALE_SECONDS:
        line = "%s: last heartbeat of %s %.0f s ago; waiting up to %.0f s for another one"
        _LOG.warning(line, folder, owner, age, WATCH_SECONDS)
        began, before = time.monotonic(), os.fstat(lock.fileno()).st_mtime_ns
        while (waited := time.monotonic() - began) < WATCH_SECONDS:
            time.sleep(LOOK_SECONDS)
            if os.fstat(lock.fileno()).st_mtime_ns != before:
                found = _parsed(_read(lock))
                return "" if found is None else f"{found}, last heartbeat just now"
        age += waited
    _LOG.warning("%s: taken over from %s, no heartbeat for %.0f s", folder, owner, age)
    return ""


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS  # then the name in the file has to suffice
    return True


def _read(lock: TextIO) -> str:
    return os.pread(lock.fileno(), 1 << 12, 0).decode(errors="replace")


def _write(lock: TextIO, text: str) -> None:
    os.ftruncate(lock.fileno(), 0)
    os.pwrite(lock.fileno(), text.encode(), 0)
    os.fsync(lock.fileno())


def _parsed(text: str) -> Owner | None:
    """The owner that a lock names; None where it is free, half-written or something else."""
    try:
        fields = json.loads(text)
        return Owner(str(fields["host"]), int(fields["pid"]), str(fields["started"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _this_process() -> Owner:
    return Owner(socket.gethostname(), os.getpid(), _start_of(os.getpid()))


def _start_of(pid: int) -> str:
    """When a process of this machine started, in the kernel's ticks since it booted; "ended", or UNKNOWN."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return UNKNOWN
    state, *fields = stat.rpartition(")")[2].split()  # the name in parentheses may hold anything
    return "ended" if state in "ZX" else fields[18]  # field 22 of proc_pid_stat(5)


def _seconds_since_heartbeat(lock: TextIO, folder: Path) -> float:
    """By the clock of the storage, since those of hosts differ."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"1")
            probe.flush()
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:
        now = time.time()
    return max(now - os.fstat(lock.fileno()).st_mtime, 0.0)


def _touch_regularly(lock: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(lock)
