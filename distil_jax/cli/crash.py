"""The report of an unexpected exception: one screen, with the whole traceback in a file."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import shlex
import socket
import tempfile
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from distil_jax.errors import one_line

_COLUMNS = 100
_FRAMES = 6  # of distil_jax, the innermost ones; the very last frame is shown besides
_RUN_NOTE = "run folder: "
_PACKAGE = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def working_on(run: str) -> Iterator[None]:
    """Add the run's folder as a note to every exception of the block."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{_RUN_NOTE}{run}")
        raise


def crash_report(error: BaseException, arguments: Sequence[str]) -> str:
    """At most 24 lines of 100 columns on an exception. They name a file with the whole traceback.

    That file is in the run's folder if there is one, else in the system's temporary folder.
    """
    run = _run_of(error)
    command = f"distil-jax {shlex.join(arguments)}"
    parts = [("doing", command, 2), *_about_run(run), *_frames(error), ("with", _versions(), 3)]
    path = _write_traceback(error, command, run)
    parts.append(("file", f"{path} has the whole traceback" if path else "none could be written", 2))
    parts.append(("next", _advice(error, run), 3))
    lines = _wrapped("distil-jax: internal error: ", f"{type(error).__name__}: {error}", 3)
    for label, text, most in parts:
        lines += _wrapped(f"  {label:<6}", text, most)
    return "\n".join(lines)


def _run_of(error: BaseException) -> Path | None:
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(_RUN_NOTE)]
    return Path(notes[0].removeprefix(_RUN_NOTE)) if notes else None


def _about_run(run: Path | None) -> list[tuple[str, str, int]]:
    if run is None:
        return []
    from distil_jax.runs import read_metrics

    rows, saved = [], []
    with contextlib.suppress(OSError):
        rows = [row["step"] for row in read_metrics(run, "train")]
        saved = [int(entry.name) for entry in (run / "checkpoints").iterdir() if entry.name.isdecimal()]
    at = f"last metrics of step {rows[-1]}" if rows else "no step measured yet"
    kept = f"newest checkpoint of step {max(saved)}" if saved else "no checkpoint yet"
    return [("run", f"{run}: {at}, {kept}", 2)]


def _frames(error: BaseException) -> list[tuple[str, str, int]]:
    """The last frames inside this package, and the very last one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)][-_FRAMES:]
    if frames and frames[-1] not in own:
        own.append(frames[-1])
    shown = []
    for number, frame in enumerate(own):
        place = Path(frame.filename)
        name = place.relative_to(_PACKAGE.parent) if place.is_relative_to(_PACKAGE) else Path(*place.parts[-3:])
        shown.append(("at" if number == 0 else "", f"{name}:{frame.lineno} {frame.name}: {frame.line or ''}", 1))
    return shown


def _versions() -> str:
    from distil_jax.runs import versions

    return f"{', '.join(f'{name} {version}' for name, version in versions().items())} on {platform.platform()}"


def _write_traceback(error: BaseException, command: str, run: Path | None) -> Path | None:
    now = datetime.datetime.now()
    name = f"crash-{now:%Y%m%d-%H%M%S}-{one_line(socket.gethostname(), 60)}-{os.getpid()}.txt"
    text = f"{command}\n{_versions()}\n\n{''.join(traceback.format_exception(error))}"
    folders = [Path(tempfile.gettempdir())]
    if run is not None and (run / "config.toml").is_file():
        folders.insert(0, run)
    for folder in folders:
        with contextlib.suppress(OSError):
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            return folder / name
    return None


def _advice(error: BaseException, run: Path | None) -> str:
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return (
            "out of memory: lower training.micro_batch_size (results stay the same) or evaluation.batch_size, then "
            "run the same command again"
        )
    again = "the same command continues from the newest checkpoint; if" if run is not None else "if"
    return (
        f"this is a bug or a fault of the machine, not your mistake; {again} it happens again, report it with the file"
    )


def _wrapped(label: str, text: str, most: int) -> list[str]:
    """At most `most` lines, indented under the label."""
    width = _COLUMNS - len(label)
    text = one_line(text, width * most)
    lines = textwrap.wrap(text, width, max_lines=most, placeholder="...", break_on_hyphens=False)
    return [f"{label if number == 0 else ' ' * len(label)}{line}".rstrip() for number, line in enumerate(lines or [""])]
