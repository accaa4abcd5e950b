"""Settings of runs and commands: the schema, TOML files, the command line, the identity of a run."""

from distil_jax.config.arguments import CONFIG_FLAG, parse_arguments, parse_command
from distil_jax.config.commands import (
    Arguments,
    BenchmarkArguments,
    CheckArguments,
    CompareArguments,
    EmbedArguments,
    EvaluateArguments,
    ExportArguments,
    LatencyArguments,
    PlanArguments,
    PlotArguments,
    PredictArguments,
    PushArguments,
    QuickstartArguments,
    ReportArguments,
    ServeArguments,
    TrimArguments,
)
from distil_jax.config.fields import fields_of
from distil_jax.config.files import (
    config_from_toml,
    config_to_toml,
    differences,
    load_config,
    run_identity,
    settings_in,
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
    Pruning,
    Run,
    Student,
    Teacher,
    Training,
    require,
)
from distil_jax.config.short_help import WIDTH, ShortHelp, in_flags
from distil_jax.config.tasks import Augment, FineTune, Study, TaskSettings, listed_weights
from distil_jax.config.terms import ActivationTerms, Schedule
