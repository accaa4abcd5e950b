"""Distil BERT-family encoders into small, fast ones with JAX, in and out of Hugging Face format.

The commands of `distil-jax` as functions: `distill`, `pretrain`, `finetune`, `evaluate`, `predict`, `load_predictor`,
`encode`, `load_embedder`, `export` (also called `export_model`). Models: `from_pretrained`, `save_pretrained`,
`load_tokenizer`. The parts of a training loop of one's own: `MaskedLM`, `TaskModel`, `Encoder`, `student_config`,
`student_params`, `TERMS`, `make_train_step`. What is wrong with an argument is a `UserError` of one line.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.api import (
        Result,
        distill,
        evaluate,
        export_model,
        finetune,
        load_predictor,
        predict,
        pretrain,
    )
    from distil_jax.config import Config, load_config
    from distil_jax.errors import UserError
    from distil_jax.export import encode, load_embedder
    from distil_jax.hf import from_pretrained, load_tokenizer, save_pretrained
    from distil_jax.models import Encoder, EncoderConfig, EncoderInputs, MaskedLM, TaskHead, TaskModel
    from distil_jax.objectives import (
        TERMS,
        LossTerm,
        SumCount,
        cross_entropy,
        distillation_kl,
        student_config,
        student_params,
    )
    from distil_jax.training.optimizer import learning_rate_schedule, make_optimizer
    from distil_jax.training.parallel import Devices, make_devices
    from distil_jax.training.step import (
        FrozenInputs,
        StepConfig,
        StepSums,
        TrainState,
        init_state,
        make_train_step,
    )

    export = export_model
else:
    from distil_jax import export

    class _Export(ModuleType):
        """The package `export`, which is called like the command of that name, as its siblings are."""

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            """`export_model` of the same arguments."""
            from distil_jax.api import export_model

            return export_model(*arguments, **options)

    export.__class__ = _Export
    __getattr__ = lazy_imports(__name__)

__version__ = "0.1.0"
__all__ = [
    "TERMS",
    "Config",
    "Devices",
    "Encoder",
    "EncoderConfig",
    "EncoderInputs",
    "FrozenInputs",
    "LossTerm",
    "MaskedLM",
    "Result",
    "StepConfig",
    "StepSums",
    "SumCount",
    "TaskHead",
    "TaskModel",
    "TrainState",
    "UserError",
    "__version__",
    "cross_entropy",
    "distill",
    "distillation_kl",
    "encode",
    "evaluate",
    "export_model",
    "finetune",
    "from_pretrained",
    "init_state",
    "learning_rate_schedule",
    "load_config",
    "load_embedder",
    "load_predictor",
    "load_tokenizer",
    "make_devices",
    "make_optimizer",
    "make_train_step",
    "predict",
    "pretrain",
    "save_pretrained",
    "student_config",
    "student_params",
]


def __dir__() -> list[str]:
    return [*__all__, "export"]
