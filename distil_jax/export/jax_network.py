"""A model of any head as the function of its inputs that files of other formats are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from distil_jax.models import AttentionKind, Encoder, EncoderConfig, EncoderInputs, MaskedLM, TaskHead, TaskModel
from distil_jax.training.task_step import readable


def make_module(
    config: EncoderConfig, params: Any, head: TaskHead | None, *, attention: AttentionKind = "auto"
) -> tuple[Any, Any]:
    """The module of a model, and its parameters; of an encoder without a head the encoder's own."""
    if head is not None:
        return TaskModel(config, head, attention=attention), params
    if "mlm_head" in params:
        return MaskedLM(config, attention=attention), params
    return Encoder(config, attention=attention), params["encoder"]


def network_of(config: EncoderConfig, params: Any, head: TaskHead | None) -> Callable[[EncoderInputs], np.ndarray]:
    """A function (inputs of NumPy) -> what the model gives, float32; it compiles once for every shape."""
    module, params = make_module(config, params, head)
    placed = jax.device_put(params)
    apply = jax.jit(lambda params, inputs: module.apply({"params": params}, readable(module, inputs)))
    return lambda inputs: np.asarray(apply(placed, inputs), np.float32)
