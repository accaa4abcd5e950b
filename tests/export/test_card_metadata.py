"""The metadata of a card: what huggingface_hub reads from it, and what a base model hands down."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from distil_jax.export.card_metadata import card_metadata

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def read(base: str, **more: object) -> dict[str, object]:
    """What the hub's own reader makes of it."""
    given = {"library": "transformers", "pipeline": "text-classification", "tags": ["distil_jax"], **more}
    text = card_metadata("small", base, **given)  # pyright: ignore[reportArgumentType]
    return ModelCard(f"---\n{text}\n---\n").data.to_dict()


def test_measures_are_results_of_the_hub() -> None:
    found = read("", datasets=["nyu-mll/glue"], measured_on="MRPC", measures={"accuracy": 0.8, "f1": 0.9})
    assert found["metrics"] == ["accuracy", "f1"] and found["datasets"] == ["nyu-mll/glue"]
    (model,) = found["model-index"]  # pyright: ignore[reportGeneralTypeIssues]
    values = {metric["type"]: metric["value"] for result in model["results"] for metric in result["metrics"]}
    assert values == {"accuracy": 0.8, "f1": 0.9}


def test_license_and_language_come_from_the_base_models_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, de]\ntags: [a]\n---\n# Base\n")
    found = read(str(tmp_path))
    assert (found["license"], found["language"], found["tags"]) == ("apache-2.0", ["en", "de"], ["distil_jax"])
    assert "base_model" not in found, "a folder of this machine says nothing to others"


@pytest.mark.parametrize("card", [None, "no front matter", "---\n[broken\n---\n", b"\xff\xfe"])
def test_a_base_without_a_readable_card_hands_down_nothing(card: str | bytes | None, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert {*read(str(tmp_path))} == {"library_name", "pipeline_tag", "tags"}


def test_a_base_that_came_from_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "base_model" not in read("google-bert/bert-base-uncased")
    folder = tmp_path / "models--google-bert--bert-base-uncased"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "snapshots" / COMMIT / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    assert read("google-bert/bert-base-uncased")["base_model"] == "google-bert/bert-base-uncased"
