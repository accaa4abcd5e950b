"""The first page of a command's help, and messages in flags."""

from __future__ import annotations

import pytest

from distil_jax.cli import COMMANDS, main
from distil_jax.config import in_flags

TRAINING = (
    *("prepare", "pretrain", "distill", "finetune", "resume", "evaluate --task x", "cache-teacher", "study", "prune"),
)


@pytest.mark.parametrize("command", TRAINING)
def test_the_first_page_fits_and_leads_to_the_other(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    page = capsys.readouterr().out
    assert end.value.code == 0
    assert max(map(len, page.splitlines())) <= 80
    assert len(page.splitlines()) < 55
    assert "--help-all" in page and "example:" in page
    with pytest.raises(SystemExit):
        main([*command.split(), "--help-all"])
    assert len(capsys.readouterr().out.splitlines()) > 1.5 * len(page.splitlines())


@pytest.mark.parametrize(
    "command", [name for name, one in COMMANDS.items() if one.arguments is not None] + ["benchmark", "plan", "evaluate"]
)
def test_commands_without_configuration_show_all_they_take_in_80_columns(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    page = capsys.readouterr().out
    assert end.value.code == 0
    assert max(map(len, page.splitlines())) <= 80
    assert f"\n  distil-jax {command}" in page and "  None" not in page
    assert not set(page) & {"\u2502", "\u256d"}, "no boxes"


def test_the_overview_fits_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    assert [line.split()[0] for line in page.splitlines() if line.startswith("  ") and line[2] != " "] == [*COMMANDS]


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("training.steps = 10: must be even", "--training.steps 10: must be even"),
        ('out with task.on_error = "skip"', "out with --task.on-error skip"),
        ("model.freeze_encoder = true needs it", "--model.freeze-encoder needs it"),
        ("corpus.pack = false; x", "--corpus.no-pack; x"),
        ("runs/training.steps: /run.output: a.b = 3", "runs/training.steps: /run.output: a.b = 3"),
        ("set run.output.", "set --run.output."),
    ],
)
def test_settings_become_flags(message: str, wanted: str) -> None:
    assert in_flags(message, ["distill", "--run.output", "x"]) == wanted


def test_what_stands_in_a_file_stays() -> None:
    text = "training.batch_size = 7 is not a multiple of training.micro_batch_size = 4"
    found = in_flags(text, ["distill", "--config", "x.toml", "--training.batch_size", "7"])
    assert found == "--training.batch-size 7 is not a multiple of training.micro_batch_size = 4"
