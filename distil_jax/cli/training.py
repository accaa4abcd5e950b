"""Commands that take a configuration: prepare, pretrain, distill, finetune."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distil_jax.cli.command import print_tables, say, start, with_long_flags
from distil_jax.cli.crash import working_on
from distil_jax.config import Config, ShortHelp, parse_arguments, require
from distil_jax.errors import UserError

_SHORT = {"--task": "--task.name", "--seeds": "--study.seeds"}
_ON_TEXT = ("run", "corpus", "masking", "optimizer", "training", "parallel", "checkpoint", "evaluation", "logging")
# Of [pruning] what has an effect while training.
_PRUNING = ("pruning.sparsity", "pruning.begin", "pruning.end", "pruning.every_steps")
_GIVEN_MODEL = ("model.initial", "model.freeze_encoder")  # which has sizes and dropout rates of its own
_TABLE = tuple(f"study.{name}" for name in ("tasks", "seeds", "learning_rates", "epochs", "export", "checkpoints"))
_STUDENTS = ("objectives", "starts", "tokens", "base_tokens", "distillations", "hours", "finetune", "pretrain")
_LOSS_FORM = "objective.vocabulary"  # all of [objective] that pre-training has
_ON_STEPS = ("training.steps", "training.epochs", "training.batch_size", "training.micro_batch_size")
_PAGES = {
    "cache-teacher": ShortHelp(
        "distil-jax cache-teacher --teacher.path google-bert/bert-base-uncased --corpus.folder data/mine "
        "--teacher.cache cache/mine --training.steps 20000",
        ("teacher.path", "corpus.folder", "teacher.cache"),
        ("teacher.top_k", *_ON_STEPS, "masking.probability", "objective.temperature", "run.seed", "parallel.devices"),
    ),
    "study": ShortHelp(
        "distil-jax study --config study_minilm_l3",
        ("teacher.path", "corpus.folder", "run.output"),
        (
            *("study.objectives", "study.starts", "study.tokens", "study.tasks", "study.seeds", "study.hours"),
            *("study.base_tokens", "training.steps", "training.batch_size", "task.source"),
        ),
    ),
    "prepare": ShortHelp(
        "distil-jax prepare --corpus.tokenizer google-bert/bert-base-uncased --corpus.folder data/mine "
        "--corpus.train 'text/*.txt.gz' --corpus.validation held_out.txt",
        ("corpus.folder", "corpus.train", "corpus.tokenizer"),
        (
            *("corpus.validation", "corpus.sequence_length", "corpus.text_column", "corpus.sequence"),
            *("corpus.on_error", "corpus.max_documents", "corpus.workers"),
        ),
    ),
    "pretrain": ShortHelp(
        "distil-jax pretrain --corpus.tokenizer google-bert/bert-base-uncased --corpus.folder data/mine "
        "--run.output runs/mine --model.num-layers 4",
        ("corpus.folder", "run.output"),
        (
            *("model.initial", "corpus.tokenizer", "model.num_layers", "model.hidden_size"),
            *(*_ON_STEPS, "optimizer.learning_rate", "run.seed"),
        ),
    ),
    "distill": ShortHelp(
        "distil-jax distill --teacher.path google-bert/bert-base-uncased --corpus.folder data/mine "
        "--run.output runs/mine",
        ("teacher.path", "corpus.folder", "run.output"),
        (
            *("student.num_layers", "student.layers", *_ON_STEPS, "optimizer.learning_rate"),
            *("objective.kl", "training.compute_dtype", "run.seed"),
        ),
    ),
    "finetune": ShortHelp(
        "distil-jax finetune --task sst2 --model.initial models/mine --run.output runs/sst2",
        ("task.name", "model.initial", "run.output"),
        (
            *("task.train", "task.validation", "task.text", "task.label", "training.epochs", "training.batch_size"),
            *("optimizer.learning_rate", "task.max_length", "teacher.path", "study.seeds"),
        ),
    ),
}


def run_prepare(arguments: list[str]) -> None:
    """`distil-jax prepare`."""
    config = parse_arguments(
        arguments,
        prog="distil-jax prepare",
        description="Turn text into token shards.",
        sections=("corpus", "logging"),
        page=_PAGES["prepare"],
    )
    require(config, "corpus.folder", "corpus.train")
    source = config.corpus.tokenizer or config.teacher.path or config.model.initial
    if not source:
        raise UserError("corpus.tokenizer is not set; name the tokenizer's folder or hub id (the teacher's, say)")
    from distil_jax.data.corpus import prepare_splits
    from distil_jax.hf import load_tokenizer
    from distil_jax.runs import prepare_display

    with prepare_display(config.logging.progress) as display:
        corpora = prepare_splits(config.corpus, load_tokenizer(source), display)
    for split, corpus in corpora.items():
        print(
            f"{split}: {corpus.num_tokens:,} tokens, {corpus.num_sequences:,} sequences in {corpus.num_rows:,} rows of "
            f"{corpus.sequence_length} ({corpus.fill:.1%} filled), {corpus.folder}"
        )
        for note in (*corpus.notes, *_left_out(config, corpus)):
            print(f"{split}: {note}")


def _left_out(config: Config, corpus: Any) -> list[str]:
    """What of the text is in no row, a line each."""
    reasons = {"short": f"of fewer than {config.corpus.min_tokens} tokens", "unknown": "of unknown tokens"}
    counts = {why: corpus.index.get("dropped", {}).get(name, 0) for name, why in reasons.items()}
    return [f"{count:,} sequences {why} left out" for why, count in counts.items() if count]


def run_cache_teacher(arguments: list[str]) -> None:
    """`distil-jax cache-teacher`."""
    config = parse_arguments(
        arguments,
        prog="distil-jax cache-teacher",
        description="Write what the teacher says of the batches of a distillation into teacher.cache; give the "
        "arguments of `distil-jax distill`. An interrupted command continues, and more steps are added.",
        sections=(*_ON_TEXT, "teacher", "student", "objective"),
        page=_PAGES["cache-teacher"],
    )
    require(config, "teacher.cache", "corpus.folder", "teacher.path")
    start(config)
    from distil_jax.training.cache_teacher import cache_teacher

    with working_on(config.teacher.cache):
        found = cache_teacher(config)
    if found is not None:
        size = found.bytes_per_row * found.batch_size * found.steps
        print(
            f"{found.folder}: {found.steps} steps of {found.batch_size} rows, {size / 1e6:,.1f} MB\n"
            f"tokens beyond the top {config.teacher.top_k} have {found.tail_share():.1%} of the probability; the "
            "student learns their sum alone\n"
            f"next: distil-jax distill with the same arguments, --teacher.cache {found.folder} among them"
        )


def train_command(stage: str) -> Callable[[list[str]], None]:
    """`distil-jax pretrain` or `distil-jax distill`, as `stage` says."""
    text, sections = {
        "pretrain": (
            "Train a masked language model, from scratch or from Hugging Face weights.",
            ("model", _LOSS_FORM),
        ),
        "distill": ("Distil a teacher into a smaller student.", ("teacher", "student", "objective")),
    }[stage]
    program = f"distil-jax {stage}"

    def run(arguments: list[str]) -> None:
        config = parse_arguments(
            arguments,
            prog=program,
            description=text,
            sections=(*_ON_TEXT, *_PRUNING, *sections),
            page=_PAGES[stage],
        )
        if stage == "pretrain" and config.model.initial:  # flags for sizes have no effect then, and are refused
            own = (*_ON_TEXT, *_PRUNING, *_GIVEN_MODEL, _LOSS_FORM)
            parse_arguments(arguments, prog=f"{program} --model.initial", sections=own)
        train(stage, config)

    return run


def train(stage: str, config: Config) -> None:
    """Make or continue the run of a stage on text ("pretrain", "distill") and print its result."""
    require(config, "run.output", "corpus.folder")
    start(config)
    from distil_jax.training.distill import distill
    from distil_jax.training.pretrain import pretrain

    with working_on(config.run.output):
        result = {"pretrain": pretrain, "distill": distill}[stage](config)
    if result.is_main:
        print(_summary(config, result, result.evaluations) + _report(config))


def run_finetune(arguments: list[str]) -> int:
    """`distil-jax finetune`, of one task or a study of several."""
    teacher = ("teacher.path", "teacher.dtype")  # whose outputs no cache holds
    sections = ("run", *_GIVEN_MODEL, *teacher, "task", "finetune", "augment", *_TABLE, "optimizer", "training")
    config = parse_arguments(
        with_long_flags(arguments, _SHORT),
        prog="distil-jax finetune",
        description="Fine-tune a model on a task, or on several with several seeds, alone or with fine-tuned teachers. "
        "--task NAME is short for --task.name NAME, --seeds N for --study.seeds N.",
        sections=(*sections, *_PRUNING, "parallel", "checkpoint", "evaluation", "logging"),
        default="finetune",
        page=_PAGES["finetune"],
    )
    from distil_jax.evaluation import is_study, plan_study

    require(config, "run.output", "model.initial")
    if is_study(config):
        plan_study(config)  # refuses what is wrong before anything starts
        return study(config, f"distil-jax finetune {shlex.join(arguments)}")
    require(config, "task.name")
    finetune(config)
    return 0


def finetune(config: Config) -> None:
    """Make or continue the run of one task and print its result."""
    start(config)
    from distil_jax.evaluation import for_task
    from distil_jax.training.finetune import finetune

    config = for_task(config, config.task.name)
    with working_on(config.run.output):
        found = finetune(config)
    if found.result.is_main:
        for note in found.late_notes:
            print(f"note: {note}")
        ends = {**found.result.evaluations, found.result.best_step: found.measures}
        print(_summary(config, found.result, ends, f"{found.data.spec.title} ") + _report(config))


def study(config: Config, command: str) -> int:
    """Make or continue the runs of a study and print its table; the exit status. `command` is for its report."""
    start(config)
    from distil_jax.evaluation import run_study

    with working_on(config.run.output):
        found = run_study(config, command=command, say=say)
    if found.is_main:
        print_tables(f"{found.text}\n\n{config.run.output}/report.md and report.json{_report(config, '')}")
    for failure in found.failures:
        print(f"distil-jax: failed: {failure}", file=sys.stderr)
    return (2 if found.user_error else 1) if found.failures else 0


def run_study_of_students(arguments: list[str]) -> int:
    """`distil-jax study`: students of one teacher, compared."""
    shared = ("run", "corpus", "teacher", "student", "objective", "masking", "optimizer", "training", "parallel")
    chosen = ("task.source", "study.tasks", "study.seeds", *(f"study.{name}" for name in _STUDENTS))
    config = parse_arguments(
        arguments,
        prog="distil-jax study",
        description="Distil students that differ in one thing each, fine-tune them on tasks with several seeds, and "
        "report what they keep of their teacher. The same command continues.",
        sections=(*shared, "checkpoint", "evaluation", "logging", *chosen),
        page=_PAGES["study"],
    )
    return ablation(config, f"distil-jax study {shlex.join(arguments)}")


def ablation(config: Config, command: str) -> int:
    """Make or continue a study of students; the exit status. `command` is for its report."""
    from distil_jax.evaluation import task_names

    task_names(config)  # refuses what is wrong before anything starts
    start(config)
    from distil_jax.evaluation import run_ablation

    with working_on(config.run.output):
        found = run_ablation(config, command=command, say=say)
    failed = [row["name"] for row in found["students"] if row["state"] == "failed"]
    print(f"{config.run.output}/report.html")
    for name in failed:
        print(f"distil-jax: failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def _report(config: Config, events: str = "/tensorboard") -> str:
    """Where the page on a finished run or study is, and its event files, which are below `events` of its folder."""
    from distil_jax.evaluation import try_report

    path = try_report(Path(config.run.output))
    curves = f"\ncurves: tensorboard --logdir {config.run.output}{events}" if config.logging.tensorboard else ""
    return (f"\nreport: {path}" if path else "") + curves


def _summary(config: Config, result: Any, evaluations: Mapping[int, Mapping[str, float]], task: str = "") -> str:
    from distil_jax.training.opening import ends_text

    state = "was finished already" if result.resumed_from == result.step else "finished"
    steps = f"result of step {result.best_step} of {result.step}" if task else f"step {result.step}"
    skipped = f" ({result.skipped_steps} skipped: not finite)" if result.skipped_steps else ""
    ends = ends_text(evaluations, result.best_step)
    more = ""
    if result.resumed_from == result.step:
        more = f"\ntrain on: distil-jax resume {config.run.output} --training.steps {2 * result.step}"
    return (
        f"{config.run.output}: {task}{state}, {steps}{skipped}{'; ' if ends else ''}{ends}\n"
        f"next: distil-jax export {config.run.output} --output FOLDER{more}"
    )
