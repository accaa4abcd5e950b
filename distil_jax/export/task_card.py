"""The model card of an exported fine-tuned model, filled from what its checkpoint knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from distil_jax import __version__
from distil_jax.config import Config
from distil_jax.export.card import architecture
from distil_jax.models import EncoderConfig, TaskHead
from distil_jax.tasks.data.official import OFFICIAL
from distil_jax.tasks.encode import longest_row
from distil_jax.tasks.registry import task_spec

_PIPELINE_TAGS = {
    "sequence": "text-classification",
    "token": "token-classification",
    "question": "question-answering",
    "choice": "multiple-choice",
}
_MOST_LABELS = 30  # named in the card; all are in config.json


def task_card(
    config: Config, encoder: EncoderConfig, metadata: Mapping[str, Any], step: int, name: str, head: TaskHead
) -> str:
    """README.md of a model folder: task, data, settings, measures at this step, how to use it."""
    description = metadata["description"]
    tags = ["distil_jax", *(["knowledge-distillation"] if _has_teacher(config) else [])]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"pipeline_tag: {_PIPELINE_TAGS[head.kind]}",
            *_datasets(config),
            f"tags: [{', '.join(tags)}]",
            "---",
            f"# {name}",
            "",
            _origin(config, description),
            "",
            f"- architecture: {architecture(encoder)}",
            *_outputs(head),
            f"- data: {_data(config)}; {description['examples']:,} training examples of up to "
            f"{longest_row(config.task, head.kind)} tokens",
            f"- trained with distil_jax {__version__}, step {step} of {metadata['steps']}, "
            f"{config.training.batch_size} examples a step, peak learning rate {config.optimizer.learning_rate:g}, "
            f"seed {config.run.seed}",
            f"- loss: {_losses(config)}",
            "",
            *_measures(metadata["evaluations"].get(step, {})),
            "## Use",
            "",
            "```python",
            *_snippet(head, name, _takes_pairs(config)),
            "```",
            "",
        ]
    )


def _has_teacher(config: Config) -> bool:
    return bool(config.teacher.path) and config.finetune.alpha_ce + config.finetune.alpha_cos > 0


def _datasets(config: Config) -> list[str]:
    official = OFFICIAL.get(config.task.name)
    return [f"datasets: [{official.hub[0].name}]"] if official and official.hub else []


def _origin(config: Config, description: Mapping[str, Any]) -> str:
    title = task_spec(config.task.name).title
    text = f"`{description['initial']}` fine-tuned on {title}"
    if _has_teacher(config):
        text += f", with the fine-tuned model `{description['teacher']}` as teacher"
    return f"{text}."


def _outputs(head: TaskHead) -> list[str]:
    if head.problem == "regression":
        return ["- output: a score"]
    if not head.labels:
        return []
    shown = ", ".join(f"`{label}`" for label in head.labels[:_MOST_LABELS])
    more = len(head.labels) - _MOST_LABELS
    several = ", any number of them a text" if head.problem == "multi_label_classification" else ""
    what = "tags" if head.kind == "token" else "labels"
    return [f"- {len(head.labels)} {what}{several}: {shown}{f' and {more} more' if more > 0 else ''}"]


def _data(config: Config) -> str:
    given = config.task.train or config.task.source
    return f"`{given}`" if given else task_spec(config.task.name).title


def _losses(config: Config) -> str:
    if not _has_teacher(config):
        return "against the labels"
    settings = config.finetune
    terms = {"labels": settings.alpha_task, "teacher's output": settings.alpha_ce, "hidden states": settings.alpha_cos}
    text = " + ".join(f"{weight:g} {name}" for name, weight in terms.items() if weight)
    return f"{text}, temperature {settings.temperature:g}" if settings.alpha_ce else text


def _measures(measures: Mapping[str, float]) -> list[str]:
    if not measures:
        return []
    rows = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in measures.items()]
    return ["## Measures on the validation data", "", "| | |", "|---|---|", *rows, ""]


def _takes_pairs(config: Config) -> bool:
    official = OFFICIAL.get(config.task.name)
    return bool(official.columns.pair if official else config.task.pair)


def _snippet(head: TaskHead, name: str, pairs: bool) -> list[str]:
    quoted = json.dumps(name)
    if head.kind == "question":
        return _question_snippet(quoted)
    if head.kind == "choice":
        return _choice_snippet(quoted)
    lines = ["from transformers import pipeline", ""]
    if head.kind == "token":
        call = f'pipeline("token-classification", {quoted}, aggregation_strategy="first")'
        return [*lines, f"tagger = {call}", 'print(tagger("A sentence."))']
    every = ", top_k=None" if head.problem == "multi_label_classification" else ""
    # Without this a single output would go through a sigmoid in older versions.
    scores = ', function_to_apply="none"' if head.problem == "regression" else ""
    text = '{"text": "A text.", "text_pair": "Another one."}' if pairs else '"A text."'
    return [
        *lines,
        f'classifier = pipeline("text-classification", {quoted}{every}{scores})',
        f"print(classifier({text}))",
    ]


def _question_snippet(quoted: str) -> list[str]:
    return [
        "import torch",
        "from transformers import AutoModelForQuestionAnswering, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({quoted})",
        f"model = AutoModelForQuestionAnswering.from_pretrained({quoted})",
        'inputs = tokenizer("A question?", "A context that answers it.", return_tensors="pt")',
        "with torch.no_grad():",
        "    found = model(**inputs)",
        "start, end = found.start_logits.argmax(), found.end_logits.argmax()",
        'print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))',
    ]


def _choice_snippet(quoted: str) -> list[str]:
    return [
        "import torch",
        "from transformers import AutoModelForMultipleChoice, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({quoted})",
        f"model = AutoModelForMultipleChoice.from_pretrained({quoted})",
        'endings = ["one ending.", "another ending."]',
        'inputs = tokenizer(["A prompt"] * len(endings), endings, padding=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    scores = model(**{key: values[None] for key, values in inputs.items()}).logits",
        "print(endings[scores.argmax()])",
    ]
