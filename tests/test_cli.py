"""The command line: help without heavy imports, and every mistake of a user as one line, with nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax import __version__
from distil_jax.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
COMPILED: list[str] = []
Refused = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def count_compilations() -> None:
    def note(event: str, duration_secs: float, **_: Any) -> None:
        if "backend_compile" in event:
            COMPILED.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Runs a command line that must be refused in one line, before compiling anything or writing below tmp_path."""

    def run(*arguments: str | Path) -> str:
        before, compiled = sorted(tmp_path.rglob("*")), len(COMPILED)
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1), err
        assert err.startswith("distil-jax: error: ")
        assert sorted(tmp_path.rglob("*")) == before
        assert len(COMPILED) == compiled
        return err

    return run


def test_compilations_are_noticed() -> None:
    before = len(COMPILED)
    jax.jit(lambda x: x * 3 + 1)(np.arange(7))
    assert len(COMPILED) > before


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from distil_jax.cli import COMMANDS, main
heavy = "jax flax optax orbax transformers datasets grain torch tokenizers tensorboardX".split()
def check(where):
    found = [name for name in heavy if name in sys.modules]
    assert not found, (where, found)
assert main(["--help"]) == 0
assert main(["--version"]) == 0
check("overview")
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit as end:
        assert end.code == 0, command
    check(command)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
        assert f"usage: distil-jax {command} " in done.stdout
    assert f"distil-jax {__version__}" in done.stdout


def test_a_mistake_ends_the_program_with_status_2_and_without_traceback() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "distil_jax.cli", "distil"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "distil-jax: error: there is no command 'distil'; did you mean distill? `distil-jax --help` lists them"
    ]


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: distil-jax [-v] COMMAND" in capsys.readouterr().out


def test_interruption_is_not_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "export", type(COMMANDS["export"])("", interrupt))
    assert main(["export"]) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("command", ["prepare", "pretrain", "distill"])
def test_misspelt_flags_and_keys(command: str, refused: Refused, tmp_path: Path) -> None:
    assert "did you mean --corpus.folder?" in refused(command, "--corpus.foldr", tmp_path / "x")
    (tmp_path / "typo.toml").write_text("[corpus]\nsequence_lenght = 64\n")
    line = refused(command, "--config", tmp_path / "typo.toml")
    assert "typo.toml" in line and "'corpus.sequence_length'" in line
    (tmp_path / "type.toml").write_text('[corpus]\nsequence_length = "long"\n')
    assert "corpus.sequence_length" in refused(command, "--config", tmp_path / "type.toml")
    assert "nowhere.toml" in refused(command, "--config", tmp_path / "nowhere.toml")
    where = () if command == "prepare" else ("--run.output", tmp_path / "x")
    assert "corpus.folder is not set" in refused(command, *where)


def test_misspelt_flags_of_the_other_commands(refused: Refused, tmp_path: Path) -> None:
    assert "did you mean --output?" in refused("export", tmp_path, "--ouput", tmp_path / "x")
    assert "did you mean --corpus?" in refused("evaluate", "model", "--corpsu", "x")
    assert "did you mean --output?" in refused("quickstart", "--outptu", "x")


# Text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "missing.txt"),
        (b"", "empty"),
        (b"\x7fELF\x02\x01\x01\x00\x00\xff\xfe" * 40, "text"),
        ("naïve café\n".encode("latin-1") * 40, "UTF-8"),
        (b"too short\n", "no sequence"),
    ],
    ids=["missing", "empty", "binary", "latin-1", "short"],
)
def test_bad_text(content: bytes | None, said: str, refused: Refused, tiny_inputs: Path, tmp_path: Path) -> None:
    source = tmp_path / ("missing.txt" if content is None else "source.txt")
    if content is not None:
        source.write_bytes(content)
    arguments = ("--config", tiny_inputs / "config.toml", "--corpus.train", source)
    if said == "no sequence":  # known only after tokenising
        (tmp_path / "corpus" / "train").mkdir(parents=True)
        assert main(["prepare", *map(str, arguments), "--corpus.folder", str(tmp_path / "corpus")]) == 2
        assert not (tmp_path / "corpus" / "train" / "index.json").exists()
        return
    line = refused("prepare", *arguments, "--corpus.folder", tmp_path / "corpus")
    assert source.name in line
    assert said.lower() in line.lower()


def test_prepare_refuses_other_settings_and_folders(refused: Refused, tiny_world: Path, tmp_path: Path) -> None:
    config = ("--config", tiny_world / "config.toml")
    assert "holds another corpus" in refused("prepare", *config, "--corpus.sequence-length", "16")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refused("prepare", *config, "--corpus.folder", tmp_path)
    (tmp_path / "file").write_text("")
    assert "file" in refused("prepare", *config, "--corpus.folder", tmp_path / "file" / "corpus")
    assert "corpus.tokenizer is not set" in refused("prepare", *config, "--corpus.tokenizer", "")


# Training


def train_arguments(world: Path, output: Path, command: str) -> tuple[str | Path, ...]:
    teacher = ("--teacher.path", world / "teacher") if command == "distill" else ()
    return (command, "--config", world / "config.toml", "--run.output", output, *teacher)


@pytest.mark.parametrize("command", ["pretrain", "distill"])
def test_training_refuses_what_does_not_fit(command: str, refused: Refused, tiny_world: Path, tmp_path: Path) -> None:
    run = train_arguments(tiny_world, tmp_path / "run", command)
    assert "distil-jax prepare" in refused(*run, "--corpus.folder", tmp_path / "nowhere")
    assert "8 devices" in refused(*run, "--training.batch-size", "28", "--parallel.devices", "0")
    assert "only 8 devices" in refused(*run, "--parallel.devices", "16", "--training.batch-size", "64")
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "other", "words"]) + "\n")
    line = refused(*run, "--corpus.tokenizer", other)
    assert "another vocabulary" in line and str(other) in line
    steps = ("--training.steps", "0", "--training.epochs", "1", "--training.batch-size", "4096")
    assert "lower the batch size" in refused(*run, *steps)
    (tmp_path / "file").write_text("")
    assert "file" in refused(*train_arguments(tiny_world, tmp_path / "file", command))
    assert "cannot be written" in refused(*train_arguments(tiny_world, tmp_path / "file" / "run", command))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "not empty" in refused(*train_arguments(tiny_world, tmp_path / "full", command))


def test_a_run_is_not_continued_with_other_settings(refused: Refused, tiny_run: Path, tiny_world: Path) -> None:
    run = train_arguments(tiny_world, tiny_run, "distill")
    state = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    line = refused(*run, "--optimizer.learning-rate", "0.125", "--objective.cosine", "3")
    assert "optimizer.learning-rate: was 0.0005, is 0.125" in line
    assert "objective.cosine: was 1.0, is 3.0" in line
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == state


def test_the_same_command_again_says_that_it_is_done(
    tiny_run: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(argument) for argument in train_arguments(tiny_world, tiny_run, "distill")]) == 0
    assert f"{tiny_run}: was finished already, step 2; held-out loss" in capsys.readouterr().out


def test_pretrain_refuses_a_model_too_short_for_the_rows(refused: Refused, tiny_world: Path, tmp_path: Path) -> None:
    run = train_arguments(tiny_world, tmp_path / "run", "pretrain")
    line = refused(*run, "--model.max-position-embeddings", "16")
    assert "24 tokens" in line and "16 positions" in line


def test_sizes_of_a_model_that_has_its_own_are_refused(refused: Refused, tiny_world: Path, tmp_path: Path) -> None:
    initial = ("--model.initial", tiny_world / "teacher")
    pretrain = (*train_arguments(tiny_world, tmp_path / "run", "pretrain"), *initial)
    said = "--model.num-layers has no effect on `distil-jax pretrain --model.initial`"
    assert said in refused(*pretrain, "--model.num-layers", "3")
    # What has an effect there is read, and refused for another reason.
    assert "vocabulary" in refused(*pretrain, "--objective.vocabulary", "kernel")
    for flag in ("--model.hidden-size", "--model.hidden-dropout", "--teacher.cache"):
        assert f"{flag} has no effect on `distil-jax finetune`" in refused("finetune", *initial, flag, "0")
    # In a file, which may be for several commands, they are let by.
    assert "run.output is not set" in refused("finetune", "--config", tiny_world / "config.toml", *initial)


def test_distill_refuses_a_teacher_that_cannot_teach(
    refused: Refused, tiny_world: Path, model_folder: Callable[..., str], tmp_path: Path
) -> None:
    def run(teacher: Path, *more: str) -> str:
        return refused(*train_arguments(tiny_world, tmp_path / "run", "distill"), "--teacher.path", teacher, *more)

    headless = Path(model_folder(head=False))
    same = ("--corpus.tokenizer", str(tiny_world / "tokenizer"))
    assert "no masked-language-model head" in run(headless, *same)
    assert "layers [2]" in run(tiny_world / "teacher", "--student.layers", "0", "2")
    assert "nowhere" in run(tmp_path / "nowhere")
    kind = headless / "config.json"
    kind.write_text(json.dumps(json.loads(kind.read_text()) | {"model_type": "gpt2"}))
    line = run(headless, *same)
    assert 'model_type = "gpt2"' in line and "distilbert" in line


# Export and evaluate


def test_export_refuses(refused: Refused, tiny_run: Path, tmp_path: Path) -> None:
    assert "config.json" in refused("export", tmp_path, "--output", tmp_path / "x")
    assert "onnx-int8" in refused("export", tiny_run, "--output", tmp_path / "x", "--format", "onxx")
    assert "no checkpoint of step 7; there are 1, 2" in refused(
        "export", tiny_run, "--output", tmp_path / "x", "--step", "7"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "not empty" in refused("export", tiny_run, "--output", tmp_path / "full")
    assert "will not be overwritten" in refused("export", tiny_run, "--output", tmp_path / "full", "--overwrite")
    assert "not given: --output" in refused("export", tiny_run)


def test_evaluate_refuses(refused: Refused, tiny_world: Path, tmp_path: Path) -> None:
    corpus = ("--corpus", tiny_world / "corpus" / "validation")
    assert "no models given" in refused("evaluate", *corpus)
    assert "distil-jax prepare" in refused("evaluate", tiny_world / "teacher", "--corpus", tmp_path)
    assert "nowhere" in refused("evaluate", tmp_path / "nowhere", *corpus)
    (tmp_path / "file").write_text("")
    nothing_done = ("evaluate", tmp_path / "nowhere", *corpus)
    line = refused(*nothing_done, "--rows", "-1")
    assert "--rows" in line and "-1" in line and "at least 0" in line
    assert "cannot be written" in refused(*nothing_done, "--json", tmp_path / "file" / "m.json")
    assert "cannot be written (Is a directory)" in refused(*nothing_done, "--json", tmp_path)


def test_evaluate_speaks_in_the_first_process_and_makes_the_folder_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distil_jax.evaluation.evaluate_paths", lambda *_: {"m": {"mlm_loss": 2.5}})
    command = ["evaluate", "m", "--corpus", "c", "--json", str(tmp_path / "new" / "m.json")]
    for process, said in ((1, ""), (0, "2.500")):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert main(command) == 0
        assert said in (out := capsys.readouterr().out)
        assert bool(out) == (tmp_path / "new" / "m.json").is_file() == (process == 0)
    assert json.loads((tmp_path / "new" / "m.json").read_text()) == {"m": {"mlm_loss": 2.5}}
