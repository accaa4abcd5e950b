"""`distil-jax resume`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from distil_jax.cli import training
from distil_jax.config import Config, ShortHelp, parse_arguments, with_overrides
from distil_jax.cpu import restart_for_cpu
from distil_jax.errors import UserError

# Sections whose settings may change on resumption; the run itself refuses those that change its result.
_SECTIONS = ("parallel", "training", "evaluation", "checkpoint", "logging")
# How the processes of the earlier start found each other; it need not hold now.
_FOUND_AGAIN = ("--parallel.coordinator=", "--parallel.num-processes=0", "--parallel.process-id=-1")
_PROGRAM = "distil-jax resume DIR"
_TEXT = "Continue the run or study in the folder DIR as it was started."
_STUDY, _ABLATION = "study", "ablation"  # several runs: of tasks, of students
_PAGE = ShortHelp(
    "distil-jax resume runs/mine --training.steps 20000",
    (),
    (
        *(
            "training.steps",
            "training.epochs",
            "training.micro_batch_size",
            "parallel.devices",
            "evaluation.batch_size",
        ),
        *("checkpoint.every_minutes", "checkpoint.keep", "logging.every_steps", "logging.progress"),
    ),
)


def run_resume(arguments: list[str]) -> int:
    """`distil-jax resume`: continue the run or study in a folder with its recorded settings."""
    if not arguments or arguments[0].startswith("-"):
        if {"--help", "-h", "--help-all"} & set(arguments):
            parse_arguments(arguments, prog=_PROGRAM, description=_TEXT, sections=_SECTIONS, page=_PAGE)
        raise UserError("no folder given: distil-jax resume DIR, the run.output of a run or study")
    folder = Path(arguments[0]).absolute()
    stage, recorded = _recorded(folder)
    arguments_of_file = ["--config", str(recorded), *_FOUND_AGAIN]
    config = parse_arguments(
        [*arguments_of_file, *arguments[1:]], prog=_PROGRAM, description=_TEXT, sections=_SECTIONS, page=_PAGE
    )
    if stage not in (_STUDY, _ABLATION):
        config = with_overrides(config, {"training.extend": True})
    restart_for_cpu(config.run.platform)  # which reads DIR again, so before the current folder changes
    _return_to_start(folder)
    if Path(config.run.output).absolute() != folder:  # it was moved
        config = with_overrides(config, {"run.output": str(folder)})
    return _stages()[stage](config, f"distil-jax resume {shlex.join(arguments)}") or 0


def _stages() -> dict[str, Callable[[Config, str], int | None]]:
    return {
        "pretrain": lambda config, _: training.train("pretrain", config),
        "distill": lambda config, _: training.train("distill", config),
        "finetune": lambda config, _: training.finetune(config),
        _STUDY: training.study,
        _ABLATION: training.ablation,
    }


def _recorded(folder: Path) -> tuple[str, Path]:
    """What made the run in `folder`, and the file of its configuration."""
    from distil_jax.runs import CONFIG_FILE, MANIFEST_FILE, STUDY_FILE, read_starts

    if (folder / STUDY_FILE).is_file():
        of_students = any(one.get("stage") == _ABLATION for one in read_starts(folder))
        return _ABLATION if of_students else _STUDY, folder / STUDY_FILE
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder}: neither a run nor a study (no {CONFIG_FILE}, no {STUDY_FILE}); nothing to resume")
    stages = [start.get("stage") for start in read_starts(folder)]
    if not stages or stages[-1] not in _stages():
        raise UserError(
            f"{folder / MANIFEST_FILE}: does not say what made this run; give the command that started it once more"
        )
    return str(stages[-1]), folder / CONFIG_FILE


def _return_to_start(folder: Path) -> None:
    """Go to where the run was started, since paths in its settings may start there."""
    from distil_jax.runs import read_starts

    places = [start.get("folder") for start in read_starts(folder)]
    if places and isinstance(places[-1], str) and Path(places[-1]).is_dir():
        os.chdir(places[-1])
