"""What `distil-jax benchmark` measures: its arguments, the stage of a configuration, the variants of a step.

Nothing heavy is imported: `--help` is answered from here.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from distil_jax.config import SECTIONS, Config, fields_of, with_overrides
from distil_jax.errors import UserError, one_line

Stage = Literal["pretrain", "distill", "finetune"]
STAGES: tuple[Stage, ...] = ("pretrain", "distill", "finetune")
CONFIGURED = "configured"
USUAL_TASK = "mrpc"  # of fine-tuning where the configuration names none
ALL = "all"


@dataclasses.dataclass(frozen=True)
class BenchmarkArguments:
    """Measure the training step of a configuration: speed, utilisation, memory, compile time, input rate.

    Models and data that are not on this machine are replaced by random weights and made-up rows of the same shapes, so
    nothing is downloaded. Every variant runs in a process of its own. Settings of the configuration are overridden by
    --section.key VALUE, as everywhere.
    """

    stage: Literal["auto", "pretrain", "distill", "finetune"] = "auto"
    """which step; auto: the one that the configuration is for"""
    variants: tuple[str, ...] = ()
    """settings to compare: names (see `all`), or section.key=value with + between several; empty: as configured"""
    lengths: tuple[int, ...] = ()
    """tokens per row, a table for each; empty: as configured"""
    fill: bool = False
    """use the largest batch that fits into memory, found for each variant, instead of the configured one"""
    memory: float = 0.0
    """gibibytes that --fill may use; 0: what the device reports, or the free memory of the machine"""
    repeats: int = 5
    """rounds that are timed; median and spread are taken over them"""
    steps: int = 0
    """steps per round; 0: as many as take a second, 20 at most"""
    warm_start: bool = True
    """also start once more with the programs in the compilation cache, for the time to the first step"""
    vocabulary: int = 30_522
    """tokens in the vocabulary of a made-up model or corpus"""
    output: str = ""
    """also write the table to this file, FILE.md, and everything measured to FILE.json"""

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise UserError(f"--repeats {self.repeats}: one round says nothing about noise; give 2 or more")
        if self.steps < 0 or not 0 <= self.memory < math.inf:
            raise UserError("--steps and --memory must not be negative, nor without end; 0 leaves them to be found out")
        if self.memory and not self.fill:
            raise UserError(f"--memory {self.memory:g}: what --fill may use; give --fill too, or leave it out")
        if self.output and not Path(self.output).name:
            raise UserError(f"--output {self.output}: names no file; give one, without .md")
        if self.vocabulary < 16:
            raise UserError(f"--vocabulary {self.vocabulary}: too small for the special tokens; give 16 or more")
        if any(length < 8 for length in self.lengths):
            raise UserError("--lengths: rows have 8 tokens or more")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: a variant of the configuration, for one stage, with one length of rows."""

    variant: str
    stage: Stage
    length: int
    config: Config


# name -> settings by "section.key". A setting that this version lacks, or that the hardware does, is left out of `all`.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"objective.vocabulary": "plain"},
    "fused": {"objective.vocabulary": "fused"},
    "kernel": {"objective.vocabulary": "kernel"},
    "attention-xla": {"training.attention": "xla"},
    "attention-cudnn": {"training.attention": "cudnn"},
    "attention-splash": {"training.attention": "splash"},
    "padded": {"corpus.pack": False},
    "packed": {"corpus.pack": True},
    "remat": {"training.remat": "layer"},
    "float32": {"training.compute_dtype": "float32"},
    "bfloat16": {"training.compute_dtype": "bfloat16"},
    "masked-kl": {"objective.restrict_ce_to_mask": True},
}
_NEEDS_PLATFORM = {"kernel": "gpu", "attention-cudnn": "gpu", "attention-splash": "tpu"}
_ON_TEXT: tuple[Stage, ...] = ("pretrain", "distill")
_STAGES_OF: dict[str, tuple[Stage, ...]] = {
    **dict.fromkeys(("plain", "fused", "kernel", "padded", "packed"), _ON_TEXT),
    "masked-kl": ("distill",),
}


def stage_of(config: Config, asked: str, given: bool) -> Stage:
    """The stage that a configuration is for.

    Args:
        config: the configuration.
        asked: --stage.
        given: whether there was a file; the schema's defaults alone stand for distillation.
    """
    if asked != "auto":
        return next(stage for stage in STAGES if stage == asked)
    if config.task.name or config.study.tasks:
        return "finetune"
    if config.teacher.path or not given:
        return "distill"
    return "pretrain" if config.corpus.folder else "finetune"


def cells(config: Config, stage: Stage, arguments: BenchmarkArguments, platform: str) -> list[Cell]:
    """Everything to measure, length by length.

    Args:
        config: the configuration, which --lengths and --variants change.
        stage: from `stage_of`.
        arguments: the command's.
        platform: "cpu", "gpu" or "tpu", which decides what `all` leaves out.

    Raises:
        UserError: a variant that is unknown or that this stage does not have.
    """
    found = []
    for length in arguments.lengths or (_length(config, stage),):
        # What a kind of task has besides a length, such as windows, fits the one that is configured.
        unchanged = stage == "finetune" and not arguments.lengths
        base = config if unchanged else _with_length(config, stage, length)
        for name, changes in _chosen(arguments.variants, stage, platform).items():
            found.append(Cell(name, stage, length, with_overrides(base, changes)))
    return found


def with_rows(config: Config, rows: int, devices: int) -> Config:
    """`config` with one micro-batch of `rows` rows on each of the devices."""
    return with_overrides(config, {"training.micro_batch_size": rows, "training.batch_size": rows * devices})


def _length(config: Config, stage: Stage) -> int:
    if stage != "finetune":
        return config.corpus.sequence_length
    from distil_jax.tasks.encode import longest_row
    from distil_jax.tasks.registry import task_spec

    return longest_row(config.task, task_spec(config.task.name or USUAL_TASK).kind)


def _with_length(config: Config, stage: Stage, length: int) -> Config:
    """`config` with rows of `length` tokens, and room for them in a model made up."""
    room = {"model.max_position_embeddings": max(length, config.model.max_position_embeddings)}
    if stage == "finetune":
        return with_overrides(config, {"task.max_length": length, **room})
    shortest = min(config.corpus.min_tokens, length)
    return with_overrides(config, {"corpus.sequence_length": length, "corpus.min_tokens": shortest, **room})


def _chosen(names: Sequence[str], stage: Stage, platform: str) -> dict[str, Mapping[str, Any]]:
    if not names:
        return {CONFIGURED: {}}
    found: dict[str, Mapping[str, Any]] = {}
    for name in names:
        if name == ALL:
            found |= {CONFIGURED: {}} | {one: VARIANTS[one] for one in VARIANTS if _applies(one, stage, platform)}
        elif "=" in name:
            found[name] = _own_variant(name)
        elif name == CONFIGURED:
            found[name] = {}
        elif name not in VARIANTS:
            raise UserError(f"--variants {one_line(name, 60)}: not one of {ALL}, {CONFIGURED}, {', '.join(VARIANTS)}")
        elif stage not in _STAGES_OF.get(name, STAGES):
            raise UserError(f"--variants {name}: has no effect on {stage}; leave it out")
        elif missing := [key for key in VARIANTS[name] if not _allows(key, VARIANTS[name][key])]:
            raise UserError(f"--variants {name}: this version has no {missing[0]} = {VARIANTS[name][missing[0]]}")
        else:
            found[name] = VARIANTS[name]
    return found


def _applies(name: str, stage: Stage, platform: str) -> bool:
    if _NEEDS_PLATFORM.get(name, platform) != platform or stage not in _STAGES_OF.get(name, STAGES):
        return False
    return all(_allows(key, value) for key, value in VARIANTS[name].items())


def _allows(name: str, value: Any) -> bool:
    """Whether this version has the setting, and it may have the value."""
    section, _, key = name.partition(".")
    if key not in fields_of(SECTIONS[section]):
        return False
    try:
        fields_of(SECTIONS[section])[key].checked(value, name)
    except UserError:
        return False
    return True


def _own_variant(text: str) -> dict[str, Any]:
    """`teacher.dtype=bfloat16+training.micro_batch_size=8` as settings."""
    found = {}
    for part in text.split("+"):
        name, _, value = part.partition("=")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value  # a word without quotes
        if isinstance(found[name], list):
            found[name] = tuple(found[name])
    return found
