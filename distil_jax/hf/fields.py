"""Settings files in JSON: read whole, then looked up field by field with the file and field in every message."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distil_jax.errors import UserError, shown
from distil_jax.hf.families import ConfigField

# transformers' names of the same function -> names here. The tanh forms differ in rounding only.
ACTIVATION_NAMES = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_new"),
    "relu": "relu",
    **dict.fromkeys(("silu", "swish"), "silu"),
}
# Far beyond any BERT; a larger number is a typing mistake or a hostile file, and would only run out of memory later.
_LARGEST = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 16,
    "embedding_size": 1 << 16,
    "num_layers": 1 << 10,
    "num_heads": 1 << 10,
    "intermediate_size": 1 << 18,
    "max_position_embeddings": 1 << 20,
    "type_vocab_size": 1 << 10,
}
_BELOW = {"hidden_dropout": 1.0, "attention_dropout": 1.0, "layer_norm_eps": 1.0, "initializer_range": math.inf}
_LARGEST_FILE = 1 << 20  # bytes; settings in a model folder have a few kB


def read_json(path: Path, limit: int = _LARGEST_FILE) -> dict[str, Any]:
    """The JSON object in a file. UserError if it is absent, larger than `limit` bytes, or not an object."""
    return _read(path, limit, dict, "an object of settings")


def read_json_list(path: Path) -> list[Any]:
    """The JSON list in a file. UserError if it is absent, too large, or not a list."""
    return _read(path, _LARGEST_FILE, list, "a list")


def _read(path: Path, limit: int, kind: type[Any], expected: str) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file; a model folder holds config.json, weights and tokenizer files")
    if path.stat().st_size > limit:
        raise UserError(f"{path}: {path.stat().st_size} bytes, more than the {limit} a file of this kind may have")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(raw, kind):
        raise UserError(f"{path}: holds a JSON {type(raw).__name__}, expected {expected}")
    return raw


class Fields:
    """Typed look-ups in the object `raw` of the file `where`."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def encoder_value(self, attribute: str, field: ConfigField) -> Any:
        """The value of the field `attribute` of `EncoderConfig`."""
        name = next((name for name in (field.name, *field.aliases) if name in self.raw), field.name)
        if attribute in _LARGEST:
            return self.size(name, field.default, 0 if attribute == "type_vocab_size" else 1, _LARGEST[attribute])
        if attribute in _BELOW:
            return self.number(name, field.default, 0.0, _BELOW[attribute])
        if attribute == "activation":
            return self.activation(name, field.default)
        value = self.raw.get(name)  # pad_token_id, null where the model has none
        return self.size(name, field.default, 0, _LARGEST["vocab_size"]) if value is not None else field.default

    def size(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self.raw.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UserError(f"{self.where}: {name} = {shown(value)}, expected a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from `low` to below `high`."""
        value = self.raw.get(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value < high:
            raise UserError(f"{self.where}: {name} = {shown(value)}, expected a number from {low} to below {high}")
        return float(value)

    def activation(self, name: str, default: str) -> str:
        """The name of an activation in `distil_jax.models`."""
        value = self.raw.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATION_NAMES:
            raise UserError(
                f"{self.where}: {name} = {shown(value)} is not supported; known: {', '.join(ACTIVATION_NAMES)}"
            )
        return ACTIVATION_NAMES[value]
