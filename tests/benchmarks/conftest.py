"""The scripts in benchmarks/ as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def script() -> Callable[[str], Any]:
    """A function name -> the module of that script."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture(scope="session")
def tiny_step(script: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with teacher/, student/ and batch.npz, as step_comparison.py prepares them, tiny."""
    jax_step, comparison = script("jax_step"), script("step_comparison")
    folder, size = tmp_path_factory.mktemp("step"), comparison.SIZES["tiny"]
    changes = {f"model.{name}": value for name, value in size.model.items()}
    changes |= {"training.batch_size": 4, "training.micro_batch_size": 4, "corpus.sequence_length": 24}
    jax_step.prepare(str(folder), changes, size.vocabulary, list(size.layers))
    return folder
