"""Arguments of the commands that take a few of their own, with every default, meaning and check."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from distil_jax.config.fields import (
    NO_EMPTY_ITEM,
    NOT_EMPTY,
    SEPARATOR,
    Section,
    above,
    at_least,
    between,
    each,
    one_of_each,
    setting,
)
from distil_jax.config.schema import Masking
from distil_jax.errors import UserError

_RUNTIMES = ("jax", "pytorch", "onnx", "onnx-int8", "litert", "litert-int8")
REQUIRED: Any = dataclasses.MISSING


def _step(more: str = "") -> Any:
    """The field of a checkpoint's number."""
    return setting(-1, f"which checkpoint of a run; -1: its result{more}", at_least(-1))


class Arguments(Section):
    """Base of the arguments of a command. `positional` names the fields without a flag; `example` is a command."""

    positional: ClassVar[str] = ""
    example: ClassVar[str] = ""

    @classmethod
    def full_name(cls, key: str) -> str:
        """What the user types: "--batch-size"."""
        return key if key in cls.positional.split() else f"--{key.replace('_', '-')}"

    @classmethod
    def label(cls, key: str) -> str:
        """What the help calls it: "MODEL", "--batch-size"."""
        return key.upper() if key in cls.positional.split() else cls.full_name(key)


@dataclass(frozen=True)
class ExportArguments(Arguments):
    """Write a model in one or more formats, with tokenizer and model card, and check each file by running it.

    Files are compared with the model on the rows of --check, else on the validation set of its task, else on built-in
    sentences. export.json and the model card hold sizes, differences and scores.
    """

    example = "distil-jax export runs/mine --output models/mine --format hf onnx-int8"
    positional = "model"
    model: str = setting(REQUIRED, "folder of a run, model folder or hub id")
    output: str = setting(REQUIRED, "folder to write")
    format: tuple[str, ...] = setting(
        ("hf",),
        "what is written; hf: a Hugging Face folder; onnx: ONNX in float32; onnx-int8: int8 weights and activations; "
        "onnx-q8, onnx-q4: weights of 8 or 4 bits in blocks; litert, litert-int8: LiteRT (.tflite) for phones; coreml, "
        "coreml-int8: for Apple's systems, in float16 or with weights of 8 bits, not run here; stablehlo: for "
        "jax.export on CPU, CUDA and TPU",
        NO_EMPTY_ITEM,
    )
    step: int = _step(" (finetune.keep: best or last)")
    pooling: Literal["auto", "none", "mean", "cls", "max"] = setting(
        "auto",
        "how the encoder makes one vector of a text, for sentence-transformers; auto: as the model it was made of",
    )
    normalize: bool | None = setting(None, "vectors of length 1; None: as the model it was made of")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "type of the weights of format hf")
    lengths: tuple[int, ...] = setting(
        (), "tokens of the rows that LiteRT files take; empty: 32, 128, 384 up to the longest row", each(at_least(1))
    )
    check: str = setting(
        "", "rows to check files on, as `predict --input` takes them; of a model without a task, texts"
    )
    task: str = setting("", "known task whose validation set files are scored on; empty: the one of the run")
    task_source: str = setting("", "where the data of --task are, as task.source; empty: the task's dataset id")
    check_rows: int = setting(2000, "examples that files are checked on at most; 0: all", at_least(0))
    max_drop: float = setting(
        1.0,
        "points of 100 that a quantised file may lose, else it is not written: of the score, without labels of equal "
        "decisions or of the rank correlation; not for built-in sentences",
        at_least(0),
    )
    force: bool = setting(False, "write quantised files whatever they lose")
    calibrate: bool = setting(
        False,
        "find the layers whose quantisation costs most, one by one, and keep as many of them in float32 as needed",
    )
    overwrite: bool = setting(False, "replace an existing model folder")

    def validate(self) -> None:
        if not self.format:
            raise UserError("--format: none given; name at least one, such as hf")
        if self.check and self.task:
            raise UserError("--check and --task are both given; give one of the two")
        if self.task_source and not self.task:
            raise UserError("--task-source: has no effect without --task; give that too")
        if self.dtype != "float32" and "hf" not in self.format:
            raise UserError(f"--dtype {self.dtype}: is of format hf alone; add it to --format, or leave --dtype out")
        if self.lengths and not any(one.startswith("litert") for one in self.format):
            raise UserError("--lengths: is of the formats litert and litert-int8; add one to --format, or leave it out")


@dataclass(frozen=True)
class PushArguments(Arguments):
    """Upload a model to the hub, with its card. The same command continues an upload that was interrupted."""

    example = "distil-jax push runs/mine user/mine --private"
    positional = "model repository"
    model: str = setting(REQUIRED, "folder of a run, which is exported first, or of an exported model")
    repository: str = setting(REQUIRED, "user/name on the hub; made where it is not there")
    private: bool = setting(False, "make a new repository that only its owners see")
    message: str = setting("", "message of the commit; empty: that of the hub")
    step: int = _step()


@dataclass(frozen=True)
class EvaluateArguments(Arguments):
    """Measure masked language models on held-out rows: loss, perplexity, accuracy, likeness to a teacher.

    With --task NAME, the scores of one fine-tuned model on a task: distil-jax evaluate MODEL --task NAME --help
    """

    example = "distil-jax evaluate runs/mine models/teacher --corpus data/mine/validation --teacher models/teacher"
    positional = "models"
    models: tuple[str, ...] = setting(REQUIRED, "runs, model folders or hub ids")
    corpus: str = setting(REQUIRED, "folder of token shards, e.g. data/wiki/validation")
    teacher: str = setting("", "run, folder or hub id to compare with")
    rows: int = setting(0, "rows used, the first ones; 0: all", at_least(0))
    seed: int = setting(0, "seed of the masks", at_least(0))
    smoothing: float = setting(
        Masking().smoothing, "rare tokens are masked more often by count^-smoothing; 0: all alike", between(0, 100)
    )
    json: str = setting("", "also write the measures to this file")


@dataclass(frozen=True)
class PredictArguments(Arguments):
    """Predict texts, or the rows of a file, with a fine-tuned model."""

    example = "distil-jax predict runs/sst2 --input reviews.csv --output labelled.csv"
    positional = "model"
    model: str = setting(REQUIRED, "folder of a fine-tuning run, model folder or hub id")
    text: tuple[str, ...] = setting((), "texts (tagging: words between blanks; choice: what precedes the endings)")
    pair: tuple[str, ...] = setting((), "second texts, as many as texts (choice: start of every ending)")
    question: str = setting("", "question about --context")
    context: str = setting("", "text that holds the answer")
    endings: tuple[str, ...] = setting((), "what may follow --text")
    input: str = setting(
        "",
        "file: .txt (a text a line), .jsonl, .json, .csv, .tsv or .parquet; CoNLL columns for tags, SQuAD's .json for "
        "questions; -: standard input",
    )
    input_format: Literal["auto", "csv", "tsv", "jsonl", "json", "parquet", "text", "conll", "conllu"] = setting(
        "auto", "of --input; auto: by its ending, a pipe's by its first line"
    )
    separator: str = setting(
        "",
        'mark between the columns of CSV and TSV, such as ";" or "tab"; empty: as in fine-tuning, or found',
        SEPARATOR,
    )
    output: str = setting(
        "-",
        "file to write, replaced if it is there: .jsonl, .csv, .tsv or .parquet, with the columns of the input; "
        "-: JSON Lines of ids and predictions on standard output",
    )
    text_column: str = setting("", "column of texts, questions or words; empty: as in fine-tuning, or the usual names")
    pair_column: str = setting(
        "", "column of second texts, contexts or starts of endings; empty: as in fine-tuning, or the usual names"
    )
    endings_columns: tuple[str, ...] = setting(
        (), "columns of the endings, or the one that holds a list of them; empty: as in fine-tuning, or endings"
    )
    batch_size: int = setting(
        0, "rows computed at once; 0: chosen by the kind of device and the length of the rows", between(0, 1 << 20)
    )
    max_length: int = setting(
        0, "tokens a row may have; 0: as in fine-tuning, for a model from elsewhere as many as it takes up to 512"
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type that is computed in")
    threshold: float = setting(0.5, "probability from which a label is given where several may hold", between(0, 1))
    n_best: int = setting(0, "answers to a question that are listed; 0: only the best", between(0, 1000))
    no_answer: bool = setting(
        False, "a question may have no answer (always so for models that were fine-tuned on such questions)"
    )
    null_threshold: float | None = setting(
        None,
        "no answer is given where its score beats the best answer's by more than this; None: as in fine-tuning, else 0",
    )
    on_error: Literal["stop", "skip"] = setting("stop", "what to do with a row that cannot be used; skip counts them")
    step: int = _step(", as for export")


@dataclass(frozen=True)
class EmbedArguments(Arguments):
    """Write a vector for each text of a file or pipe, in the order of the texts, to search or compare them by."""

    example = "distil-jax embed models/mine texts.txt --output vectors.npy"
    positional = "model input"
    model: str = setting(REQUIRED, "sentence-transformers folder, model folder, run or hub id")
    input: str = setting(REQUIRED, "file: .txt (a text a line), .jsonl, .json, .csv, .tsv, .parquet; -: standard input")
    output: str = setting(
        "-",
        "file to write: .npy (vectors alone), .parquet (with the columns of the input), .jsonl; "
        "-: JSON Lines on standard output",
    )
    pooling: Literal["auto", "mean", "cls", "max"] = setting(
        "auto", "how tokens make one vector; auto: as the folder says, mean where it says nothing"
    )
    normalize: bool | None = setting(None, "vectors of length 1; None: as the folder says")
    prompt: str = setting("", "name of the model's prompt that is put before each text; empty: its default")
    text_column: str = setting("", "column of the texts; empty: text or sentence")
    separator: str = setting("", 'mark between columns of CSV and TSV, such as ";" or "tab"; empty: found', SEPARATOR)
    batch_size: int = setting(0, "texts computed at once; 0: chosen by device and length", between(0, 1 << 20))
    max_length: int = setting(0, "tokens of a text that are read; 0: as the folder says", between(0, 1 << 20))
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type that is computed in")
    on_error: Literal["stop", "skip"] = setting("stop", "what to do with a row that has no text; skip counts them")
    step: int = _step()


@dataclass(frozen=True)
class TrimArguments(Arguments):
    """Keep the tokens of a corpus: a smaller model that computes the same for texts which use no others.

    Special tokens, single characters and bytes always stay, so that every text can still be written. One of --coverage,
    --min-count and --size says how many tokens stay.
    """

    example = "distil-jax trim models/mine --corpus 'text/*.txt' --coverage 0.999 --output models/small"
    positional = "model"
    model: str = setting(REQUIRED, "model folder or hub id, with any head or none")
    corpus: tuple[str, ...] = setting(REQUIRED, "texts whose tokens stay: files, folders, globs, hf:NAME, tfds:NAME")
    output: str = setting(REQUIRED, "folder to write")
    coverage: float = setting(0.0, "share of the corpus' tokens that stay, such as 0.999; 0: not asked", between(0, 1))
    min_count: int = setting(0, "how often a token that stays occurs at least; 0: not asked", at_least(0))
    size: int = setting(0, "tokens that stay at most; 0: not asked", at_least(0))
    text_column: tuple[str, ...] = setting(("text",), "columns of texts in CSV, TSV, JSON, Parquet and datasets")
    on_error: Literal["stop", "skip"] = setting("stop", "what to do with text that cannot be read")
    overwrite: bool = setting(False, "replace an existing model folder")

    def validate(self) -> None:
        given = [self.full_name(name) for name in ("coverage", "min_count", "size") if getattr(self, name)]
        if len(given) != 1:
            raise UserError(f"{' and '.join(given) or 'no size'} given; give one of --coverage, --min-count, --size")


@dataclass(frozen=True)
class ServeArguments(Arguments):
    """Answer requests over HTTP: predictions of a task model at /predict, vectors of an encoder at /embed.

    Texts of requests that arrive together are computed together. / describes the requests, /health and /metrics are for
    those who watch over the server. SIGTERM or Ctrl-C: it answers what it has accepted, and ends.
    """

    example = "distil-jax serve runs/sst2 --port 8000"
    positional = "model"
    model: str = setting(REQUIRED, "run, model folder, sentence-transformers folder or hub id")
    host: str = setting("127.0.0.1", "address to listen at; 0.0.0.0: all of this machine", NOT_EMPTY)
    port: int = setting(8000, "port; 0: any that is free", between(0, 65535))
    runtime: Literal["auto", "jax", "onnx"] = setting(
        "auto", "what computes; auto: onnxruntime where the folder has onnx/model_quantized.onnx, else JAX"
    )
    max_texts: int = setting(64, "inputs of a request", between(1, 1 << 16))
    max_characters: int = setting(10_000, "characters of an input", between(1, 1 << 24))
    max_bytes: int = setting(1 << 20, "bytes of a request", between(1, 1 << 30))
    max_waiting: int = setting(1024, "inputs that wait; more are refused with status 503", between(1, 1 << 20))
    timeout: float = setting(30.0, "seconds for a request to come in, to be computed, and to be taken", above(0))
    max_length: int = setting(0, "tokens of an input that are read; 0: as the model says", between(0, 1 << 20))
    pooling: Literal["auto", "mean", "cls", "max"] = setting("auto", "how vectors are made, as for embed")
    normalize: bool | None = setting(None, "vectors of length 1, as for embed")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type that JAX computes in")
    step: int = _step()


@dataclass(frozen=True)
class BenchmarkArguments(Arguments):
    """Measure the training step of a configuration: speed, utilisation, memory, compile time, input rate.

    Models and data that are not on this machine are replaced by random weights and synthetic rows of the same shapes.
    Nothing is downloaded. Every variant runs in a process of its own. --section.key VALUE overrides the configuration.
    """

    example = "distil-jax benchmark --config quickstart --variants all"

    stage: Literal["auto", "pretrain", "distill", "finetune"] = setting(
        "auto", "which step; auto: the one that the configuration is for"
    )
    variants: tuple[str, ...] = setting(
        (),
        "settings to compare: names (see `all`), or section.key=value with + between several; empty: as configured",
    )
    lengths: tuple[int, ...] = setting(
        (), "tokens per row, a table for each; empty: as configured", each(between(8, 65536))
    )
    fill: bool = setting(
        False, "use the largest batch that fits into memory, found for each variant, instead of the configured one"
    )
    memory: float = setting(
        0.0,
        "gibibytes that --fill may use; 0: what the device reports, or the free memory of the machine",
        between(0, 1e6),
    )
    repeats: int = setting(5, "rounds that are timed; the table shows their median and spread", at_least(2))
    steps: int = setting(0, "steps per round; 0: as many as take a second, 20 at most", at_least(0))
    warm_start: bool = setting(
        True, "also start once more with the programs in the compilation cache, for the time to the first step"
    )
    vocabulary: int = setting(30_522, "tokens in the vocabulary of a synthetic model or corpus", at_least(16))
    output: str = setting("", "also write the table to this file, FILE.md, and everything measured to FILE.json")

    def validate(self) -> None:
        if self.memory and not self.fill:
            raise UserError(f"--memory {self.memory:g}: is the limit of --fill; give --fill too, or leave it out")
        if self.output and not Path(self.output).name:
            raise UserError(f"--output {self.output}: names no file; give one, without .md")


@dataclass(frozen=True)
class PlanArguments(Arguments):
    """Say what a run needs on a device, here or not: memory, micro-batch, time, cost. The step is compiled, not run.

    Models and data that are not on this machine are replaced by their shapes. Nothing is downloaded.
    --section.key VALUE overrides the configuration.
    """

    example = "distil-jax plan --config distilbert_base_uncased --on h100:8 --price 24"

    on: str = setting(
        "this",
        "devices: a100, h100, h200 (several: h100:8), v4, v5e, v5p, v6e (a slice: v5e:4x4, v4:2x2x1); "
        "this: those of this machine",
        NOT_EMPTY,
    )
    command: Literal["auto", "pretrain", "distill", "finetune"] = setting(
        "auto", "whose step; auto: the one that the configuration is for"
    )
    price: float = setting(0.0, "price of all the devices an hour, for the cost of the run; 0: not given", at_least(0))
    search: bool = setting(True, "also look for the largest micro-batch that fits, which compiles a few times more")
    vocabulary: int = setting(30_522, "tokens in the vocabulary of a model or corpus of unknown size", at_least(16))
    json: bool = setting(False, "print the plan as JSON")


@dataclass(frozen=True)
class LatencyArguments(Arguments):
    """Time models as users feel it: single rows at several lengths, one thread and all, and a large batch.

    Runtimes that are not installed are left out. Models and runtimes take turns, each in a process of its own.
    """

    example = "distil-jax latency models/student models/teacher"
    positional = "models"
    models: tuple[str, ...] = setting(REQUIRED, "runs, model folders or hub ids, such as student and teacher")
    runtimes: tuple[str, ...] = setting(_RUNTIMES, "what computes", one_of_each(_RUNTIMES))
    lengths: tuple[int, ...] = setting((32, 128, 384), "tokens of a row", each(between(1, 65536)))
    batch: int = setting(32, "rows of the large batch, of the middle length", between(1, 1 << 16))
    rounds: int = setting(5, "how often each takes its turn", at_least(2))
    calls: int = setting(20, "calls in a turn", at_least(1))
    json: str = setting("", "also write the numbers to this file")

    def validate(self) -> None:
        if not self.runtimes or not self.lengths:
            raise UserError("--runtimes and --lengths: name at least one each")


@dataclass(frozen=True)
class PlotArguments(Arguments):
    """Draw held-out measures of runs against the optimiser step."""

    example = "distil-jax plot runs/a runs/b --output curves.png"
    positional = "runs"
    runs: tuple[str, ...] = setting(REQUIRED, "folders of runs")
    output: str = setting(REQUIRED, "picture to write: .png, .svg or .pdf")
    measures: tuple[str, ...] = setting(
        (), "which: mlm_loss, perplexity, accuracy, kl, agreement, of fine-tuning its scores; empty: the loss or score"
    )


@dataclass(frozen=True)
class ReportArguments(Arguments):
    """Write runs, or a quickstart, as one HTML page: models, curves, scores, errors, commands. It opens offline."""

    example = "distil-jax report runs/a runs/b --output both.html"
    positional = "folders"
    folders: tuple[str, ...] = setting(REQUIRED, "folders of runs, or that of a quickstart")
    output: str = setting("", "page to write; empty: report.html in the first folder")


@dataclass(frozen=True)
class CompareArguments(Arguments):
    """Put the scores of fine-tuning studies side by side, with what each retains of the first one's."""

    example = "distil-jax compare runs/teacher_glue runs/student_glue"
    positional = "folders"
    folders: tuple[str, ...] = setting(REQUIRED, "folders of studies or single runs, the teacher's first")
    output: str = setting("", "also write the table to this file, FILE.md, and the numbers to FILE.json")


@dataclass(frozen=True)
class QuickstartArguments(Arguments):
    """Text, tokenizer, teacher, student, export and a table, from nothing, in a few minutes on a laptop."""

    example = "distil-jax quickstart"

    output: str = setting("quickstart", "folder for everything it makes")


@dataclass(frozen=True)
class CheckArguments(Arguments):
    """Verify checkpoints, token shards and exported models by their hashes; status 1 where something is damaged."""

    example = "distil-jax check runs/mine"
    positional = "folder"
    folder: str = setting(REQUIRED, "a run, a study, a prepared corpus, an exported model, or a folder of them")
