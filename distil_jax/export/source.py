"""What is exported: a model with all that its folder holds, from a run or from a model folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distil_jax.config import TaskSettings
from distil_jax.export.card import CURVES_FILE, card_of_folder, card_pictures, curves_picture, model_card
from distil_jax.export.checkpoint import Trained, run_at
from distil_jax.export.prediction_settings import own_fields, to_config_json
from distil_jax.export.task_models import ReadyModel, read_ready, ready_from
from distil_jax.hf import (
    FAMILIES,
    Tokenizer,
    load_tokenizer,
    locate,
    named_kind,
    read_json,
    read_pooling,
    read_pretrained,
)
from distil_jax.models import HEADS, EncoderConfig, Pooling, TaskHead
from distil_jax.tasks import kind_of, task_spec


@dataclasses.dataclass(frozen=True)
class Source:
    """A model with all that its folder holds.

    Attributes:
        encoder: sizes.
        params: NumPy float32.
        tokenizer: of the model.
        head: its task head; None: a masked language model or an encoder.
        pooling: how it makes one vector of a text; None: it makes none.
        readme: the model card.
        extra: further fields of config.json.
        ready: how a model with a task head reads rows; None: it has no task.
        task: the task that it was fine-tuned on; None: that is not known, or its rows were in memory.
        seed: of the run that set examples of the task aside.
        step: of the checkpoint; None: it was a model folder.
        pictures: SVG files that the card shows, by name.
    """

    encoder: EncoderConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    head: TaskHead | None
    pooling: Pooling | None
    readme: str
    extra: Mapping[str, Any]
    ready: ReadyModel | None = None
    task: TaskSettings | None = None
    seed: int = 0
    step: int | None = None
    pictures: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def has_logits(self) -> bool:
        """False for an encoder without a head, which decides nothing."""
        return self.head is not None or "mlm_head" in self.params

    @property
    def input_names(self) -> tuple[str, ...]:
        """What a file of the model reads; token_type_ids only where the family's tokenizers give them."""
        reads_types = FAMILIES[self.encoder.family].reads_token_types and self.encoder.type_vocab_size > 1
        return ("input_ids", "attention_mask", *(("token_type_ids",) if reads_types else ()))

    @property
    def output_names(self) -> tuple[str, ...]:
        """What a file of the model gives; the vectors of texts only where the model pools."""
        if self.has_logits:
            return (HEADS[self.head.kind].output_names if self.head is not None else ()) or ("logits",)
        return ("last_hidden_state", *(("sentence_embedding",) if self.pooling is not None else ()))


def read_source(path: str | Path, step: int | None = None, name: str = "") -> Source:
    """The model of a run, a model folder or a hub id.

    Args:
        path: folder or hub id.
        step: which checkpoint of a run; None: its result.
        name: what the card of a run's model calls it.

    Raises:
        UserError: none of these, or files that cannot be used.
        FaultError: the checkpoint is damaged.
    """
    trained = run_at(path, step)
    if trained is not None:
        return source_of_run(trained, name or Path(path).name)
    folder = locate(path)
    raw = read_json(folder / "config.json")
    card = card_of_folder(folder, name or Path(path).name)
    about = {"readme": card, "extra": own_fields(raw), "pictures": card_pictures(folder)}
    if named_kind(raw) is not None:
        ready = read_ready(path)
        model = ready.encoder, ready.params, ready.tokenizer, ready.head
        return Source(*model, None, **about, ready=ready)
    encoder, params, *_ = read_pretrained(folder)
    tokenizer, pooling = load_tokenizer(path), read_pooling(locate(path, files="sentence"))
    return Source(encoder, params, tokenizer, None, pooling, **about)


def source_of_run(trained: Trained, name: str) -> Source:
    """What `read_run` has read, with a card that calls it `name`."""
    config, head = trained.config, trained.head
    card = model_card(config, trained.encoder, trained.metadata, trained.step, name, head, trained.pooling)
    drawn = curves_picture(trained.metadata, trained.step)
    found = Source(
        trained.encoder,
        trained.params,
        trained.tokenizer,
        head,
        trained.pooling,
        card,
        extra={},
        step=trained.step,
        pictures={CURVES_FILE: drawn} if drawn else {},
    )
    if head is None:
        return found
    ready = ready_from(trained)
    assert ready.options is not None
    extra = to_config_json(config.task, ready.options, kind_of(head))
    task = config.task if _is_on_disk(config.task) else None
    return dataclasses.replace(found, extra=extra, ready=ready, task=task, seed=config.run.seed)


def _is_on_disk(task: TaskSettings) -> bool:
    """Whether a task's rows can be read again; false where a caller had them in memory."""
    return bool(task.source or task.train or task.validation or task_spec(task.name).published)
