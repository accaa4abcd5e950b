"""What `distil-jax benchmark` measures: the stage of a configuration, and the variants of its step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from distil_jax.config import SECTIONS, BenchmarkArguments, Config, fields_of, settings_in, with_overrides
from distil_jax.errors import UserError, one_line

Stage = Literal["pretrain", "distill", "finetune"]
STAGES: tuple[Stage, ...] = ("pretrain", "distill", "finetune")
CONFIGURED = "configured"
USUAL_TASK = "mrpc"  # of fine-tuning where the configuration names none
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: a variant of the configuration, for one stage, with one length of rows."""

    variant: str
    stage: Stage
    length: int
    config: Config


# name -> settings by "section.key". `all` leaves out settings that this version or the hardware lacks.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"objective.vocabulary": "plain"},
    "fused": {"objective.vocabulary": "fused"},
    "attention-xla": {"training.attention": "xla"},
    "attention-cudnn": {"training.attention": "cudnn"},
    "attention-splash": {"training.attention": "splash"},
    "padded": {"corpus.pack": False},
    "packed": {"corpus.pack": True},
    "remat": {"training.remat": "layer"},
    "float32": {"training.compute_dtype": "float32"},
    "bfloat16": {"training.compute_dtype": "bfloat16"},
    "masked-kl": {"objective.restrict_kl_to_mask": True},
}
_NEEDS_PLATFORM = {"attention-cudnn": "gpu", "attention-splash": "tpu"}
_ON_TEXT: tuple[Stage, ...] = ("pretrain", "distill")
_STAGES_OF: dict[str, tuple[Stage, ...]] = {
    **dict.fromkeys(("plain", "fused", "padded", "packed"), _ON_TEXT),
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
    if config.task.name or (config.study.tasks and not config.corpus.folder):  # else a study of students: its base
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
        # Other settings of a task, such as windows, fit the configured length.
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
    from distil_jax.tasks import task_spec

    return task_spec(config.task.name or USUAL_TASK).kind.row_length(config.task)


def _with_length(config: Config, stage: Stage, length: int) -> Config:
    """`config` with rows of `length` tokens, and as many positions in a synthetic model."""
    positions = {"model.max_position_embeddings": max(length, config.model.max_position_embeddings)}
    if stage == "finetune":
        return with_overrides(config, {"task.max_length": length, **positions})
    shortest = min(config.corpus.min_tokens, length)
    return with_overrides(config, {"corpus.sequence_length": length, "corpus.min_tokens": shortest, **positions})


def _chosen(names: Sequence[str], stage: Stage, platform: str) -> dict[str, Mapping[str, Any]]:
    if not names:
        return {CONFIGURED: {}}
    found: dict[str, Mapping[str, Any]] = {}
    for name in names:
        if name == ALL:
            found |= {CONFIGURED: {}} | {one: VARIANTS[one] for one in VARIANTS if _applies(one, stage, platform)}
        elif "=" in name:
            found[name] = settings_in(name)
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
