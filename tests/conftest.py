"""Settings of every test: eight virtual CPU devices, programs compiled in a hurry, strict shapes, no network."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Programs here are tiny and run a few times: what takes the time is to compile them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import jax
import pytest

if TYPE_CHECKING:
    from distil_jax.config import Config
    from distil_jax.training.loop import TrainResult

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[2] / "shared"


# The rows of the table of faults: what may be named by @pytest.mark.fault.
FAULTS = (
    *("SIGKILL at random moments", "SIGKILL, aimed", "checkpoint damaged", "all checkpoints damaged"),
    *("SIGTERM, one process", "SIGTERM, two processes", "SIGTERM while compiling or evaluating"),
    *("Ctrl-C at a random step", "other devices or processes on resume"),
    *("a process is killed", "a process raises", "a process sleeps forever", "a process is stopped (SIGSTOP)"),
    *("loss or gradient not finite", "disk full", "output read-only", "output vanished", "two runs in one folder"),
    *("stale lock", "wrong device", "checkpoint of another version", "checkpoint of other shapes or types"),
    *("hostile pickles", "hostile model files, other", "hostile texts", "lines of 1 GB", "hostile token shards"),
    "hostile configurations",
)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FaultTable())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("fault")
        if mark is None:
            continue
        if mark.args[0] not in FAULTS:
            raise pytest.UsageError(f"{item.nodeid}: {mark.args[0]!r} is no row of the table of faults ({__file__})")
        item.user_properties.append(("fault", (mark.args[0], mark.kwargs.get("tries", 1))))


class FaultTable:
    """Counts what tests marked `fault` have tried, and survived, which is all of it or nothing; wherever they ran."""

    def __init__(self) -> None:
        """Begin with an empty table."""
        self.rows: dict[str, dict[str, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        fault: Any = dict(report.user_properties).get("fault")
        if fault is None or not (report.failed or (report.passed and report.when == "call")):
            return
        name, tries = fault
        row = self.rows.setdefault(name, dict.fromkeys(("tries", "good", "s"), 0))
        row["tries"] += tries
        row["good"] += tries * report.passed
        row["s"] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table, in Markdown."""
        if not self.rows:
            return
        terminalreporter.section("faults")
        terminalreporter.write_line("| fault | tries | survived | seconds |\n|---|---:|---:|---:|")
        for fault in filter(self.rows.__contains__, FAULTS):
            row = self.rows[fault]
            terminalreporter.write_line(f"| {fault} | {row['tries']:,} | {row['good']:,} | {row['s']:,.0f} |")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and goldens beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the folder of real data and goldens at {SHARED}")
    return SHARED


WORDS = (
    "the cat dog sat on a mat and ran fast home to eat red fish with big old blue sea bird sky tree near river under "
    "moon light over hill green wind cold warm day night walks sings reads book door house garden stone water bread"
)
TINY_CONFIG = """
[corpus]
folder = "{folder}/corpus"
train = ["{folder}/text/train.txt"]
validation = ["{folder}/text/validation.txt"]
tokenizer = "{folder}/tokenizer"
sequence_length = 24
min_tokens = 6
workers = 1

[model]
num_layers = 2
hidden_size = 16
num_heads = 2
intermediate_size = 24
max_position_embeddings = 32

[training]
steps = 2
batch_size = 8
micro_batch_size = 4

[parallel]
devices = 2

[checkpoint]
every_steps = 1

[evaluation]
rows = 12
batch_size = 8

[logging]
every_steps = 1
tensorboard = false
progress = "none"
"""


@pytest.fixture(scope="session")
def tiny_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text/train.txt, text/validation.txt, tokenizer/ and config.toml of a run that takes seconds."""
    import random

    from distil_jax.hf import load_tokenizer, save_tokenizer

    folder, chance = tmp_path_factory.mktemp("tiny"), random.Random(0)
    (folder / "text").mkdir()
    for name, lines in (("train", 160), ("validation", 40)):
        text = [" ".join(chance.choices(WORDS.split(), k=chance.randint(6, 30))) + "." for _ in range(lines)]
        (folder / "text" / f"{name}.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *sorted(set(WORDS.split()))]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    save_tokenizer(folder / "tokenizer", load_tokenizer(folder / "vocab.txt"))
    (folder / "config.toml").write_text(TINY_CONFIG.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_world(tiny_inputs: Path) -> Path:
    """`tiny_inputs` with its corpus/ prepared and a random BERT in teacher/."""
    import numpy as np

    from distil_jax.config import load_config
    from distil_jax.data.corpus import prepare_splits
    from distil_jax.hf import load_tokenizer, save_pretrained
    from distil_jax.models import EncoderConfig, MaskedLM

    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    prepare_splits(load_config(tiny_inputs / "config.toml").corpus, tokenizer)
    config = EncoderConfig("bert", tokenizer.vocab_size, 16, 2, 2, 24, 32, type_vocab_size=2, initializer_range=0.3)
    init = jax.jit(lambda: MaskedLM(config).init(jax.random.key(5), jax.numpy.zeros((1, 4), "int32"))["params"])
    noise = np.random.default_rng(5)
    params = jax.tree.map(lambda x: np.asarray(x + 0.1 * noise.standard_normal(x.shape).astype("float32")), init())
    save_pretrained(tiny_inputs / "teacher", config, params, tokenizer=tokenizer)
    return tiny_inputs


@pytest.fixture(scope="session")
def tiny_run(tiny_world: Path) -> Path:
    """The folder of a finished distillation of two steps in `tiny_world`, with a checkpoint of each."""
    from distil_jax.config import load_config
    from distil_jax.training.distill import distill

    output = tiny_world / "runs" / "student"
    overrides = {"run.output": str(output), "teacher.path": str(tiny_world / "teacher")}
    distill(load_config(tiny_world / "config.toml", overrides))
    return output


@pytest.fixture(scope="session")
def program_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the session keeps compiled programs, so that runs and processes share them."""
    folder = tmp_path_factory.mktemp("programs")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


@pytest.fixture(scope="session")
def command_environment(program_cache: Path) -> dict[str, str]:
    """Variables for processes of the command line: on CPU, with the session's compiled programs."""
    return {
        "JAX_PLATFORMS": "cpu",
        "DISTIL_JAX_RESTART": "0",  # which would start another process
        "JAX_COMPILATION_CACHE_DIR": str(program_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


RUN = {
    "student.layers": [1],
    "training.steps": 12,
    "parallel.devices": 1,
    "checkpoint.every_steps": 2,
    "checkpoint.keep": 10,
    "evaluation.every_steps": 3,
    "optimizer.warmup_fraction": 0.25,
}


@pytest.fixture(scope="session")
def tiny_config(tiny_world: Path, program_cache: Path) -> Callable[..., Config]:
    """A function (output, {"section.key": value}) -> configuration of a run of 12 steps on one device."""
    from distil_jax.config import load_config

    def make(output: Path, changes: Mapping[str, Any] | None = None) -> Config:
        overrides = {"run.output": str(output), "teacher.path": str(tiny_world / "teacher"), **RUN, **(changes or {})}
        return load_config(tiny_world / "config.toml", overrides)

    return make


class WholeRun(NamedTuple):
    """A distillation that was not interrupted: its folder, what it returned, its last state in NumPy arrays."""

    folder: Path
    config: Config
    outcome: TrainResult
    state: Any


@pytest.fixture(scope="session")
def whole_run(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """The run that `tiny_config` describes, from start to end."""
    import numpy as np

    from distil_jax.training.distill import distill

    folder = tmp_path_factory.mktemp("whole") / "run"
    config = tiny_config(folder)
    outcome = distill(config)
    return WholeRun(folder, config, outcome, jax.tree.map(np.asarray, outcome.state))


@pytest.fixture(scope="session")
def model_folder(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function (head=, tokenizer=, **fields of EncoderConfig) -> folder of a random BERT in Hugging Face form."""
    import numpy as np

    from distil_jax.hf import load_tokenizer, save_pretrained
    from distil_jax.models import EncoderConfig, MaskedLM

    tiny_tokenizer, ids = load_tokenizer(tiny_inputs / "tokenizer"), np.zeros((1, 4), np.int32)

    def make(*, head: bool = True, tokenizer: Any = tiny_tokenizer, **fields: Any) -> str:
        sizes = {"vocab_size": tiny_tokenizer.vocab_size, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
        sizes |= {"intermediate_size": 24, "max_position_embeddings": 32, "type_vocab_size": 2}
        config = EncoderConfig(**{"family": "bert", **sizes, **fields})
        shapes = jax.eval_shape(lambda: MaskedLM(config).init(jax.random.key(0), ids)["params"])
        random = np.random.default_rng(0)
        # Drawn by NumPy, so that nothing has to be compiled.
        params = jax.tree.map(lambda x: (0.3 * random.standard_normal(x.shape)).astype(np.float32), shapes)
        folder = tmp_path_factory.mktemp("model") / "model"
        save_pretrained(folder, config, params if head else {"encoder": params["encoder"]}, tokenizer=tokenizer)
        return str(folder)

    return make


# kind, labels, number of outputs, problem, by what tests call it
HEADS: dict[str, tuple[Any, tuple[str, ...], int, Any]] = {
    "classes": ("sequence", ("bad", "fair", "good"), 3, "single_label_classification"),
    "sets": ("sequence", ("art", "news", "sport"), 3, "multi_label_classification"),
    "score": ("sequence", (), 1, "regression"),
    "tags": ("token", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), 5, ""),
    "answers": ("question", (), 2, ""),
    "choices": ("choice", (), 1, ""),
}


@pytest.fixture(scope="session")
def task_folder(
    tiny_inputs: Path, program_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A function (name in HEADS, family) -> folder of a random model with that head, the same one every time."""
    import numpy as np

    from distil_jax.hf import load_tokenizer, save_pretrained
    from distil_jax.models import EncoderConfig, TaskHead, TaskModel

    tokenizer, made = load_tokenizer(tiny_inputs / "tokenizer"), {}

    def make(name: str, family: Any = "bert") -> Path:
        if (name, family) not in made:
            kind, labels, outputs, problem = HEADS[name]
            dense = family == "distilbert" and kind in ("sequence", "choice")
            head = TaskHead(kind, labels=labels, num_outputs=outputs, dense=dense, problem=problem)
            types = 2 if family == "bert" else 0
            pooler = head.needs_pooler
            config = EncoderConfig(family, tokenizer.vocab_size, 16, 2, 2, 24, 64, type_vocab_size=types, pooler=pooler)
            model, ids = TaskModel(config, head), np.zeros((1, 4), np.int32)
            shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids)["params"])
            random = np.random.default_rng(3)

            def drawn(path: Any, x: Any) -> np.ndarray:
                # Large, so that texts come out far apart; by NumPy, so that nothing has to be compiled.
                values = 1.0 * (path[-1].key == "scale") + 0.5 * random.standard_normal(x.shape)
                return values.astype(np.float32)

            params = jax.tree_util.tree_map_with_path(drawn, shapes)
            made[name, family] = tmp_path_factory.mktemp(name) / "model"
            save_pretrained(made[name, family], config, params, head=head, tokenizer=tokenizer)
        return made[name, family]

    return make


@pytest.fixture(scope="session")
def task_run(tiny_world: Path, program_cache: Path) -> Path:
    """The folder of a finished fine-tuning of pairs into two classes, with a checkpoint of each of its four steps."""
    from distil_jax.config import load_config
    from distil_jax.training.finetune import finetune

    words = ["cat", "dog", "sat", "ran", "home", "red", "fish", "bird", "sky", "moon"]
    rows = [
        f"the {words[i % 10]} {words[i % 7]},a {words[(3 * i) % 10]} and,{'same' if i % 3 else 'other'}"
        for i in range(24)
    ]
    for name, part in (("train", rows[:16]), ("validation", rows[16:])):
        lines = ["first,second,label", *part]
        (tiny_world / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = tiny_world / "runs" / "task"
    overrides = {
        "run.output": str(output),
        "model.initial": str(tiny_world / "teacher"),
        "task.name": "classification",
        "task.train": str(tiny_world / "train.csv"),
        "task.validation": str(tiny_world / "validation.csv"),
        "task.text": "first",
        "task.pair": "second",
        "task.max_length": 24,
        "training.steps": 4,
        "training.batch_size": 8,
        "training.micro_batch_size": 8,
        "parallel.devices": 1,
        "checkpoint.keep": 10,
        "checkpoint.every_steps": 1,
        "evaluation.every_steps": 1,
        "optimizer.learning_rate": 1e-2,
        "logging.tensorboard": False,
        "logging.progress": "none",
    }
    finetune(load_config("finetune", overrides))
    return output


# Tiny tasks of every kind, in files of our own words, and runs on them.

GOOD, BAD = ("warm", "old", "big", "green"), ("cold", "blue", "red", "dark")
TASK_WORDS = ("the", "cat", "dog", "house", "tree", "sings", "runs", "near", "under", "river", "night")
TASK_RUN = {
    "training.batch_size": 8,
    "training.micro_batch_size": 8,
    "training.epochs": 2,
    "parallel.devices": 1,
    "evaluation.batch_size": 8,
    "logging.every_steps": 1,
    "logging.tensorboard": False,
    "logging.progress": "none",
    "optimizer.learning_rate": 1e-2,
    "task.max_length": 24,
}


def _sentence(chance: random.Random, kind: str) -> str:
    words = chance.choices(TASK_WORDS, k=chance.randint(0, 4)) + chance.choices(GOOD if kind == "good" else BAD, k=4)
    return " ".join(chance.sample(words, len(words)))


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Settings [task] of one tiny task a kind, by its name."""
    folder, chance = tmp_path_factory.mktemp("tasks"), random.Random(1)
    kinds = [chance.choice(("good", "bad")) for _ in range(40)]
    texts = [{"text": _sentence(chance, kind), "label": kind} for kind in kinds]
    scores = [{"text": row["text"], "label": 0.5 * len(row["text"].split())} for row in texts]
    sets = [{"text": row["text"], "label": [row["label"]]} for row in texts]
    tags = [
        {"words": row["text"].split(), "tags": ["B-X" if word in GOOD + BAD else "O" for word in row["text"].split()]}
        for row in texts
    ]
    questions = []
    for number in range(16):
        words = chance.choices(TASK_WORDS, k=14)
        place = len(" ".join(words[:5])) + 1
        answer = {"text": [words[5]], "answer_start": [place]}
        questions.append({"id": str(number), "question": "the cat", "context": " ".join(words), "answers": answer})
    choices = [
        {"text": _sentence(chance, "good"), "one": "the tree", "two": "a river runs", "label": chance.randint(0, 1)}
        for _ in range(16)
    ]
    files = {
        "classification": _jsonl(folder / "classes.jsonl", texts),
        "regression": _jsonl(folder / "scores.jsonl", scores),
        "multilabel": _jsonl(folder / "sets.jsonl", sets),
        "tagging": _jsonl(folder / "tags.jsonl", tags),
        "question": _jsonl(folder / "questions.jsonl", questions),
        "choice": _jsonl(folder / "choices.jsonl", choices),
    }
    more: dict[str, dict[str, Any]] = {
        "question": {"task.doc_stride": 4, "task.max_question_length": 4, "task.max_length": 16},
        "choice": {"task.endings": ["one", "two"]},
        "multilabel": {"task.labels": ["good", "bad"]},
    }
    return {name: {"task.name": name, "task.train": path, **more.get(name, {})} for name, path in files.items()}


@pytest.fixture(scope="session")
def learner(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a BERT encoder of one layer with weights as before training, which learn easily."""
    import jax.numpy as jnp
    import numpy as np

    from distil_jax.hf import load_tokenizer, save_pretrained
    from distil_jax.models import Encoder, EncoderConfig

    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    config = EncoderConfig(
        "bert", tokenizer.vocab_size, 16, 1, 2, 32, 32, type_vocab_size=2, initializer_range=0.1, hidden_dropout=0.0
    )
    init = jax.jit(lambda: Encoder(config).init(jax.random.key(3), jnp.zeros((1, 4), jnp.int32))["params"])
    folder = tmp_path_factory.mktemp("learner") / "model"
    save_pretrained(folder, config, jax.tree.map(np.asarray, init()), tokenizer=tokenizer)
    return str(folder)


@pytest.fixture(scope="session")
def task_config(
    task_files: Mapping[str, Mapping[str, Any]], learner: str, program_cache: Path
) -> Callable[..., Config]:
    """A function (task, output, {"section.key": value}) -> configuration of a run of seconds."""

    def make(task: str, output: Path, changes: Mapping[str, Any] | None = None) -> Config:
        from distil_jax.config import load_config, with_overrides

        settings = {**TASK_RUN, **task_files[task], "model.initial": learner, "run.output": str(output)}
        return with_overrides(load_config("finetune"), {**settings, **(changes or {})})

    return make
