"""Configurations and model folders of runs that take seconds, on the tiny world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config import Config, load_config
from distil_jax.hf import load_tokenizer, save_pretrained
from distil_jax.models import EncoderConfig, MaskedLM


def random_params(config: EncoderConfig, seed: int = 0, scale: float = 0.3) -> dict[str, Any]:
    """Parameters of a `MaskedLM` drawn by NumPy: nothing is compiled. Biases are random, norms near 1."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: MaskedLM(config).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])

    def draw(path: Any, leaf: Any) -> np.ndarray:
        return (scale * random.standard_normal(leaf.shape) + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def draw_params() -> Callable[..., dict[str, Any]]:
    """`random_params`."""
    return random_params


@pytest.fixture(scope="session")
def tiny_config(tiny_world: Path) -> Callable[..., Config]:
    """A function (output, {"section.key": value}) -> the tiny run's configuration, with the tiny teacher."""

    def make(output: Path, changes: Mapping[str, Any] | None = None) -> Config:
        overrides = {"run.output": str(output), "teacher.path": str(tiny_world / "teacher"), **(changes or {})}
        return load_config(tiny_world / "config.toml", overrides)

    return make


@pytest.fixture(scope="session")
def model_folder(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function (head=, tokenizer=, **fields of EncoderConfig) -> folder of a random BERT in Hugging Face form."""
    tiny_tokenizer = load_tokenizer(tiny_inputs / "tokenizer")

    def make(*, head: bool = True, tokenizer: Any = tiny_tokenizer, **fields: Any) -> str:
        sizes = {"vocab_size": tiny_tokenizer.vocab_size, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
        sizes |= {"intermediate_size": 24, "max_position_embeddings": 32, "type_vocab_size": 2}
        config = EncoderConfig(**{"family": "bert", **sizes, **fields})
        params = random_params(config)
        folder = tmp_path_factory.mktemp("model") / "model"
        save_pretrained(folder, config, params if head else params["encoder"], tokenizer=tokenizer)
        return str(folder)

    return make
