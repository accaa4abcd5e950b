"""`distil-jax prune`: a task model with fewer neurons in its feed-forward parts, the ones that matter least left out.

How much a neuron matters is how much the loss changes with it, to first order: the mean over examples of
|d loss / d gate|, where the gate multiplies what the neuron gives (Michel, Levy and Neubig 2019, section 4, for heads;
Molchanov et al. 2017). That is |gradient x weight| summed over the weights that leave the neuron. The same number stays
in every layer, so that folders load in transformers. It has no place for a model with fewer attention heads of the same
width, so heads stay.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.config import Config, require
from distil_jax.errors import UserError
from distil_jax.export.card import card_of_folder, card_pictures
from distil_jax.export.prediction_settings import own_fields
from distil_jax.hf import load_tokenizer, locate, read_json, read_task_model, require_free, save_pretrained
from distil_jax.models import TaskModel
from distil_jax.runs import announce
from distil_jax.tables import markdown
from distil_jax.tasks import TaskBatch, choose_buckets, collate, evaluation_plan, kind_of, load_task
from distil_jax.training.task_models import check_lengths, check_vocabulary
from distil_jax.training.task_step import forward

_MULTIPLE = 8  # of which the width stays: what processors multiply at once
_BATCH = 32  # examples that are given to the device at once


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What `prune_model` has done: width of the feed-forward parts and parameters, before and after, examples used."""

    width: tuple[int, int]
    parameters: tuple[int, int]
    examples: int

    def table(self) -> str:
        """All of it in Markdown."""
        rows = [
            ["feed-forward width", *(f"{width:,}" for width in self.width)],
            ["parameters", *(f"{count:,}" for count in self.parameters)],
            ["MB of weights", *(f"{4e-6 * count:.1f}" for count in self.parameters)],
        ]
        return markdown(["", "before", "after"], rows)


def prune_model(config: Config) -> Pruned:
    """Write the task model `model.initial` with `pruning.feed_forward` of its neurons to `run.output`.

    Args:
        config: with model.initial (model folder or hub id), task.*, run.output and pruning.*.

    Raises:
        UserError: the model has no head for the task, nothing would go, or as `load_task` and `save_pretrained`.
    """
    require(config, "run.output", "model.initial", "task.name")
    require_free(config.run.output)
    source, settings = config.model.initial, config.pruning
    folder = locate(source)
    data = load_task(config.task, config.run.seed)
    announce(data.report.lines())
    kind = data.spec.kind
    model = read_task_model(folder, kind.head, labels=data.labels, problem=kind.problem)
    if model.is_new_head or model.head is None:
        raise UserError(f"{source}: has no head for {data.spec.name}; fine-tune it first (distil-jax finetune)")
    if not data.train:
        raise UserError(f"task {data.spec.name}: no training data by which neurons are judged; give task.train")
    check_lengths(config, data, source, model.config)
    tokenizer = load_tokenizer(source)
    check_vocabulary(source, model.config, tokenizer)
    width = model.config.intermediate_size
    kept_width = min(max(round(settings.feed_forward * width / _MULTIPLE), 1) * _MULTIPLE, width)
    if kept_width == width:
        raise UserError(f"pruning.feed_forward = {settings.feed_forward:g}: all {width} neurons would stay; lower it")
    order = np.random.default_rng(config.run.seed).permutation(len(data.train))[: settings.examples or None]
    encoded = kind.encode(tokenizer, [data.train[place] for place in order], config.task, training=True)
    batches = [
        collate(encoded, kind, rows, length, _BATCH)
        for length, rows in evaluation_plan(encoded.lengths, choose_buckets(encoded.lengths), _BATCH)
    ]
    importance = neuron_importance(TaskModel(model.config, model.head), model.params, batches)
    kept = np.sort(np.argsort(-importance, axis=1, kind="stable")[:, :kept_width], axis=1)
    params = without_neurons(model.params, kept)
    raw = read_json(folder / "config.json")
    save_pretrained(
        config.run.output,
        dataclasses.replace(model.config, intermediate_size=kept_width),
        params,
        head=model.head,
        tokenizer=tokenizer,
        readme=_card(folder, width, kept_width, data.spec.title),
        extra=own_fields(raw),
        files=card_pictures(folder),
    )
    before, after = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (model.params, params))
    return Pruned((width, kept_width), (before, after), len(order))


def neuron_importance(model: TaskModel, params: Any, batches: list[TaskBatch]) -> np.ndarray:
    """[layers, F] float64: of each neuron of the feed-forward parts, the mean of |d loss / d gate| over all rows.

    Args:
        model: of the task; nothing is dropped out.
        params: {"encoder", "task_head"}.
        batches: rows with labels, as `collate` makes them.
    """
    kind, shape = kind_of(model.head), (model.config.num_layers, model.config.intermediate_size)

    def loss(gates: jax.Array, params: Any, row: TaskBatch) -> jax.Array:
        return kind.loss(forward(model, _gated(params, gates), row.inputs)[1], row)

    def of_row(params: Any, row: TaskBatch) -> jax.Array:
        alone = jax.tree.map(lambda values: values[None], row)
        return jnp.abs(jax.grad(loss)(jnp.ones(shape), params, alone))

    def of_batch(params: Any, batch: TaskBatch) -> jax.Array:
        return jnp.sum(jax.lax.map(partial(of_row, params), batch), axis=0)

    compute, placed, total, count = jax.jit(of_batch), jax.device_put(params), np.zeros(shape), 0
    for batch in batches:
        rows = int((np.asarray(batch.token_share).reshape(len(batch.token_share), -1) > 0).any(axis=1).sum())
        total += rows * np.asarray(compute(placed, batch), np.float64)  # the loss is a mean over the batch's rows
        count += rows
    return total / max(count, 1)


def _gated(params: Any, gates: jax.Array) -> Any:
    """The parameters with the outputs of each neuron multiplied by its gate; gates [layers, F]."""
    encoder = dict(params["encoder"])
    for index, gate in enumerate(gates):
        layer = encoder[f"layer_{index}"]
        kernel = layer["ffn_out"]["kernel"] * gate[:, None]
        encoder[f"layer_{index}"] = {**layer, "ffn_out": {**layer["ffn_out"], "kernel": kernel}}
    return {**params, "encoder": encoder}


def without_neurons(params: Any, kept: np.ndarray) -> dict[str, Any]:
    """The parameters with the neurons `kept` [layers, width] of each layer alone."""
    encoder = dict(params["encoder"])
    for index, neurons in enumerate(kept):
        layer = encoder[f"layer_{index}"]
        first, second = layer["ffn_in"], layer["ffn_out"]
        encoder[f"layer_{index}"] = {
            **layer,
            "ffn_in": {"kernel": np.asarray(first["kernel"])[:, neurons], "bias": np.asarray(first["bias"])[neurons]},
            "ffn_out": {**second, "kernel": np.asarray(second["kernel"])[neurons]},
        }
    return {**params, "encoder": encoder}


def _card(folder: Path, before: int, after: int, title: str) -> str:
    """The model's card with a section on its width."""
    return (
        f"{card_of_folder(folder, 'Pruned model')}\n\n## Pruned\n\nThe feed-forward parts have {after:,} of {before:,} "
        f"neurons, those that matter most for {title}, by `distil-jax prune`. Measures above are of the model before "
        "that.\n"
    )
