"""Sizes with which a measurement takes seconds."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """By "section.key": a model of two layers on one device, two micro-batches of rows of 32 tokens a step."""
    return {
        "model.num_layers": 2,
        "model.hidden_size": 16,
        "model.num_heads": 2,
        "model.intermediate_size": 24,
        "training.batch_size": 8,
        "training.micro_batch_size": 4,
        "parallel.devices": 1,
        "corpus.sequence_length": 32,
    }
