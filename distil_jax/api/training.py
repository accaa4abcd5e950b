"""Training in one call: `distill`, `pretrain`, `finetune`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distil_jax.api.inputs import Model, make_config, model_folder, rows_of, run_folder, text_sources
from distil_jax.api.result import Result, result_of
from distil_jax.config import Config
from distil_jax.data.corpus import INDEX, prepare_splits
from distil_jax.errors import PreemptedError, UserError
from distil_jax.hf import Tokenizer, load_tokenizer, save_tokenizer
from distil_jax.runs import INPUTS_FOLDER, prepare_display, startup
from distil_jax.tasks import TASKS, load_task, task_spec
from distil_jax.training.loop import TrainResult


def distill(
    teacher: Model,
    text: Any,
    *,
    validation: Any = None,
    folder: str | Path | None = None,
    config: str | Path | Config | None = None,
    **settings: Any,
) -> Result:
    """Train a smaller student of a masked language model on text, as `distil-jax distill` does.

        result = distil_jax.distill("google-bert/bert-base-uncased", texts, training={"steps": 1000})
        result = distil_jax.distill(teacher, "text/*.txt", folder="runs/mine", **{"objective.kl": 1.0})

    Args:
        teacher: folder of a model or run, hub id, (module, params, tokenizer), or another result.
        text: what it learns from: the folder of a prepared corpus; a file, glob or dataset id; `Path`s; or texts in
            memory: a list of str or dicts, a dict of lists, a DataFrame, a `datasets.Dataset`.
        validation: held-out text, in the same forms; None: nothing is measured, or the prepared corpus' own is used.
        folder: of the run; a call with the same one continues it. None: a new temporary folder.
        config: a TOML file, the name of a shipped configuration, or a `Config`; None: the defaults.
        **settings: what `distil-jax distill --help-all` lists: training={"steps": 10} or **{"training.steps": 10}.

    Returns:
        The student. `metrics` are of the held-out text.

    Raises:
        UserError: what is wrong with an argument, before anything is compiled.
    """
    from distil_jax.training import distill as module

    place = run_folder(folder)
    source = model_folder(teacher, place / INPUTS_FOLDER / "teacher")
    return _on_text(module.distill, text, validation, place, config, settings, {"teacher.path": source}, source)


def pretrain(
    text: Any,
    *,
    initial: Model | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    validation: Any = None,
    folder: str | Path | None = None,
    config: str | Path | Config | None = None,
    **settings: Any,
) -> Result:
    """Train a masked language model on text, as `distil-jax pretrain` does.

        result = distil_jax.pretrain(texts, tokenizer="models/mine", model={"num_layers": 4})

    Args:
        text: as of `distill`.
        initial: what training starts from, as `teacher` of `distill`; None: random weights of the sizes in [model].
        tokenizer: folder, hub id or tokenizer of a model from random weights.
        validation: as of `distill`.
        folder: as of `distill`.
        config: as of `distill`.
        **settings: as of `distill`.

    Returns:
        The model.

    Raises:
        UserError: what is wrong with an argument, before anything is compiled.
    """
    from distil_jax.training import pretrain as module

    place, fixed = run_folder(folder), {}
    if initial is not None:
        fixed["model.initial"] = source = model_folder(initial, place / INPUTS_FOLDER / "model")
    elif isinstance(tokenizer, Tokenizer):
        source = str(place / INPUTS_FOLDER / "tokenizer")
        save_tokenizer(Path(source), tokenizer)
    elif tokenizer is not None:
        source = str(tokenizer)
    else:
        raise UserError("neither initial nor tokenizer given; give tokenizer=FOLDER for a model from random weights")
    return _on_text(module.pretrain, text, validation, place, config, settings, fixed, source)


def finetune(
    model: Model,
    data: Any,
    *,
    validation: Any = None,
    test: Any = None,
    kind: str = "classification",
    teacher: Model | None = None,
    folder: str | Path | None = None,
    config: str | Path | Config = "finetune",
    **settings: Any,
) -> Result:
    """Train a model for a task, as `distil-jax finetune` does.

        result = distil_jax.finetune("models/mine", "sst2", **{"training.epochs": 3})
        result = distil_jax.finetune("models/mine", [{"text": "warm and kind", "label": "good"}, ...])

    Args:
        model: what training starts from, as of `distill`.
        data: name of a known task ("sst2"), or training rows: a file, a list of dicts, a dict of lists, a DataFrame, a
            `datasets.Dataset`. Columns are "text" and "label" unless settings of [task] name others.
        validation: rows to measure on; None: the known task's, else a part of the training rows.
        test: further rows.
        kind: of rows: classification, regression, multilabel, tagging, question or choice.
        teacher: a fine-tuned model of the same task to learn from, too.
        folder: as of `distill`.
        config: as of `distill`.
        **settings: as of `distill`: task={"text": "review"}, training={"epochs": 2}.

    Returns:
        The best model on the validation rows. `metrics` are of these and of test rows with labels.

    Raises:
        UserError: what is wrong with an argument, before anything is compiled.
    """
    from distil_jax.training import finetune as module

    place = run_folder(folder)
    fixed = {"run.output": str(place), "model.initial": model_folder(model, place / INPUTS_FOLDER / "model")}
    if teacher is not None:
        fixed["teacher.path"] = model_folder(teacher, place / INPUTS_FOLDER / "teacher")
    given = {"train": data, "validation": validation, "test": test}
    if known_task(data):
        fixed, given = {**fixed, "task.name": data}, {**given, "train": None}
    elif kind in TASKS and not TASKS[kind].published:
        fixed["task.name"] = kind
    else:
        own = ", ".join(name for name, spec in TASKS.items() if not spec.published)
        raise UserError(f"kind = {kind!r}: no kind of rows; give one of {own}")
    fixed |= {f"task.{role}": str(rows) for role, rows in given.items() if isinstance(rows, str | Path)}
    rows: Any = {role: rows_of(rows) for role, rows in given.items() if not isinstance(rows, str | Path | None)}
    chosen = make_config(config, settings, fixed)
    with _process():
        loaded = load_task(chosen.task, chosen.run.seed, rows=rows) if rows else None
        return result_of(place, module.finetune(chosen, loaded).measures)


def known_task(task: Any) -> bool:
    """Whether `task` is the name of one, and no file. Raises UserError where it is neither."""
    if not isinstance(task, str) or Path(task).expanduser().is_file():
        return False
    if Path(task).suffix or len(Path(task).parts) > 1:
        raise UserError(f"{task}: no such file; give a file of rows, or the name of a known task")
    return bool(task_spec(task))


def _on_text(
    stage: Callable[[Config], TrainResult],
    text: Any,
    validation: Any,
    place: Path,
    config: str | Path | Config | None,
    settings: Mapping[str, Any],
    fixed: Mapping[str, Any],
    tokenizer: str,
) -> Result:
    """The result of a stage on text, which is prepared first unless it is the folder of a prepared corpus."""
    whole = {"run.output": str(place), **fixed}
    with _process():
        if isinstance(text, str | Path) and (Path(text) / "train" / INDEX).is_file():
            if validation is not None:
                raise UserError(f"validation: {text} is a prepared corpus with held-out text of its own; leave it out")
            chosen = make_config(config, settings, {**whole, "corpus.folder": str(text)})
        else:
            corpus = make_config(config, settings, {}).corpus
            column, on_error = corpus.text_column, corpus.on_error
            whole |= {"corpus.folder": str(place / INPUTS_FOLDER / "corpus"), "corpus.tokenizer": tokenizer}
            whole["corpus.train"] = text_sources(text, place, "train", column, on_error=on_error)
            if validation is not None:
                whole["corpus.validation"] = text_sources(
                    validation, place, "validation", column, on_error=on_error, argument="validation"
                )
            chosen = make_config(config, settings, whole)
            with prepare_display(chosen.logging.progress) as display:
                prepare_splits(chosen.corpus, load_tokenizer(tokenizer), display)
        found = stage(chosen)
        return result_of(place, found.evaluations.get(found.step, {}))


@contextlib.contextmanager
def _process() -> Iterator[None]:
    """Compiled programs are kept; an interrupted run, whose state is saved, interrupts the caller."""
    startup.enable_compilation_cache()
    try:
        yield
    except PreemptedError as error:
        raise KeyboardInterrupt("the run's state is saved; the same call continues it") from error
