"""The model card of an exported masked language model, filled from what its checkpoint knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distil_jax import __version__
from distil_jax.config import Config
from distil_jax.models import EncoderConfig
from distil_jax.objectives import uses_teacher

_MEASURES = {
    "mlm_loss": "masked-token loss (nats)",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "kl": "KL to the teacher (nats)",
    "agreement": "agreement with the teacher",
}


def model_card(config: Config, encoder: EncoderConfig, metadata: Mapping[str, Any], step: int, name: str) -> str:
    """README.md of a model folder: teacher, data, steps, losses, measured numbers, how to use it."""
    auto, corpus = "AutoModelForMaskedLM", metadata["corpus"]
    length = corpus["sequence_length"]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: fill-mask",
            f"tags: [{', '.join(_tags(config, metadata['description']))}]",
            "---",
            f"# {name}",
            "",
            _origin(config, metadata["description"]),
            "",
            f"- architecture: {architecture(encoder)}",
            f"- trained with distil_jax {__version__}, step {step} of {metadata['steps']}, "
            f"{config.training.batch_size} rows of up to {length} tokens a step, "
            f"peak learning rate {config.optimizer.learning_rate:g}, seed {config.run.seed}",
            f"- data: {_sources(corpus)}; {corpus['rows']:,} rows, {corpus['tokens']:,} tokens, "
            f"sha256 {corpus['sha256']}",
            f"- {_losses(config, metadata['description'])}",
            "",
            *_table(metadata["evaluations"], step),
            "## Use",
            "",
            "```python",
            f"from transformers import AutoTokenizer, {auto}",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            f'model = {auto}.from_pretrained("{name}")',
            "```",
            "",
        ]
    )


def architecture(encoder: EncoderConfig) -> str:
    """Family and sizes of an encoder in one line."""
    return (
        f"{encoder.family}, {encoder.num_layers} layers, width {encoder.hidden_size}, {encoder.num_heads} heads, "
        f"feed-forward {encoder.intermediate_size}, vocabulary {encoder.vocab_size}, "
        f"{encoder.max_length} positions"
    )


def _tags(config: Config, description: Mapping[str, Any]) -> list[str]:
    distilled = description["stage"] == "distill" and uses_teacher(config.objective)
    return ["distil_jax", *(["knowledge-distillation"] if distilled else [])]


def _origin(config: Config, description: Mapping[str, Any]) -> str:
    if description["stage"] == "distill":
        layers = ", ".join(map(str, description["layers"]))
        starts = {"teacher": f"its layers {layers}", "random": "random weights"}
        start = starts.get(config.student.init, f"`{config.student.init}`")
        return f"Student of `{description['teacher']}`, started from {start}."
    if description["initial"]:
        frozen = ", encoder frozen" if description["frozen_encoder"] else ""
        return f"Masked language model trained from `{description['initial']}`{frozen}."
    return "Masked language model trained from scratch."


def _sources(corpus: Mapping[str, Any]) -> str:
    return ", ".join(f"`{source}`" for source in corpus["sources"])


def _losses(config: Config, description: Mapping[str, Any]) -> str:
    if description["stage"] == "pretrain":
        return "loss: masked-LM cross entropy"
    objective = config.objective
    alphas = {name: getattr(objective, f"alpha_{name}") for name in ("ce", "mlm", "cos", "mse", "clm")}
    terms = " + ".join(f"{alpha:g} {name}" for name, alpha in alphas.items() if alpha)
    details = [f"temperature {objective.temperature:g}"] if alphas["ce"] else []
    compared = [name for name in ("ce", "mse") if alphas[name]]
    if compared:
        where = "predicted" if objective.restrict_ce_to_mask else "all"
        details.append(f"{' and '.join(compared)} over {where} positions")
    return f"loss: {terms}{'; ' if details else ''}{', '.join(details)}"


def _table(evaluations: Mapping[int, Mapping[str, float]], step: int) -> list[str]:
    """Held-out measures at the start and at `step`, or the newest before it."""
    done = sorted(number for number in evaluations if number <= step)
    if not done:
        return []
    first, last = evaluations[done[0]], evaluations[done[-1]]
    rows = [f"| {text} | {first[name]:.4f} | {last[name]:.4f} |" for name, text in _MEASURES.items() if name in last]
    return [
        "## Held-out measures",
        "",
        f"Over {last['predictions']:,.0f} predicted positions that were not trained on.",
        "",
        f"| | step {done[0]} | step {done[-1]} |",
        "|---|---|---|",
        *rows,
        "",
    ]
