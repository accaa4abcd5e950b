"""How a fine-tuned model predicts, beside its parameters: kept in the config.json of the folder it is exported to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distil_jax.config import Config, TaskSettings, with_overrides
from distil_jax.errors import UserError
from distil_jax.tasks import PredictionOptions, TaskKind, reading_of

KEY = "distil_jax"  # in config.json; transformers keeps keys that it does not know
_NO_ANSWER, _PAIRS = "no_answer", "pairs"
_COLUMNS = ("name", "text", "pair", "id", "endings")  # the task, and what it calls its columns


def prediction_options(settings: TaskSettings, description: Mapping[str, Any]) -> PredictionOptions:
    """What a fine-tuned model says about a question.

    Args:
        settings: it was fine-tuned with.
        description: in its checkpoint's metadata.
    """
    no_answer = settings.name == "squad_v2" or bool(description.get(_NO_ANSWER))
    return PredictionOptions(no_answer=no_answer, null_threshold=settings.null_threshold)


def to_config_json(settings: TaskSettings, options: PredictionOptions, kind: TaskKind[Any]) -> dict[str, Any]:
    """Fields to add to config.json: what `from_config_json` reads.

    They are the length of rows; the task and its columns, where they are not the usual ones; of texts whether they are
    pairs, of choices whether their endings have a start; of questions windows, spans and when there is no answer.
    """
    fields: dict[str, Any] = {"max_length": kind.row_length(settings)}
    fields |= {name: x for name in _COLUMNS if (x := getattr(settings, name)) != getattr(TaskSettings(), name)}
    pairs = reading_of(settings, kind).pairs
    if pairs is not None:
        fields[_PAIRS] = pairs
    fields |= {name: getattr(settings, name) for name in kind.settings}
    if kind.may_lack_answer:
        fields[_NO_ANSWER] = options.no_answer
    return {KEY: fields}


def own_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Of the contents of a config.json what `to_config_json` has added, as it stands there; empty: nothing."""
    return {KEY: raw[KEY]} if KEY in raw else {}


def from_config_json(
    raw: Mapping[str, Any], kind: TaskKind[Any], where: str
) -> tuple[TaskSettings, PredictionOptions, bool | None] | None:
    """What `to_config_json` has added; None for a folder that something else has written.

    The last part is `Reading.pairs`. A key that is missing has its default (of `Reading.pairs` None), one that is not
    known is left alone, so that versions read each other.

    Args:
        raw: contents of config.json.
        kind: of the model.
        where: the file, for messages.

    Raises:
        UserError: a value that cannot be one.
    """
    fields = raw.get(KEY)
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: {KEY} holds {type(fields).__name__}, expected an object; export the run again")
    no_answer, pairs = fields.get(_NO_ANSWER, False), fields.get(_PAIRS)
    for name, value in ((_NO_ANSWER, no_answer), (_PAIRS, pairs)):
        if name in fields and not isinstance(value, bool):
            raise UserError(f"{where}: {KEY}.{name} must be true or false; export the run again")
    names = ("max_length", *_COLUMNS, *kind.settings)
    try:
        settings = with_overrides(Config(), {f"task.{name}": fields[name] for name in names if name in fields}).task
    except UserError as error:
        raise UserError(f"{where}: {KEY}: {error}") from error
    return settings, PredictionOptions(no_answer=no_answer, null_threshold=settings.null_threshold), pairs
