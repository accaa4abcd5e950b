"""`distil-jax <command>`: parse, call one function, print.

Exit status: 0 done, 1 a bug or a fault, 2 the user's mistake, 130 interrupted, 143 preempted.
"""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Sequence

from distil_jax.cli import benchmark, models, runs, training
from distil_jax.cli.command import Command
from distil_jax.config import (
    WIDTH,
    CheckArguments,
    CompareArguments,
    EmbedArguments,
    ExportArguments,
    LatencyArguments,
    PlotArguments,
    PredictArguments,
    PushArguments,
    QuickstartArguments,
    ReportArguments,
    ServeArguments,
    TrimArguments,
    in_flags,
)
from distil_jax.errors import FaultError, PreemptedError, UserError, storage_reason

COMMANDS = {
    "quickstart": Command(
        "a teacher, a student and their measures from nothing, small (no network, three minutes of processor time)",
        models.run_quickstart,
        QuickstartArguments,
    ),
    "prepare": Command("text -> token shards", training.run_prepare),
    "pretrain": Command("train a masked language model, or a head for an encoder", training.train_command("pretrain")),
    "distill": Command("teacher -> student", training.train_command("distill")),
    "cache-teacher": Command("teacher -> what it says of a distillation's batches, once", training.run_cache_teacher),
    "finetune": Command(
        "model -> task model (GLUE, SQuAD, tagging, own data), alone or with a task teacher", training.run_finetune
    ),
    "study": Command(
        "students that differ in objective, start or tokens, compared on tasks: a report",
        training.run_study_of_students,
    ),
    "resume": Command("continue the run or study in a folder as it was started", runs.run_resume),
    "check": Command(
        "verify a run, a prepared corpus or an exported model by its hashes", models.run_check, CheckArguments
    ),
    "evaluate": Command(
        "held-out measures of runs and model folders; with --task, scores on a task", models.run_evaluate
    ),
    "predict": Command(
        "texts, files or a pipe -> labels, scores, tags or answers", models.run_predict, PredictArguments
    ),
    "embed": Command(
        "texts of a file or pipe -> vectors (.npy, Parquet, JSON Lines)", models.run_embed, EmbedArguments
    ),
    "serve": Command("a model behind HTTP: predictions or vectors", models.run_serve, ServeArguments),
    "export": Command(
        "run or model -> Hugging Face folder, ONNX, int8; each file is checked by running it",
        models.run_export,
        ExportArguments,
    ),
    "prune": Command("task model -> a smaller one without the neurons that matter least", models.run_prune),
    "trim": Command(
        "model -> a smaller one with the tokens of a corpus, the same results", models.run_trim, TrimArguments
    ),
    "push": Command("run or exported model -> repository on the hub", models.run_push, PushArguments),
    "latency": Command(
        "time of single texts and batches in JAX, PyTorch, ONNX and int8, models side by side",
        benchmark.run_latency,
        LatencyArguments,
    ),
    "benchmark": Command("speed, memory and utilisation of a configuration's step", benchmark.run_benchmark),
    "plan": Command("what a run needs on a device that need not be here: memory, time, cost", benchmark.run_plan),
    "compare": Command(
        "scores of fine-tuning studies side by side, with retention", models.run_compare, CompareArguments
    ),
    "report": Command("runs as one HTML page: curves, scores, errors, commands", models.run_report, ReportArguments),
    "plot": Command("held-out curves of runs as a picture", models.run_plot, PlotArguments),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "-v" in arguments:
        arguments.remove("-v")
        _log_more()
    try:
        return _dispatch(arguments)
    except UserError as mistake:
        return _end(2, f"distil-jax: error: {in_flags(str(mistake), arguments)}")
    except FaultError as fault:
        return _end(1, f"distil-jax: fault: {fault}")
    except PreemptedError as end:
        return end.status
    except KeyboardInterrupt:
        print(
            "distil-jax: interrupted; the same command continues from the last checkpoint, if there is one",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        return _end(1, _crash(error, arguments))


def _log_more() -> None:
    """Print what the log has at level INFO, too."""
    logger = logging.getLogger("distil_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())


def _crash(error: Exception, arguments: Sequence[str]) -> str:
    if reason := storage_reason(error):
        return f"distil-jax: fault: {reason}"
    from distil_jax.cli.crash import crash_report

    return crash_report(error, arguments)


def _end(status: int, text: str) -> int:
    print(text, file=sys.stderr, flush=True)
    _leave_other_processes(status, text.partition("\n")[0].removeprefix("distil-jax: "))
    return status


def _leave_other_processes(status: int, reason: str) -> None:
    """End at once as one process of several. A usual exit waits for the others, which wait for this one."""
    if "jax" in sys.modules:
        from distil_jax.runs import startup

        startup.end_failed_process(status, reason)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from distil_jax import __version__

        print(f"distil-jax {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
        raise UserError(f"there is no command {name!r}; did you mean {near[0]}? `distil-jax --help` lists them")
    return COMMANDS[name](name, rest)


def _overview() -> str:
    indent = max(map(len, COMMANDS)) + 4
    rows = "\n".join(
        textwrap.fill(
            command.text,
            WIDTH,
            initial_indent=f"  {name:<{indent - 2}}",
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
        for name, command in COMMANDS.items()
    )
    return (
        "usage: distil-jax [-v] COMMAND [--config FILE] [--section.key VALUE ...]\n\n"
        "Distil a BERT-family encoder into a small, fast one, from and to Hugging Face\nfolders.\n\n"
        f"commands:\n{rows}\n\n`distil-jax COMMAND --help` shows what it needs and an example."
    )
