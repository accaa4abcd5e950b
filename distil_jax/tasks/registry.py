"""The tasks by name: which head each needs, its classes and its official measures. Their data is in `official`."""

from __future__ import annotations

import difflib

from distil_jax.errors import UserError
from distil_jax.tasks.examples import TaskSpec
from distil_jax.tasks.kinds.choice import CHOICE
from distil_jax.tasks.kinds.question import QUESTION
from distil_jax.tasks.kinds.sequence import CLASS_SETS, CLASSES, SCORES
from distil_jax.tasks.kinds.token import TAGS

ENTAILMENT = ("entailment", "neutral", "contradiction")
WNUT_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
CONLL_TYPES = ("PER", "ORG", "LOC", "MISC")


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
        kind=CLASSES,
        metrics=metrics,
        labels=labels,
        headline=metrics if len(metrics) > 1 else (),
        server_file=files,
        server_labels=tuple(map(str, range(len(labels)))) if files and numbers else (),
    )


_ALL = (
    _classes("cola", "CoLA", ("unacceptable", "acceptable"), ("matthews",), server="CoLA.tsv"),
    _classes("sst2", "SST-2", ("negative", "positive"), server="SST-2.tsv"),
    _classes("mrpc", "MRPC", ("not_equivalent", "equivalent"), ("accuracy", "f1"), server="MRPC.tsv"),
    TaskSpec(
        "stsb",
        "STS-B",
        SCORES,
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
    TaskSpec("squad", "SQuAD 1.1", QUESTION, headline=("squad_f1",)),
    TaskSpec("squad_v2", "SQuAD 2.0", QUESTION, headline=("squad_f1",)),
    TaskSpec("wnut17", "WNUT-17", TAGS, labels=_bio(WNUT_TYPES)),
    TaskSpec("conll2003", "CoNLL-2003", TAGS, labels=_bio(CONLL_TYPES)),
    TaskSpec("swag", "SWAG", CHOICE),
    TaskSpec("codah", "CODAH", CHOICE),
    TaskSpec("classification", "Classification", CLASSES),
    TaskSpec("regression", "Regression", SCORES),
    TaskSpec("multilabel", "Multilabel", CLASS_SETS),
    TaskSpec("tagging", "Tagging", TAGS),
    TaskSpec("question", "Question answering", QUESTION, headline=("squad_f1",)),
    TaskSpec("choice", "Multiple choice", CHOICE),
)
_SPECS = {spec.name: spec for spec in _ALL}
