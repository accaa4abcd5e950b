"""`distil-jax prune`: a task model with fewer neurons and attention heads, the ones that matter least left out.

How much a unit (a neuron of a feed-forward part, or a head) matters is how much the loss changes with it, to first
order: the mean over examples of |d loss / d gate|, where the gate multiplies what the unit gives (Michel, Levy and
Neubig 2019, section 4, for heads; Molchanov et al. 2017). That is |gradient x weight| summed over the weights that
leave the unit. The same number stays in every layer. Folders with fewer neurons load in transformers. It has no form
for fewer heads of the same width: such folders have the field `attention_head_size`, which is read here alone.
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
from distil_jax.models import EncoderConfig, TaskModel
from distil_jax.runs import announce
from distil_jax.tables import markdown
from distil_jax.tasks import TaskBatch, choose_buckets, collate, evaluation_plan, kind_of, load_task
from distil_jax.training.task_models import check_lengths, check_vocabulary
from distil_jax.training.task_step import forward

_MULTIPLE = 8  # of which the width stays: what processors multiply at once
_BATCH = 32  # examples that are given to the device at once


Units = dict[str, np.ndarray]  # "neurons" [layers, F] and "heads" [layers, N]: gates, importance, or what stays


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What `prune_model` has done: sizes and parameters before and after, and the examples that it used."""

    neurons: tuple[int, int]
    heads: tuple[int, int]
    parameters: tuple[int, int]
    examples: int

    def table(self) -> str:
        """All of it in Markdown."""
        rows = [
            ["feed-forward width", *(f"{width:,}" for width in self.neurons)],
            ["attention heads", *(f"{count:,}" for count in self.heads)],
            ["parameters", *(f"{count:,}" for count in self.parameters)],
            ["MB of weights", *(f"{4e-6 * count:.1f}" for count in self.parameters)],
        ]
        return markdown(["", "before", "after"], rows)


def prune_model(config: Config) -> Pruned:
    """Write `model.initial` with shares `pruning.feed_forward` of its neurons and `pruning.heads` of its heads.

    Args:
        config: with model.initial (model folder or hub id), task.*, pruning.*, and run.output, where it is written.

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
    kept = _kept_numbers(config, model.config)
    order = np.random.default_rng(config.run.seed).permutation(len(data.train))[: settings.examples or None]
    encoded = kind.encode(tokenizer, [data.train[place] for place in order], config.task, training=True)
    batches = [
        collate(encoded, kind, rows, length, _BATCH)
        for length, rows in evaluation_plan(encoded.lengths, choose_buckets(encoded.lengths), _BATCH)
    ]
    importance = unit_importance(TaskModel(model.config, model.head), model.params, batches)
    if model.config.relative_buckets:  # all layers share the bias of a head: the same ones stay in each
        importance["heads"] = np.broadcast_to(importance["heads"].sum(axis=0), importance["heads"].shape)
    stays = {
        name: np.sort(np.argsort(-importance[name], axis=1, kind="stable")[:, :number], axis=1)
        for name, number in kept.items()
    }
    pruned, params = without_units(model.config, model.params, stays)
    before, after = ({"neurons": one.intermediate_size, "heads": one.num_heads} for one in (model.config, pruned))
    save_pretrained(
        config.run.output,
        pruned,
        params,
        head=model.head,
        tokenizer=tokenizer,
        readme=_card(folder, before, after, data.spec.title),
        extra=own_fields(read_json(folder / "config.json")),
        files=card_pictures(folder),
    )
    counts = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (model.params, params)]
    both = {name: (before[name], after[name]) for name in before}
    return Pruned(**both, parameters=(counts[0], counts[1]), examples=len(order))


def _kept_numbers(config: Config, encoder: EncoderConfig) -> dict[str, int]:
    """How many units of each kind stay in a layer."""
    settings, width, heads = config.pruning, encoder.intermediate_size, encoder.num_heads
    neurons = min(max(round(settings.feed_forward * width / _MULTIPLE), 1) * _MULTIPLE, width)
    found = {"neurons": neurons, "heads": max(round(settings.heads * heads), 1)}
    if found == {"neurons": width, "heads": heads}:
        raise UserError(
            f"pruning.feed_forward = {settings.feed_forward:g}, pruning.heads = {settings.heads:g}: all {width} "
            f"neurons and {heads} heads would stay; lower one of them"
        )
    return found


def unit_importance(model: TaskModel, params: Any, batches: list[TaskBatch]) -> Units:
    """Float64: of each neuron and each head, the mean of |d loss / d gate| over all rows.

    Args:
        model: of the task; nothing is dropped out.
        params: {"encoder", "task_head"}.
        batches: rows with labels, as `collate` makes them.
    """
    kind, layers = kind_of(model.head), model.config.num_layers
    ones = {
        "neurons": np.ones((layers, model.config.intermediate_size), np.float32),
        "heads": np.ones((layers, model.config.num_heads), np.float32),
    }

    def loss(gates: Any, params: Any, row: TaskBatch) -> jax.Array:
        return kind.loss(forward(model, gated(params, gates), row.inputs)[1], row)

    def of_row(params: Any, row: TaskBatch) -> Any:
        alone = jax.tree.map(lambda values: values[None], row)
        return jax.tree.map(jnp.abs, jax.grad(loss)(ones, params, alone))

    def of_batch(params: Any, batch: TaskBatch) -> Any:
        return jax.tree.map(lambda found: jnp.sum(found, axis=0), jax.lax.map(partial(of_row, params), batch))

    compute, placed, count = jax.jit(of_batch), jax.device_put(params), 0
    total = {name: np.zeros(gates.shape) for name, gates in ones.items()}
    for batch in batches:
        rows = int((np.asarray(batch.token_share).reshape(len(batch.token_share), -1) > 0).any(axis=1).sum())
        found = compute(placed, batch)  # the loss is a mean over the batch's rows
        total = {name: total[name] + rows * np.asarray(found[name], np.float64) for name in total}
        count += rows
    return {name: found / max(count, 1) for name, found in total.items()}


def gated(params: Any, gates: Any) -> Any:
    """The parameters with the outputs of each neuron and each head multiplied by its gate, `Units`."""
    encoder = dict(params["encoder"])
    for index, (neurons, heads) in enumerate(zip(gates["neurons"], gates["heads"], strict=True)):
        layer = encoder[f"layer_{index}"]
        mixed, second = layer["attention_out"], layer["ffn_out"]
        by_head = jnp.repeat(heads, len(mixed["kernel"]) // len(heads))
        encoder[f"layer_{index}"] = {
            **layer,
            "attention_out": {**mixed, "kernel": mixed["kernel"] * by_head[:, None]},
            "ffn_out": {**second, "kernel": second["kernel"] * neurons[:, None]},
        }
    return {**params, "encoder": encoder}


def without_units(config: EncoderConfig, params: Any, kept: Units) -> tuple[EncoderConfig, dict[str, Any]]:
    """The encoder and the parameters with the units `kept` [layers, number] of each layer alone.

    With relative positions, whose biases of a head hold in all layers, the same heads stay in all.
    """
    encoder, width = dict(params["encoder"]), config.head_width
    for index, (neurons, heads) in enumerate(zip(kept["neurons"], kept["heads"], strict=True)):
        layer = encoder[f"layer_{index}"]
        columns = (heads[:, None] * width + np.arange(width)).ravel()
        encoder[f"layer_{index}"] = {
            **layer,
            **{name: _outputs(layer[name], columns) for name in ("query", "key", "value")},
            "attention_out": _inputs(layer["attention_out"], columns),
            "ffn_in": _outputs(layer["ffn_in"], neurons),
            "ffn_out": _inputs(layer["ffn_out"], neurons),
        }
    if config.relative_buckets:
        encoder["relative_positions"] = {"bias": np.asarray(encoder["relative_positions"]["bias"])[:, kept["heads"][0]]}
    neurons, heads = (kept[name].shape[1] for name in ("neurons", "heads"))
    head_size = config.head_size if heads == config.num_heads else width
    pruned = dataclasses.replace(config, intermediate_size=neurons, num_heads=heads, head_size=head_size)
    return pruned, {**params, "encoder": encoder}


def _outputs(dense: Any, kept: np.ndarray) -> dict[str, np.ndarray]:
    return {"kernel": np.asarray(dense["kernel"])[:, kept], "bias": np.asarray(dense["bias"])[kept]}


def _inputs(dense: Any, kept: np.ndarray) -> dict[str, Any]:
    return {**dense, "kernel": np.asarray(dense["kernel"])[kept]}


def _card(folder: Path, before: dict[str, int], after: dict[str, int], title: str) -> str:
    """The model's card with a section on its sizes."""
    counts = " and ".join(f"{after[name]:,} of {before[name]:,} {name}" for name in before)
    lost = after["heads"] < before["heads"]
    alone = " transformers has no form for fewer heads and refuses this folder; distil_jax reads it." if lost else ""
    return (
        f"{card_of_folder(folder, 'Pruned model')}\n\n## Pruned\n\nEvery layer has {counts}, those that matter most "
        f"for {title}, by `distil-jax prune`. Measures above are of the model before that.{alone}\n"
    )
