"""The tasks by name, each one value: its kind, classes, official measures, and where its data is published.

A data set of a known kind is added here, in `_PUBLISHED`.
"""

from __future__ import annotations

import difflib
from typing import Any

from distil_jax.data.rows import HubId
from distil_jax.errors import UserError
from distil_jax.tasks.data.columns import Columns, Published, SplitPlace, packed, split_places
from distil_jax.tasks.examples import TaskSpec
from distil_jax.tasks.kinds import TaskKind
from distil_jax.tasks.kinds.choice import CHOICE
from distil_jax.tasks.kinds.question import QUESTION
from distil_jax.tasks.kinds.sequence import CLASS_SETS, CLASSES, SCORES
from distil_jax.tasks.kinds.token import TAGS

CONVERTED = "refs/convert/parquet"  # scripts of old datasets are not run; the hub keeps their rows on this branch
INDEX = ("idx", "index", "id")
TWO_SENTENCES = Columns(("sentence1",), ("sentence2",), id=INDEX)
PREMISES = Columns(("premise", "sentence1"), ("hypothesis", "sentence2"), ("label", "gold_label"), ("idx", "index"))
TAGGED_WORDS = Columns(("tokens", "words"), label=("ner_tags", "ner", "tags"), id=("id",))
FOUR_ENDINGS = ("ending0", "ending1", "ending2", "ending3")
ENTAILMENT = ("entailment", "neutral", "contradiction")
PAIR_ENTAILMENT = ("entailment", "not_entailment")
MNLI_SPLITS = (
    SplitPlace("train", "train", ("train.tsv",), ("train",)),
    SplitPlace("validation", "matched", ("dev_matched.tsv",), ("validation_matched",)),
    SplitPlace("validation", "mismatched", ("dev_mismatched.tsv",), ("validation_mismatched",)),
    SplitPlace("test", "matched", ("test_matched.tsv",), ("test_matched",)),
    SplitPlace("test", "mismatched", ("test_mismatched.tsv",), ("test_mismatched",)),
)


def _glue(
    title: str,
    columns: Columns,
    labels: tuple[str, ...] = (),
    metrics: tuple[str, ...] = ("accuracy",),
    *,
    kind: TaskKind[Any] = CLASSES,
    name: str = "",
    folders: tuple[str, ...] = (),
    server: dict[str, str] | None = None,
    numbers: bool = False,
    **published: Any,
) -> TaskSpec:
    """A task of the GLUE score.

    Args:
        title: "SST-2", also the name of its folder and of its file for the server.
        columns: of its rows.
        labels: names of the classes.
        metrics: official measures; the score is the mean of several.
        kind: of the task.
        name: "" is the title in small letters, without hyphens.
        folders: more names of its folder.
        server: files for the server by test set, where there are several.
        numbers: the server takes class numbers, not names.
        published: fields of `Published`.
    """
    name = name or title.lower().replace("-", "")
    return TaskSpec(
        name=name,
        title=title,
        kind=kind,
        metrics=metrics,
        labels=labels,
        headline=metrics if len(metrics) > 1 else (),
        server_file=server or {"test": f"{title}.tsv"},
        server_labels=tuple(map(str, range(len(labels)))) if numbers else (),
        published=Published(
            (HubId("nyu-mll/glue", name),), (*folders, title, name, title.lower()), columns, **published
        ),
    )


def _squad(name: str, version: str, *, unanswerable: bool) -> TaskSpec:
    files = split_places(packed(f"train-v{version}.json"), packed(f"dev-v{version}.json"), ())
    columns = Columns(("question",), ("context",), ("answers",), ("id",))
    rules = {"blank_text": True, "unanswerable": unanswerable}
    source = Published((HubId(f"rajpurkar/{name}"),), (name, "squad", "SQuAD"), columns, files, rules=rules)
    return TaskSpec(name, f"SQuAD {version}", QUESTION, headline=("squad_f1",), published=source)


def _bio(*types: str) -> tuple[str, ...]:
    return ("O", *(f"{mark}-{kind}" for kind in types for mark in "BI"))


_PUBLISHED = (
    _glue(
        "CoLA",
        Columns(("sentence",), id=INDEX, positions=("source", "label", "mark", "sentence")),
        ("unacceptable", "acceptable"),
        ("matthews",),
        numbers=True,
    ),
    _glue("SST-2", Columns(("sentence",), id=INDEX), ("negative", "positive"), numbers=True),
    _glue(
        "MRPC",
        Columns(("sentence1", "#1 String"), ("sentence2", "#2 String"), ("label", "Quality"), ("idx", "index")),
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        numbers=True,
    ),
    _glue(
        "STS-B",
        Columns(("sentence1",), ("sentence2",), ("label", "score"), INDEX),
        metrics=("pearson", "spearman"),
        kind=SCORES,
        rules={"limits": (0.0, 5.0)},
    ),
    _glue(
        "QQP",
        Columns(("question1",), ("question2",), ("label", "is_duplicate"), INDEX),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        numbers=True,
        flawed=True,
        rules={"blank_text": True},
    ),
    _glue(
        "MNLI",
        PREMISES,
        ENTAILMENT,
        server={"matched": "MNLI-m.tsv", "mismatched": "MNLI-mm.tsv"},
        splits=MNLI_SPLITS,
    ),
    _glue("QNLI", Columns(("question",), ("sentence",), id=INDEX), PAIR_ENTAILMENT),
    _glue("RTE", TWO_SENTENCES, PAIR_ENTAILMENT),
    _glue("WNLI", TWO_SENTENCES, PAIR_ENTAILMENT[::-1], numbers=True),
    _glue(
        "AX",
        PREMISES,
        ENTAILMENT,
        ("matthews",),
        folders=("diagnostic",),
        splits=(SplitPlace("test", "test", ("diagnostic.tsv", "AX.tsv"), ("test",)),),
    ),
    TaskSpec(
        "imdb",
        "IMDb",
        CLASSES,
        ("accuracy",),
        labels=("neg", "pos"),
        published=Published(
            (HubId("stanfordnlp/imdb"),),
            ("imdb", "IMDb", "aclImdb"),
            Columns(("text",), id=("id",)),
            split_places(packed("train.jsonl"), (), packed("test.jsonl")),
            text_files=True,
        ),
    ),
    _squad("squad", "1.1", unanswerable=False),
    _squad("squad_v2", "2.0", unanswerable=True),
    TaskSpec(
        "wnut17",
        "WNUT-17",
        TAGS,
        labels=_bio("corporation", "creative-work", "group", "location", "person", "product"),
        published=Published(
            (HubId("leondz/wnut_17"), HubId("leondz/wnut_17", revision=CONVERTED)),
            ("wnut17", "WNUT17", "wnut_17", "ner"),
            TAGGED_WORDS,
            split_places(
                ("wnut17train.conll", "train.txt"),
                ("emerging.dev.conll", "dev.txt"),
                ("emerging.test.annotated", "emerging.test.conll", "test.txt"),
            ),
        ),
    ),
    TaskSpec(
        "conll2003",
        "CoNLL-2003",
        TAGS,
        labels=_bio("PER", "ORG", "LOC", "MISC"),
        published=Published(
            (HubId("lhoestq/conll2003"), HubId("eriktks/conll2003", revision=CONVERTED)),
            ("conll2003", "CoNLL-2003", "CoNLL2003", "conll03", "ner"),
            TAGGED_WORDS,
            split_places(("train.txt", "eng.train"), ("valid.txt", "dev.txt", "eng.testa"), ("test.txt", "eng.testb")),
            rules={"iob2": True},
        ),
    ),
    TaskSpec(
        "swag",
        "SWAG",
        CHOICE,
        published=Published(
            (HubId("allenai/swag", "regular"),),
            ("swag", "SWAG"),
            Columns(("sent1",), ("sent2",), endings=(FOUR_ENDINGS,)),
            split_places(
                ("train.csv", "train.jsonl", "train.json"),
                ("val.csv", "val.jsonl", "val.json"),
                ("test.csv", "test.jsonl", "test.json"),
            ),
        ),
    ),
    TaskSpec(
        "codah",
        "CODAH",
        CHOICE,
        published=Published(
            (HubId("jaredfern/codah", "fold_0"), HubId("jaredfern/codah", "fold_0", CONVERTED)),
            ("codah", "CODAH", "multiple_choice"),
            Columns(
                ("question_propmt", "question_prompt", "prompt"),  # the first is how the dataset spells it
                label=("correct_answer_idx", "label"),
                id=("id",),
                endings=(("candidate_answers",), FOUR_ENDINGS),
                positions=("category", "prompt", *FOUR_ENDINGS, "label"),
            ),
            split_places(
                ("codah_fold0_train.tsv", "train.tsv"),
                ("codah_fold0_dev.tsv", "dev.tsv"),
                ("codah_fold0_test.tsv", "test.tsv"),
            ),
        ),
    ),
)
_OWN = (
    TaskSpec("classification", "Classification", CLASSES),
    TaskSpec("regression", "Regression", SCORES),
    TaskSpec("multilabel", "Multilabel", CLASS_SETS),
    TaskSpec("tagging", "Tagging", TAGS),
    TaskSpec("question", "Question answering", QUESTION, headline=("squad_f1",)),
    TaskSpec("choice", "Multiple choice", CHOICE),
)
TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in (*_PUBLISHED, *_OWN)}


def glue_tasks() -> list[str]:
    """The nine tasks of the GLUE score, in the order of its leaderboard."""
    return ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


def own_task(kind: TaskKind[Any]) -> TaskSpec:
    """The task of a kind with rows of one's own."""
    return next(spec for spec in _OWN if spec.kind is kind)


def task_spec(name: str) -> TaskSpec:
    """The task of that name. Raises UserError, with the nearest name, where there is none."""
    if not name:
        raise UserError(f"task.name is not set; set it to one of {', '.join(TASKS)}")
    if name not in TASKS:
        near = difflib.get_close_matches(name.lower().replace("-", ""), TASKS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one"
        raise UserError(f"task.name: no task {name!r}; {hint} (there are {', '.join(TASKS)})")
    return TASKS[name]
