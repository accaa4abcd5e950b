"""The metadata of a model card, as the hub reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.hf import is_in_hub_cache

_INHERITED = ("license", "license_name", "license_link", "language")


def card_metadata(
    name: str,
    base: str,
    *,
    library: str,
    pipeline: str,
    tags: Sequence[str],
    datasets: Sequence[str] = (),
    measured_on: str = "",
    measures: Mapping[str, float] | None = None,
) -> str:
    """The YAML between the two lines `---` of a card.

    License and language are those of the card of `base`, where it is a folder with one. `base` is named as base_model
    where it came from the hub: a folder of this machine says nothing to others.

    Args:
        name: of the model.
        base: folder or hub id of the teacher, or of the model that was trained further; empty: neither.
        library: library_name.
        pipeline: pipeline_tag; empty: transformers has none.
        tags: further tags.
        datasets: hub ids of the data; empty: own data.
        measured_on: what the measures are of.
        measures: by name; empty: none.
    """
    from huggingface_hub import EvalResult, ModelCardData

    source = datasets[0] if datasets else "own"
    results = [
        EvalResult(pipeline or "other", source, measured_on, metric, value, dataset_split="validation")
        for metric, value in (measures or {}).items()
    ]
    fields: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": pipeline or None,
        "tags": [*tags],
        "base_model": base if is_in_hub_cache(base) else None,
        "datasets": [*datasets] or None,
        "metrics": [*measures] if measures else None,
        **_of_base_card(base),
    }
    with_results = {"model_name": name, "eval_results": results} if results else {}
    return ModelCardData(**fields, **with_results).to_yaml()


def _of_base_card(base: str) -> dict[str, Any]:
    """What the card in the folder `base` says that holds for models made of it."""
    from huggingface_hub import ModelCard

    with contextlib.suppress(Exception):  # no card, or one that somebody wrote by hand
        text = (Path(base) / "README.md").read_text(encoding="utf-8")
        found = ModelCard(text).data.to_dict() if text.startswith("---") else {}
        return {key: found[key] for key in _INHERITED if found.get(key)}
    return {}
