"""Settings from the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import (
    SECTIONS,
    Arguments,
    Config,
    fields_of,
    load_config,
    parse_arguments,
    parse_command,
    with_overrides,
)
from distil_jax.config.fields import at_least, setting
from distil_jax.errors import UserError

FIELDS = {f"{section}.{key}": field for section, kind in SECTIONS.items() for key, field in fields_of(kind).items()}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def parsed(*arguments: str, **options: Any) -> Config:
    return parse_arguments(arguments, prog="distil-jax distill", **options)


def test_overrides_from_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "x.toml", "[optimizer]\nbeta1 = 0.5\nlearning_rate = 1e-3\n[masking]\nsmoothing = 0.25")
    config = parsed(
        *("--config", str(path), "--optimizer.learning-rate", "1e-4", "--optimizer.weight_decay=0.01"),
        *("--corpus.no-pack", "--student.layers", "0", "3", "--corpus.train", "a b", "c", "--run.output", "out"),
        *("--training.compute-dtype", "bfloat16", "--corpus.workers", "2"),
    )
    expected = {
        "optimizer.beta1": 0.5,
        "optimizer.learning_rate": 1e-4,
        "optimizer.weight_decay": 0.01,
        "masking.smoothing": 0.25,
        "corpus.pack": False,
        "student.layers": [0, 3],
        "corpus.train": ["a b", "c"],
        "run.output": "out",
        "training.compute_dtype": "bfloat16",
        "corpus.workers": 2,
    }
    assert config == with_overrides(Config(), expected)
    assert parsed(f"--config={path}") == load_config(path)
    assert parsed() == Config()
    assert parsed(default="quickstart") == load_config("quickstart")


def test_sections_that_a_command_does_not_use(tmp_path: Path) -> None:
    path = write(tmp_path, "x.toml", "[masking]\nsmoothing = 0.25")
    config = parsed("--config", str(path), "--corpus.workers", "2", sections=("corpus",))
    assert (config.masking.smoothing, config.corpus.workers) == (0.25, 2)  # the file may hold more than is used
    with pytest.raises(UserError, match=r"--masking\.smoothing has no effect on `distil-jax distill`"):
        parsed("--masking.smoothing", "0", sections=("corpus",))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer.learning-rat", "1"], "did you mean --optimizer.learning-rate?"),
        (["--optimizer.beta_3=1"], "did you mean --optimizer.beta"),
        (["--learning-rate", "1"], "did you mean --optimizer.learning-rate?"),
        (["--confg", "x.toml"], "did you mean --config?"),
        (["--optimizer.learning-rate", "fast"], "--optimizer.learning-rate fast: must be a number from 1e-15 to 1000"),
        (["--optimizer.learning-rate=fast"], "--optimizer.learning-rate fast: must be a number from 1e-15 to 1000"),
        (["--optimizer.learning-rate", "nan"], "must be a number from 1e-15 to 1000"),
        (["--optimizer.learning-rate", "-1"], "must be a number from 1e-15 to 1000"),
        (["--optimizer.learning-rate"], "must be a number from 1e-15 to 1000"),
        (["--optimizer.schedule", "lin"], 'must be one of "linear", "cosine", "constant"'),
        (["--student.layers", "1", "x"], "--student.layers 1 x: must be a list of whole numbers"),
        (["--corpus.pack", "False"], "False"),
        (["stray"], "stray"),
        (["--training.batch-size", "100", "--parallel.devices", "8"], "not a multiple"),
        (["--config"], "--config needs"),
        (["--config", "--run.seed"], "--config needs"),
        (["--config", "quickstrat"], "'quickstart'"),
        (["--config", "a.toml", "--config=b.toml"], "given 2 times"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        parsed(*arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_help_shows_the_files_values_and_every_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "x.toml", "[optimizer]\nlearning_rate = 0.000123")
    with pytest.raises(SystemExit) as caught:
        parsed("--config", str(path), "--help", description="What it does.")
    assert not caught.value.code
    text = capsys.readouterr().out
    assert "0.000123" in text and "What it does." in text and "--config" in text
    assert all(f"--{name.replace('_', '-')}" in text for name in FIELDS)


def test_help_of_a_command_shows_its_sections_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help", sections=("run", "corpus"))
    text = capsys.readouterr().out
    assert "--corpus.workers" in text and "--run.seed" in text and "--optimizer" not in text


@dataclasses.dataclass(frozen=True)
class ExportLike(Arguments):
    """Write something."""

    positional = "run"
    run: str = setting(dataclasses.MISSING, "folder of the run")
    output: str = setting(dataclasses.MISSING, "folder to write")
    step: int = setting(-1, "which checkpoint", at_least(-1))
    over_write: bool = setting(False, "replace what is there")


@dataclasses.dataclass(frozen=True)
class EvaluateLike(Arguments):
    """Measure something."""

    positional = "models"
    models: tuple[str, ...] = setting(dataclasses.MISSING, "what is measured")
    rows: int = setting(0, "how many")


def test_arguments_of_a_command_without_configuration() -> None:
    def parse(*arguments: str) -> ExportLike:
        return parse_command(ExportLike, arguments, prog="x export")

    assert parse("a", "--output", "b") == ExportLike("a", "b")
    assert parse("--output=b", "a", "--over-write", "--step", "7") == ExportLike("a", "b", 7, True)
    assert parse("a", "--output", "b", "--no-over_write") == ExportLike("a", "b")
    given = parse_command(EvaluateLike, ["a", "b", "--rows", "3"], prog="x evaluate")
    assert given == EvaluateLike(("a", "b"), 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["RUN folder of the run", "--output"]),
        (["a"], ["not given: --output TEXT folder to write"]),
        (["a", "--outptu", "b"], ["no flag --outptu", "did you mean --output?"]),
        (["a", "--output", "b", "--step", "x"], ["--step x: must be a whole number"]),
        (["a", "--output", "b", "--step", "-2"], ["--step", "-2", "must be a whole number at least -1"]),
        (["a", "--output", "b", "c"], ["no flag takes c"]),
        (["a", "--output", "b", "--over-write", "true"], ["no flag takes true", "yes/no"]),
        (["a", "--output"], ["--output: must be a text"]),
    ],
)
def test_bad_arguments_of_a_command_without_configuration(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_command(ExportLike, arguments, prog="x export")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_positional_list_must_not_be_empty() -> None:
    with pytest.raises(UserError, match="no models given"):
        parse_command(EvaluateLike, ["--rows", "3"], prog="x evaluate")


def test_help_of_a_command_without_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command(ExportLike, ["--help"], prog="x export")
    text = capsys.readouterr().out
    for words in ("Write something.", "folder of the run", "--output TEXT", "folder to write", "which checkpoint"):
        assert words in text
