"""What a run says of itself before its first step and after its last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.config import Config
from distil_jax.hf import read_pretrained
from distil_jax.training.distill import distill
from distil_jax.training.opening import ends_text, model_text


def test_a_run_opens_with_what_is_trained_and_ends_with_its_measures(
    tiny_config: Callable[..., Config], tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers are those of the files: layers, parameters, tokens, held-out measures."""
    run = tmp_path / "run"
    distill(tiny_config(run, {"training.steps": 3, "logging.progress": "plain"}))
    shown = capsys.readouterr().err
    _, params, *_ = read_pretrained(tiny_world / "teacher")
    count = sum(np.size(leaf) for part in params.values() for leaf in _leaves(part))
    for fact in ("layers 1 of the teacher", f"{count:,} parameters", "3 steps of 8 rows", "% filled"):
        assert fact in shown
    assert [line.split(",")[0].partition("held-out")[0] for line in shown.splitlines() if "held-out loss" in line] == [
        "run: step 0: ",
        "run: step 3: ",
    ]


def _leaves(tree: Any) -> list[Any]:
    return [leaf for value in tree.values() for leaf in _leaves(value)] if isinstance(tree, dict) else [tree]


def test_the_ends_of_a_curve() -> None:
    found = {0: {"mlm_loss": 9.0, "accuracy": 0.01}, 5: {"mlm_loss": 3.25, "accuracy": 0.4, "predictions": 7.0}}
    assert ends_text(found, 5) == "held-out loss 9.000 -> 3.250, accuracy 1.0% -> 40.0%"
    assert ends_text({5: {"score": 0.5}}, 5) == "score 0.5"
    assert ends_text({}, 5) == ""


def test_projections_are_no_part_of_a_model() -> None:
    from distil_jax.models import EncoderConfig

    encoder, tensor = EncoderConfig("bert", 30, 8, 1, 2, 16, 16), np.zeros((3, 4))
    assert model_text(encoder, {"encoder": {"a": tensor}, "projections": {"b": tensor}}).endswith(" 12 parameters")
