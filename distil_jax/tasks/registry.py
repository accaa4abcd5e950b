"""The tasks by name: which head each needs, its classes and its official measures. Their data is in `official`."""

from __future__ import annotations

import difflib
from typing import Literal

from distil_jax.errors import UserError
from distil_jax.tasks.examples import TaskSpec

ENTAILMENT = ("entailment", "neutral", "contradiction")
WNUT_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
CONLL_TYPES = ("PER", "ORG", "LOC", "MISC")
ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall")
TAG_METRICS = ("tag_accuracy",)  # of tags that mark no entities
SPAN_METRICS = ("exact_match", "squad_f1")


def glue_tasks() -> list[str]:
    """The nine tasks of the GLUE score, in the order of its leaderboard."""
    return ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


def task_spec(name: str) -> TaskSpec:
    """The task of that name. Raises UserError, with the nearest name, where there is none."""
    if not name:
        raise UserError(f"task.name is not set; set it to one of {', '.join(_SPECS)}")
    if name not in _SPECS:
        near = difflib.get_close_matches(name.lower().replace("-", ""), _SPECS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one"
        raise UserError(f"task.name: no task {name!r}; {hint} (there are {', '.join(_SPECS)})")
    return _SPECS[name]


def _bio(types: tuple[str, ...]) -> tuple[str, ...]:
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def _classes(
    name: str,
    title: str,
    labels: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    *,
    server: str | dict[str, str] = "",
    numbers: bool = True,
) -> TaskSpec:
    """A task of one class a text. `server`: prediction file(s); `numbers`: the server wants the number of the class."""
    files = {"test": server} if isinstance(server, str) and server else dict(server or {})
    return TaskSpec(
        name=name,
        title=title,
        kind="sequence",
        problem="single_label_classification",
        metrics=metrics,
        labels=labels,
        headline=metrics if len(metrics) > 1 else (),
        server_file=files,
        server_labels=tuple(map(str, range(len(labels)))) if files and numbers else (),
    )


def _own(
    name: str,
    problem: Literal["single_label_classification", "multi_label_classification", "regression"],
    metrics: tuple[str, ...],
) -> TaskSpec:
    return TaskSpec(name, name.capitalize(), "sequence", problem, metrics)


_ALL = (
    _classes("cola", "CoLA", ("unacceptable", "acceptable"), ("matthews",), server="CoLA.tsv"),
    _classes("sst2", "SST-2", ("negative", "positive"), server="SST-2.tsv"),
    _classes("mrpc", "MRPC", ("not_equivalent", "equivalent"), ("accuracy", "f1"), server="MRPC.tsv"),
    TaskSpec(
        "stsb",
        "STS-B",
        "sequence",
        "regression",
        ("pearson", "spearman"),
        headline=("pearson", "spearman"),
        server_file={"test": "STS-B.tsv"},
    ),
    _classes("qqp", "QQP", ("not_duplicate", "duplicate"), ("accuracy", "f1"), server="QQP.tsv"),
    _classes("mnli", "MNLI", ENTAILMENT, server={"matched": "MNLI-m.tsv", "mismatched": "MNLI-mm.tsv"}, numbers=False),
    _classes("qnli", "QNLI", ("entailment", "not_entailment"), server="QNLI.tsv", numbers=False),
    _classes("rte", "RTE", ("entailment", "not_entailment"), server="RTE.tsv", numbers=False),
    _classes("wnli", "WNLI", ("not_entailment", "entailment"), server="WNLI.tsv"),
    _classes("ax", "AX", ENTAILMENT, ("matthews",), server="AX.tsv", numbers=False),
    _classes("imdb", "IMDb", ("neg", "pos")),
    TaskSpec("squad", "SQuAD 1.1", "question", metrics=SPAN_METRICS, headline=("squad_f1",)),
    TaskSpec("squad_v2", "SQuAD 2.0", "question", metrics=SPAN_METRICS, headline=("squad_f1",)),
    TaskSpec("wnut17", "WNUT-17", "token", metrics=ENTITY_METRICS, labels=_bio(WNUT_TYPES)),
    TaskSpec("conll2003", "CoNLL-2003", "token", metrics=ENTITY_METRICS, labels=_bio(CONLL_TYPES)),
    TaskSpec("swag", "SWAG", "choice"),
    TaskSpec("codah", "CODAH", "choice"),
    _own("classification", "single_label_classification", ("accuracy", "macro_f1")),
    _own("regression", "regression", ("pearson", "spearman")),
    _own("multilabel", "multi_label_classification", ("micro_f1", "macro_f1", "accuracy")),
    TaskSpec("tagging", "Tagging", "token", metrics=ENTITY_METRICS),
    TaskSpec("question", "Question answering", "question", metrics=SPAN_METRICS, headline=("squad_f1",)),
    TaskSpec("choice", "Multiple choice", "choice"),
)
_SPECS = {spec.name: spec for spec in _ALL}
