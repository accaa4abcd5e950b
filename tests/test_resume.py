"""`distil-jax resume DIR`: the run continues as it was started, with nothing else given, wherever its folder is now."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.cli import main, runs
from distil_jax.config import Config, config_to_toml, with_overrides
from distil_jax.errors import UserError
from distil_jax.export import read_run
from distil_jax.runs import CONFIG_FILE, MANIFEST_FILE, STUDY_FILE, read_config, read_metrics, read_starts
from distil_jax.training import loop
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.distill import distill

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is up, and stays where it is."""
    monkeypatch.setattr("distil_jax.cli.training.start", lambda _: None)
    monkeypatch.chdir(Path.cwd())


@pytest.fixture(scope="module")
def stopped(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that `whole_run` is, interrupted after the checkpoint of step 6."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    finished = loop.StepLogger.finished

    def stop(self: Any, number: int, *arguments: Any) -> None:
        finished(self, number, *arguments)
        if number == 8:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StepLogger, "finished", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(tiny_config(folder))
    return folder


def assert_same(folder: Path, whole_run: Any) -> None:
    rows = [[(row["step"], row["kind"], row["metrics"]) for row in read_metrics(f)] for f in (folder, whole_run.folder)]
    assert rows[0] == rows[1]
    restored = Checkpoints(folder / "checkpoints", read_only=True).restore(12, whole_run.outcome.state)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, restored), whole_run.state)


def test_a_run_ends_like_one_that_was_not_interrupted(
    stopped: Path, whole_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here in another place, called by a relative path; and once more, when it is finished."""
    shutil.copytree(stopped, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "moved", "--logging.progress", "none"]) == 0
    assert f"{tmp_path / 'moved'}: finished, step 12" in capsys.readouterr().out
    assert_same(tmp_path / "moved", whole_run)
    assert [start["stage"] for start in read_starts(tmp_path / "moved")] == ["distill", "distill"]
    assert read_config(tmp_path / "moved").run.output == str(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "moved"]) == 0
    assert "was finished already, step 12" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["pretrain", "distill", "finetune", "study"])
def test_what_made_the_run_is_called_with_its_settings(
    stage: str, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths in them start where the run was started; only how it is executed can be changed."""
    folder, asked = tmp_path / "run", []
    folder.mkdir()
    name = STUDY_FILE if stage == "study" else CONFIG_FILE
    cluster = {"parallel.coordinator": "there:1", "parallel.num_processes": 2, "parallel.process_id": 0}
    settings = config_to_toml(with_overrides(read_config(stopped), cluster))
    (folder / name).write_text(settings)
    (tmp_path / "work").mkdir()
    (folder / MANIFEST_FILE).write_text(json.dumps({"starts": [{"stage": stage, "folder": str(tmp_path / "work")}]}))

    def note(*arguments: Any) -> int:
        asked.append((arguments, Path.cwd()))
        return 0

    for function in ("train", "finetune", "study"):
        monkeypatch.setattr(runs.training, function, note)
    assert main(["resume", str(folder), "--parallel.devices", "2"]) == 0
    ((arguments, place),) = asked
    (config,) = (argument for argument in arguments if isinstance(argument, Config))
    texts = [argument for argument in arguments if isinstance(argument, str)]
    command = f"distil-jax resume {folder} --parallel.devices 2"
    assert texts == {"finetune": [], "study": [command]}.get(stage, [stage])
    assert (config.run.output, config.training.steps, place) == (str(folder), 12, tmp_path / "work")
    parallel = config.parallel
    assert (parallel.devices, parallel.coordinator, parallel.num_processes, parallel.process_id) == (2, "", 0, -1)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["resume", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    return err


def test_what_cannot_be_resumed(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no folder given" in refused(capsys)
    assert "no folder given" in refused(capsys, "--parallel.devices", "2")
    assert "neither a run nor a study" in refused(capsys, tmp_path)
    assert "neither a run nor a study" in refused(capsys, tmp_path / "nowhere")
    assert "has no effect on `distil-jax resume DIR`" in refused(capsys, stopped, "--optimizer.beta1", "0.8")
    assert "did you mean --parallel.devices?" in refused(capsys, stopped, "--devices", "3")
    shutil.copy(stopped / CONFIG_FILE, tmp_path)
    assert "give the command that started it" in refused(capsys, tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(b"\xff\xfe")
    (tmp_path / MANIFEST_FILE).write_text('{"starts": [{"stage": "distill"}]}')
    assert str(tmp_path / CONFIG_FILE) in refused(capsys, tmp_path)


def as_format_2(folder: Path) -> None:
    """Makes a run what an earlier version would have left: copies in every checkpoint's metadata, no model.json."""
    contents = json.loads((folder / "model.json").read_text())
    (folder / "model.json").unlink()
    for step in (folder / "checkpoints").iterdir():
        metadata = json.loads((step / "metadata" / "metadata").read_text())
        old = {"format": 2, "model": contents["model"], "evaluations": {}, "steps": metadata["steps"]}
        (step / "metadata" / "metadata").write_text(json.dumps(old))
        hashes = json.loads((step / "hashes" / "metadata").read_text())
        hashes["metadata"]["metadata"] = hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
        (step / "hashes" / "metadata").write_text(json.dumps(hashes))


def test_a_run_of_an_older_version_is_refused_or_migrated(
    stopped: Path, whole_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, run in (("stopped", stopped), ("whole", whole_run.folder)):
        folder = tmp_path / name
        shutil.copytree(run, folder)
        as_format_2(folder)
        with pytest.raises(UserError, match=f"model.json: missing.*resume {folder}.*migrate"):
            read_run(folder)
        assert "checkpoint.migrate" in refused(capsys, folder)
        assert main(["resume", str(folder), "--checkpoint.migrate"]) == 0
        capsys.readouterr()
        if name == "stopped":
            assert_same(folder, whole_run)
        trained = read_run(folder)
        assert trained.step == 12
        assert trained.metadata["evaluations"] == whole_run.outcome.evaluations


def test_reading_a_run_refuses_settings_that_were_changed(whole_run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run.folder, folder)
    config = (folder / CONFIG_FILE).read_text()
    assert "temperature = 2.0" in config
    (folder / CONFIG_FILE).write_text(config.replace("temperature = 2.0", "temperature = 3.0", 1))
    with pytest.raises(UserError, match=f"{folder / CONFIG_FILE}.*SHA-256"):
        read_run(folder)


def test_a_finished_run_can_be_given_more_steps(
    whole_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The schedule of the new length from there on; fewer steps, or other settings, are another run."""
    folder = tmp_path / "run"
    shutil.copytree(whole_run.folder, folder)
    assert main(["resume", str(folder), "--training.steps", "15"]) == 0
    assert "finished, step 15" in capsys.readouterr().out
    (line,) = [message for message in caplog.messages if "extended" in message]
    assert "training.steps" in line and "12" in line and "15" in line
    rows = {row["step"]: row["metrics"] for row in read_metrics(folder, "train")}
    assert sorted(rows) == list(range(1, 16))
    peak, warmup = whole_run.config.optimizer.learning_rate, 0.25 * 15
    assert rows[13]["learning_rate"] == pytest.approx(peak * (15 - 12) / (15 - round(warmup)), rel=0.1)
    assert read_run(folder).step == 15
    assert main(["resume", str(folder)]) == 0
    assert "was finished already, step 15" in capsys.readouterr().out
    assert "training.steps: was 15, is 12" in refused(capsys, folder, "--training.steps", "12")
    assert "batch-size" in refused(capsys, folder, "--training.steps", "20", "--training.batch-size", "16")


def test_the_same_command_with_more_steps_says_how_to_extend(whole_run: Any) -> None:
    longer = with_overrides(whole_run.config, {"training.steps": 15})
    with pytest.raises(UserError, match=r"training.steps: was 12, is 15.*--training.extend"):
        distill(longer)


def test_resume_runs_under_the_settings_of_the_first_start(
    stopped: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    """malloc's and XLA's, so that the compiled step is found; called by a relative path from another folder."""
    shutil.copytree(stopped, tmp_path / "stopped")
    (tmp_path / "config.toml").write_text(config_to_toml(tiny_config(tmp_path / "first")))
    programs = tmp_path / "programs"
    left_out = ("MALLOC_", "XLA_", "DISTIL_JAX_", "JAX_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(programs)}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def run(*arguments: str) -> set[str]:
        command = [sys.executable, "-m", "distil_jax.cli", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return {path.name for path in programs.iterdir() if "step" in path.name and path.name.endswith("cache")}

    compiled = run("distill", "--config", "config.toml")
    assert compiled
    assert run("resume", "stopped") == compiled
    first, second = (read_starts(tmp_path / name)[-1]["environment"] for name in ("first", "stopped"))
    assert first == second and first["MALLOC_ARENA_MAX"] == "1"
