"""Settings of a run: the schema, TOML files with inheritance, command-line overrides, the identity of a run."""

from distil_jax.config.arguments import parse_arguments
from distil_jax.config.fields import fields_of
from distil_jax.config.files import (
    config_from_toml,
    config_to_toml,
    differences,
    load_config,
    run_identity,
    shipped_config,
    with_overrides,
)
from distil_jax.config.schema import (
    SECTIONS,
    Checkpoint,
    Config,
    CorpusSettings,
    Evaluation,
    Logging,
    Masking,
    Model,
    Objective,
    Optimizer,
    Parallel,
    Run,
    Student,
    Teacher,
    Training,
    require,
)
from distil_jax.config.tasks import FineTune, Study, TaskSettings

__all__ = [
    "SECTIONS",
    "Checkpoint",
    "Config",
    "CorpusSettings",
    "Evaluation",
    "FineTune",
    "Logging",
    "Masking",
    "Model",
    "Objective",
    "Optimizer",
    "Parallel",
    "Run",
    "Student",
    "Study",
    "TaskSettings",
    "Teacher",
    "Training",
    "config_from_toml",
    "config_to_toml",
    "differences",
    "fields_of",
    "load_config",
    "parse_arguments",
    "require",
    "run_identity",
    "shipped_config",
    "with_overrides",
]
