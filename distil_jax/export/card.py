"""The model card of an exported model, filled from what its checkpoint knows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distil_jax import __version__
from distil_jax.charts import picture
from distil_jax.config import ActivationTerms, Config, fields_of
from distil_jax.export.card_metadata import card_metadata
from distil_jax.hf import is_in_hub_cache, refused_by_transformers
from distil_jax.models import EncoderConfig, Pooling, TaskHead
from distil_jax.objectives import TERMS, uses_teacher
from distil_jax.tasks import SCORE, kind_of, task_spec

_MEASURES = {
    "mlm_loss": "masked-token loss (nats)",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "kl": "KL to the teacher (nats)",
    "agreement": "agreement with the teacher",
    **{name: re.sub("weight of (the )?|;.*", "", field.help) for name, field in fields_of(ActivationTerms).items()},
}

CURVES_FILE = "curves.svg"
_ON_HUB = ("hf:", "tfds:")  # sources of rows and text that others can read
_UNDRAWN = (SCORE, "predictions")  # the mean of the others; a count
_SENTENCES = ("from sentence_transformers import SentenceTransformer", "")


def model_card(
    config: Config,
    encoder: EncoderConfig,
    metadata: Mapping[str, Any],
    step: int,
    name: str,
    head: TaskHead | None = None,
    pooling: Pooling | None = None,
) -> str:
    """README.md of a model folder: teacher, data, steps, losses, measures at this step, how to use it.

    Args:
        config: the run's.
        encoder: the model's sizes.
        metadata: the checkpoint's.
        step: the checkpoint's.
        name: what the card calls the model.
        head: of a task model; None: a masked language model.
        pooling: how it makes one vector of a text; None: it makes none.
    """
    description = metadata["description"]
    peak = f"peak learning rate {config.optimizer.learning_rate:g}"
    progress = (
        f"trained with distil_jax {__version__}, step {step} of {metadata['steps']}, {config.training.batch_size}"
    )
    if head is None:
        corpus = metadata["corpus"]
        sources = ", ".join(f"`{public_name(source)}`" for source in corpus["sources"])
        distilled = description["stage"] == "distill" and uses_teacher(config.objective)
        facts = [
            f"- {progress} rows of up to {corpus['sequence_length']} tokens a step, {peak}, seed {config.run.seed}",
            f"- data: {sources}; {corpus['rows']:,} rows, {corpus['tokens']:,} tokens, sha256 {corpus['sha256']}",
            f"- loss: {_losses(config, description)}",
        ]
        with_head = "mlm_head" in metadata.get("groups", ["mlm_head"])
        table = _heldout(metadata["evaluations"], step)
        code = _loading_snippet(name, "AutoModelForMaskedLM" if with_head else "AutoModel")
        if not with_head:
            code.append('hidden = model(**tokenizer("A sentence.", return_tensors="pt")).last_hidden_state')
        if pooling is not None:
            of_length_1 = ", of length 1" if pooling.normalize else ""
            facts.append(f"- vectors of texts: {pooling.mode} of the hidden states{of_length_1}")
            code = [*_SENTENCES, f'vectors = SentenceTransformer("{name}").encode(["A sentence.", "Another one."])']
        tag, origin = "fill-mask" if with_head else "feature-extraction", _origin(config, description)
        base = description.get("teacher") or description.get("initial", "")
        hub = (source.split(":")[1] for source in corpus["sources"] if source.startswith("hf:"))
        datasets, measured_on = [*dict.fromkeys(hub)], "held-out text"
        _, measures = _newest(metadata["evaluations"], step)
        measures = {name: value for name, value in measures.items() if name in _MEASURES}
    else:
        kind, distilled = kind_of(head), _has_task_teacher(config)
        outputs = kind.outputs(head)
        facts = [
            *([f"- {outputs}"] if outputs else []),
            f"- data: {_data(config)}; {description['examples']:,} training examples of up to "
            f"{kind.row_length(config.task)} tokens",
            f"- {progress} examples a step, {peak}, seed {config.run.seed}",
            f"- loss: {_task_losses(config)}",
        ]
        measures = metadata["evaluations"].get(step, {})
        table, code = _measures(measures), kind.snippet(json.dumps(name), _takes_pairs(config))
        tag, origin, base = kind.pipeline, _task_origin(config, description), description["initial"]
        datasets, measured_on = _datasets(config), task_spec(config.task.name).title
        measures = {name: value for name, value in measures.items() if name != SCORE}  # the mean of the others
    library = "transformers" if pooling is None else "sentence-transformers"
    tag = tag if pooling is None else "sentence-similarity"
    tags = ["distil_jax", *(["knowledge-distillation"] if distilled else [])]
    if refused := refused_by_transformers(encoder):
        facts.append(f"- {refused}; distil_jax reads it")
        library, code = "distil_jax", _own_snippet(name, head)
    front = card_metadata(
        name,
        base,
        library=library,
        pipeline=tag,
        tags=tags,
        datasets=datasets,
        measured_on=measured_on,
        measures=measures,
    )
    about = [f"# {name}", "", origin, "", f"- architecture: {_architecture(encoder)}", *facts, ""]
    if _curves(metadata, step):
        table = [*table, f"![held-out measures by step]({CURVES_FILE})", ""]
    return "\n".join(["---", front, "---", *about, *table, "## Use", "", "```python", *code, "```", ""])


def _own_snippet(name: str, head: TaskHead | None) -> list[str]:
    """Python that uses the model without transformers."""
    if head is None:
        return ["from distil_jax import from_pretrained", "", f"model, params = from_pretrained({json.dumps(name)})"]
    return ["from distil_jax import load_predictor", "", f"predictor = load_predictor({json.dumps(name)})"]


def curves_picture(metadata: Mapping[str, Any], step: int) -> str:
    """The held-out measures of a run until `step` as SVG, "" where there are fewer than two measurements.

    Args:
        metadata: the checkpoint's, with "evaluations", measures by step.
        step: the checkpoint's.
    """
    return picture(_curves(metadata, step))


def _curves(metadata: Mapping[str, Any], step: int) -> dict[str, list[tuple[float, float]]]:
    """The (step, value) points of every measure that was taken twice or more until `step`, by its title."""
    series: dict[str, list[tuple[float, float]]] = {}
    for number, row in sorted(metadata["evaluations"].items()):
        for name, value in row.items() if number <= step else ():
            if name not in _UNDRAWN and math.isfinite(value):
                series.setdefault(_MEASURES.get(name) or name.replace("_", " "), []).append((number, value))
    return {name: points for name, points in series.items() if len(points) > 1}


def public_name(path: str) -> str:
    """What a card calls a model or data: a hub id, or the last part of a path, as other machines lack the rest."""
    return path if path.startswith(_ON_HUB) or is_in_hub_cache(path) else Path(path).name or path


def card_of_folder(folder: Path, title: str) -> str:
    """The card of a model folder, without blanks at its end; only a title where it has none."""
    path = folder / "README.md"
    return path.read_text(encoding="utf-8", errors="replace").rstrip() if path.is_file() else f"# {title}"


def card_pictures(folder: Path) -> dict[str, str]:
    """The pictures that the card of a model folder shows, by name."""
    path = folder / CURVES_FILE
    return {CURVES_FILE: path.read_text(encoding="utf-8", errors="replace")} if path.is_file() else {}


def _architecture(encoder: EncoderConfig) -> str:
    """Family and sizes of an encoder in one line."""
    return (
        f"{encoder.family}, {encoder.num_layers} layers, width {encoder.hidden_size}, {encoder.num_heads} heads, "
        f"feed-forward {encoder.intermediate_size}, vocabulary {encoder.vocab_size}, "
        f"{encoder.max_length} positions"
    )


def _origin(config: Config, description: Mapping[str, Any]) -> str:
    if description["stage"] == "distill":
        layers = ", ".join(map(str, description["layers"]))
        of_teacher = f"its layers {layers}" if layers else "its embeddings, reduced by PCA"
        starts = {"teacher": of_teacher, "random": "random weights"}
        start = starts.get(config.student.init, f"`{public_name(config.student.init)}`")
        return f"Student of `{public_name(description['teacher'])}`, started from {start}."
    if description["initial"]:
        frozen = ", encoder frozen" if description["frozen_encoder"] else ""
        return f"Masked language model trained from `{public_name(description['initial'])}`{frozen}."
    return "Masked language model trained from scratch."


def _weighted(settings: ActivationTerms) -> str:
    """The weighted terms, and what moves over the run."""
    terms = " + ".join(f"{weight:g} {name}" for name, weight in settings.weights.items())
    return ", ".join([terms, *(f"{name} {schedule}" for name, schedule in settings.scheduled.items())])


def _losses(config: Config, description: Mapping[str, Any]) -> str:
    if description["stage"] == "pretrain":
        return "masked-LM cross entropy"
    objective = config.objective
    weights = objective.weights
    terms, details = _weighted(objective), [f"temperature {objective.temperature:g}"] if "kl" in weights else []
    compared = [name for name in weights if TERMS[name].over_vocabulary and TERMS[name].counts == "tokens"]
    if compared:
        where = "predicted" if objective.restrict_kl_to_mask else "all"
        details.append(f"{' and '.join(compared)} over {where} positions")
    return f"{terms}{'; ' if details else ''}{', '.join(details)}"


def _newest(evaluations: Mapping[int, Mapping[str, float]], step: int) -> tuple[int, Mapping[str, float]]:
    """The step of the newest evaluation until `step`, and its measures; none: empty ones."""
    newest = max((number for number in evaluations if number <= step), default=0)
    return newest, evaluations.get(newest, {})


def _heldout(evaluations: Mapping[int, Mapping[str, float]], step: int) -> list[str]:
    """Held-out measures at the start and at `step`, or the newest before it."""
    newest, last = _newest(evaluations, step)
    if not last:
        return []
    start = min(evaluations)
    first = evaluations[start]
    rows = [f"| {text} | {first[name]:.4f} | {last[name]:.4f} |" for name, text in _MEASURES.items() if name in last]
    count = last.get("predictions")
    predicted = "all tokens" if count is None else f"{count:,.0f} predicted positions"
    return [
        "## Held-out measures",
        "",
        f"Over {predicted} of text that was not trained on.",
        "",
        f"| | step {start} | step {newest} |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _loading_snippet(name: str, model_class: str) -> list[str]:
    return [
        f"from transformers import AutoTokenizer, {model_class}",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f'model = {model_class}.from_pretrained("{name}")',
    ]


def _has_task_teacher(config: Config) -> bool:
    return bool(config.teacher.path) and config.finetune.weights.keys() != {"task"}


def _datasets(config: Config) -> list[str]:
    published = task_spec(config.task.name).published
    return [published.hub[0].name] if published else []


def _task_origin(config: Config, description: Mapping[str, Any]) -> str:
    title = task_spec(config.task.name).title
    text = f"`{public_name(description['initial'])}` fine-tuned on {title}"
    if _has_task_teacher(config):
        text += f", with the fine-tuned model `{public_name(description['teacher'])}` as teacher"
    if rows := description.get("unlabelled"):  # runs of older versions do not have it
        text += f", which labelled {rows:,} rows"
    return f"{text}."


def _data(config: Config) -> str:
    given = config.task.train or config.task.source
    return f"`{public_name(given)}`" if given else task_spec(config.task.name).title


def _task_losses(config: Config) -> str:
    if not _has_task_teacher(config):
        return "against the labels"
    settings = config.finetune
    text = _weighted(settings)
    return f"{text}, temperature {settings.temperature:g}" if settings.kl else text


def _measures(measures: Mapping[str, float]) -> list[str]:
    if not measures:
        return []
    rows = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in measures.items()]
    return ["## Measures on the validation data", "", "| | |", "|---|---|", *rows, ""]


def _takes_pairs(config: Config) -> bool:
    published = task_spec(config.task.name).published
    return bool(published.columns.pair if published else config.task.pair)
