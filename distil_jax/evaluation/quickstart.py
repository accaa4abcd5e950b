"""The whole flow on a small scale: text, vocabulary, teacher, student, students with less of the teacher, table.

Every stage is an ordinary resumable run in its own folder, so a second call continues where the first stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from distil_jax.config import Config, load_config, with_overrides
from distil_jax.data.corpus import open_corpus, prepare_splits, train_wordpiece
from distil_jax.errors import UserError, writing
from distil_jax.evaluation.heldout import LanguageModel, evaluate_model, fill_mask, load_language_model
from distil_jax.evaluation.python_text import write_python_text
from distil_jax.evaluation.report import measures_table
from distil_jax.evaluation.run_report import REPORT_FILE, try_report
from distil_jax.export import encoder_latency, export
from distil_jax.hf import Tokenizer, load_tokenizer, save_tokenizer
from distil_jax.runs import prepare_display, write_atomically
from distil_jax.tables import markdown
from distil_jax.training.distill import distill
from distil_jax.training.pretrain import pretrain

VOCABULARY = 4096
SENTENCE = "Return the [MASK] of the given string."
TEACHER = "teacher"
START = "student at initialisation"
# label -> (folder, changes to the shipped configuration): the student, and one that never saw the teacher
STUDENTS: dict[str, tuple[str, dict[str, object]]] = {
    "student, distilled": ("student", {}),
    "student, without a teacher": (
        "student_alone",
        {"objective.kl": 0.0, "objective.cosine": 0.0, "student.init": "random"},
    ),
}


def make_quickstart(folder: Path, *, steps: Mapping[str, int] | None = None) -> str:
    """Run every stage that is not done yet below `folder`; the table.

    Args:
        folder: made if missing; must be new, or that of an earlier quickstart.
        steps: training steps of "quickstart_teacher" and "quickstart", instead of those of the shipped configurations.

    Raises:
        UserError: the folder holds other files or cannot be written.
    """
    _check_folder(folder)
    result = folder / "results.json"
    if (found := _measured(result)) is not None:
        return f"{folder}: everything is done already; delete it to start over\n\n{_describe(folder, found)}"
    tokenizer = _prepare(folder)
    _say("2/4 teacher: a masked language model from scratch")
    pretrain(_config(folder, "quickstart_teacher", "teacher", steps, {}))
    export(folder / "teacher_run", folder / "teacher", overwrite=True)
    _say("3/4 student: distilled from the teacher, and for comparison trained for as many steps without it")
    for name, changes in STUDENTS.values():
        distill(_config(folder, "quickstart", name, steps, changes))
        export(folder / f"{name}_run", folder / name, overwrite=True)
    _say("4/4 measuring")
    found = _measure(folder, tokenizer)
    write_atomically(result, json.dumps(found, indent=2) + "\n")
    try_report(folder)
    return _describe(folder, found)


def _measured(result: Path) -> dict[str, dict[str, object]] | None:
    """The measures of an earlier quickstart; None without such a file or where it is incomplete."""
    try:
        return json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check_folder(folder: Path) -> None:
    marker = folder / "text"
    with writing(folder, "choose another with --output"):
        if folder.is_dir() and any(folder.iterdir()) and not marker.is_dir():
            raise UserError(f"{folder}: not empty and not a quickstart; choose another with --output")
        marker.mkdir(parents=True, exist_ok=True)


def _prepare(folder: Path) -> Tokenizer:
    _say("1/4 text: docstrings and help topics of this Python, and a WordPiece vocabulary trained on them")
    train, _ = write_python_text(folder / "text")
    if not (folder / "tokenizer" / "vocab.txt").is_file():  # written last
        tokenizer = train_wordpiece(train.read_text(encoding="utf-8").splitlines(), VOCABULARY)
        save_tokenizer(folder / "tokenizer", tokenizer)
    tokenizer = load_tokenizer(folder / "tokenizer")
    config = _config(folder, "quickstart", "student", None, {})
    with prepare_display(config.logging.progress) as display:
        prepare_splits(config.corpus, tokenizer, display)
    return tokenizer


def _config(
    folder: Path, name: str, run: str, steps: Mapping[str, int] | None, changes: Mapping[str, object]
) -> Config:
    """A shipped configuration with its paths moved below `folder`."""
    places = {
        "run.output": str(folder / f"{run}_run"),
        "corpus.folder": str(folder / "corpus"),
        "corpus.train": (str(folder / "text" / "train.txt"),),
        "corpus.validation": (str(folder / "text" / "validation.txt"),),
        "corpus.tokenizer": str(folder / "tokenizer"),
    }
    if name == "quickstart":
        places["teacher.path"] = str(folder / "teacher")
    if steps is not None:
        places["training.steps"] = steps[name]  # type: ignore[assignment]
    return with_overrides(load_config(name), {**places, **changes})


def _measure(folder: Path, tokenizer: Tokenizer) -> dict[str, dict[str, object]]:
    """label -> {"measures", "fill"} of the four models, on the held-out text."""
    from distil_jax.training.distill import initial_student

    corpus = open_corpus(folder / "corpus" / "validation")
    teacher = load_language_model(str(folder / "teacher"))
    config = _config(folder, "quickstart", "student", None, {})
    encoder, params = initial_student(config)
    models: dict[str, tuple[LanguageModel, Path | None]] = {
        TEACHER: (teacher, folder / "teacher"),
        START: (LanguageModel(encoder, params, tokenizer), None),
    }
    for label, (name, _) in STUDENTS.items():
        models[label] = (load_language_model(str(folder / name)), folder / name)
    found = {}
    for label, (model, place) in models.items():
        reference = None if model is teacher else teacher
        measures = evaluate_model(model, corpus, teacher=reference, masking=config.masking)
        measures["parameters"] = float(model.num_parameters)
        measures["latency"] = encoder_latency(model.encoder, model.params)
        if place is not None:
            measures["megabytes"] = (place / "model.safetensors").stat().st_size / 1e6
        found[label] = {"measures": measures, "fill": fill_mask(model, SENTENCE, top=3)}
    return found


def _describe(folder: Path, found: Mapping[str, Mapping[str, object]]) -> str:
    table = measures_table({label: dict(row["measures"]) for label, row in found.items()})  # type: ignore[call-overload]
    fills = [
        [label, ", ".join(f"{token} {probability:.0%}" for token, probability in row["fill"])]  # type: ignore[attr-defined]
        for label, row in found.items()
    ]
    return (
        f"{table}\n\n"
        "On all held-out rows; the lines above are of the first 256. A time of one sentence varies by some tenths.\n\n"
        f"{markdown(['', SENTENCE], fills)}\n\n"
        f"report: {folder / REPORT_FILE}\n"
        f"models for transformers: {folder / 'teacher'} and {folder / 'student'}\n"
        "next, with text of your own:\n"
        "  distil-jax prepare --corpus.tokenizer google-bert/bert-base-uncased \\\n"
        "      --corpus.folder data/mine --corpus.train 'text/*.txt'\n"
        "  distil-jax distill --config hidden --teacher.path google-bert/bert-base-uncased \\\n"
        "      --corpus.folder data/mine --run.output runs/mine"
    )
