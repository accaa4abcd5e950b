"""A crash fits one screen, names what was being done, and keeps the whole traceback in a file; exit statuses."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from distil_jax import cli
from distil_jax.cli.crash import crash_report, working_on
from distil_jax.errors import FaultError, PreemptedError, UserError

LINES, COLUMNS = 24, 100


def broken(error: BaseException) -> Any:
    def run(_: object) -> int:
        raise error

    return cli.Command("", run)


def end(error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setitem(cli.COMMANDS, "export", broken(error))
    status = cli.main(["export", "run", "--output", "model"])
    return status, capsys.readouterr().err


def check_screen(text: str) -> list[str]:
    lines = text.splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    assert "Traceback (most recent call last)" not in text
    return lines


def file_of(text: str) -> Path:
    """The file that a report names, whose lines may be broken anywhere."""
    part = text.split("\n  file  ")[1].split("\n  next")[0]
    return Path("".join(line.strip() for line in part.splitlines()).removesuffix("has the whole traceback").strip())


def test_exit_statuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert end(UserError("mine"), monkeypatch, capsys) == (2, "distil-jax: error: mine\n")
    assert end(FaultError("nobody's"), monkeypatch, capsys) == (1, "distil-jax: fault: nobody's\n")
    assert end(KeyboardInterrupt(), monkeypatch, capsys)[0] == 130
    assert end(PreemptedError(), monkeypatch, capsys)[0] == 143
    status, err = end(ZeroDivisionError("a bug"), monkeypatch, capsys)
    assert status == 1
    assert "distil-jax: internal error: ZeroDivisionError: a bug" in check_screen(err)[0]


def test_storage_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, "x", "/disk/model/README.md")
    line = (
        "distil-jax: fault: /disk/model/README.md: No space left on device; make room, then give the same command again"
    )
    assert end(full, monkeypatch, capsys) == (1, f"{line}\n")


def test_a_crash_in_a_run(tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """In the seventh step, with the checkpoint of the sixth on disk."""
    from distil_jax.config import config_to_toml
    from distil_jax.runs import MetricsWriter

    write, folder = MetricsWriter.write, tmp_path / "run"

    def break_down(self: Any, step: int, *arguments: Any, **more: Any) -> None:
        if step == 7:
            raise RuntimeError("the seventh\nstep " + "is odd " * 200)
        write(self, step, *arguments, **more)

    monkeypatch.setattr(MetricsWriter, "write", break_down)
    monkeypatch.setattr("distil_jax.cli.training.start", lambda _: None)
    (tmp_path / "config.toml").write_text(config_to_toml(tiny_config(folder)))
    arguments = ["distill", "--config", str(tmp_path / "config.toml")]
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    lines = check_screen(err)
    words = "".join(err.split())  # wherever the lines are broken
    assert lines[0].startswith("distil-jax: internal error: RuntimeError: the seventh\\nstep is odd")
    assert f"doingdistil-jaxdistill--config{tmp_path}" in words
    assert "lastmetricsofstep6,newestcheckpointofstep6" in words
    assert "distil_jax/training/loop.py:" in words and "break_down" in words
    assert "python3." in words and "jax0." in words
    file = file_of(err)
    assert file.parent == folder
    text = file.read_text()
    assert "Traceback (most recent call last)" in text and "is odd " * 200 in text
    assert cli.main(arguments) == 1  # the file is not in the way of the next start


def test_out_of_memory_has_advice_of_its_own() -> None:
    assert "lower training.micro_batch_size" in crash_report(MemoryError(), ["distill"])
    assert "micro_batch_size" in crash_report(RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), ["distill"])
    assert "micro_batch_size" not in crash_report(RuntimeError("other"), ["distill"])


@pytest.mark.parametrize("message", ["", "x" * 10**6, "a\nb\tc\x1b[2J\x00", "\udcff", "é" * 500])
def test_any_message_fits(message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def deep(number: int) -> None:
        if number:
            deep(number - 1)
        raise ValueError(message)

    with pytest.raises(ValueError) as caught, working_on("/nowhere/" + "long" * 100):  # noqa: PT011
        deep(50)
    report = crash_report(caught.value, ["distill", *["--corpus.folder", "/a b" * 100] * 20])
    check_screen(report)
    assert all(line.isprintable() for line in report.splitlines())
    assert file_of(report).parent == tmp_path


def test_nowhere_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    report = crash_report(ValueError("x"), ["distill"])
    assert "none could be written" in report
    check_screen(report)
