"""Rows that exported files are checked with: given ones, the validation set of a task, or built-in sentences."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.data.corpus import lines_of
from distil_jax.data.rows import Faults
from distil_jax.errors import UserError
from distil_jax.export.source import Source
from distil_jax.tasks import (
    SCORE,
    Encoded,
    Logits,
    encoded_texts,
    kind_of,
    load_task,
    read_requests,
    rows_to_predict,
    task_spec,
    validation_measures,
)

_SENTENCES = (
    "The train to the coast leaves at seven in the morning and arrives before noon.",
    "I did not like the film at all, although the music was beautiful.",
    "Heat the oil, add the onions and let them cook slowly for twenty minutes.",
    "Who wrote the letter that was found in the old house?",
    "The company reported a profit of 3.4 million dollars in the second quarter.",
    "It rained.",
    "Researchers at the university measured the temperature of the lake every day for two years.",
    "She opened the window, looked at the street, and closed it again without a word.",
    "Please send me the invoice by Friday, or call the office if anything is missing.",
    "The committee rejected the proposal because its costs could not be estimated.",
    "A good dictionary explains a word, shows how it is used, and says where it came from.",
    "Nothing in the report suggests that the bridge was unsafe, but it will be inspected next month, together with the "
    "two tunnels north of the river and the road that connects them with the harbour.",
)


@dataclasses.dataclass(frozen=True)
class CheckRows:
    """Rows to compare outputs on.

    Attributes:
        about: what they are, for people.
        encoded: the rows.
        score: (logits of each row) -> the score of the task, as a share; None: labels are not known.
        enough: whether they can say that a file loses a point or so, which the few built-in sentences cannot.
    """

    about: str
    encoded: Encoded
    score: Callable[[Logits], float] | None = None
    enough: bool = True


def check_rows(source: Source, file: str, task: TaskSettings | None, most: int) -> CheckRows:
    """The rows that a model's files are checked with.

    Args:
        source: the model.
        file: rows as `predict --input` reads them, for a model without a task texts as `prepare` does; "": none.
        task: whose validation set is used where no file is given; None: the one that the model was fine-tuned on.
        most: examples at most, drawn with a fixed seed; 0: all.

    Raises:
        UserError: rows or a task that cannot be read, or that do not fit the model.
    """
    if file:
        return _of_texts(source, _texts(file, most), file) if source.ready is None else _of_file(source, file, most)
    settings = task or source.task
    if settings is not None:
        if source.ready is None:
            raise UserError(f"--task {settings.name}: the model has no task head; leave it out")
        return _of_task(source, settings, most)
    return _built_in(source)


def _built_in(source: Source) -> CheckRows:
    about = f"{len(_SENTENCES)} built-in sentences"
    if source.ready is None:
        return dataclasses.replace(_of_texts(source, list(_SENTENCES), about), enough=False)
    pair = source.ready.reading.pairs
    examples = [_example(source, number, bool(pair)) for number in range(len(_SENTENCES))]
    encoded = kind_of(source.ready.head).encode(source.tokenizer, examples, source.ready.settings)
    return CheckRows(about, encoded, enough=False)


def _example(source: Source, number: int, pair: bool) -> Any:
    """A built-in sentence as an example of the model's kind."""
    assert source.head is not None

    def text(words: int = 0) -> str:
        found = _SENTENCES[(number + next(used)) % len(_SENTENCES)]
        return " ".join(found.split()[:words]) if words else found

    used = itertools.count()
    return kind_of(source.head).synthetic(str(number), text, max(source.head.num_outputs, 2), pair)


def _texts(file: str, most: int) -> list[str]:
    lines = lines_of([file], ["text"], "stop")
    found = list(itertools.islice(lines, most or None))
    if not found:
        raise UserError(f"--check {file}: holds no text; check it")
    return found


def _of_texts(source: Source, texts: Sequence[str], about: str) -> CheckRows:
    limit = source.encoder.max_length
    if source.pooling is not None and source.pooling.max_length:
        limit = min(limit, source.pooling.max_length)
    return CheckRows(about, encoded_texts(source.tokenizer, texts, limit))


def _of_file(source: Source, file: str, most: int) -> CheckRows:
    ready = source.ready
    assert ready is not None
    faults = Faults(False, "")
    rows = rows_to_predict(Path(file), ready.reading, faults, ready.head.labels)
    requests = read_requests(rows, ready.reading, faults, rows.name, rows.unit)
    examples = [request.example for request in itertools.islice(requests, most or None)]
    if not examples:
        raise UserError(f"--check {file}: holds no row; check it")
    return CheckRows(file, kind_of(ready.head).encode(source.tokenizer, examples, ready.settings))


def _of_task(source: Source, given: TaskSettings, most: int) -> CheckRows:
    ready, spec = source.ready, task_spec(given.name)
    assert ready is not None
    kind, own = spec.kind, ready.settings
    if kind.head != ready.head.kind or not kind.fits(ready.head):
        raise UserError(f"--task {given.name}: is a task of {kind.reads}, the model's is another; choose another task")
    kept = {name: getattr(own, name) for name in kind.settings}
    settings = dataclasses.replace(given, max_length=own.max_length, **kept)
    known = ready.head.labels if kind.has_classes and not (spec.labels or settings.labels) else ()
    data = load_task(settings, source.seed, known)
    name, examples = next(iter(data.validation.items()), ("", []))
    if not examples:
        raise UserError(f"--task {given.name}: has no validation set; give rows with --check")
    order = _order(data.labels, ready.head.labels, given.name)
    if most and len(examples) > most:
        chosen = np.sort(np.random.default_rng(0).choice(len(examples), most, replace=False))
        examples = [examples[number] for number in chosen]
    data = dataclasses.replace(data, validation={name: examples})
    encoded = kind.encode(source.tokenizer, examples, settings)

    def score(logits: Logits) -> float:
        ordered = logits if order is None else [one[..., order] for one in logits]
        return validation_measures(data, settings, {name: encoded}, lambda _: ordered)[SCORE]

    return CheckRows(f"{len(examples):,} validation examples of {spec.title}", encoded, score)


def _order(wanted: Sequence[str], own: Sequence[str], task: str) -> list[int] | None:
    """Which of the model's outputs stands for each of the task's labels; None: in their order."""
    if not wanted or tuple(wanted) == tuple(own):
        return None
    places = {name.casefold(): place for place, name in enumerate(own)}
    found = [places.get(str(name).casefold(), -1) for name in wanted]
    if sorted(found) == [*range(len(own))]:
        return found
    raise UserError(
        f"--task {task}: has the labels {', '.join(map(str, wanted))}, the model has {', '.join(own) or 'none'}; "
        "choose another task, or give rows with --check"
    )
