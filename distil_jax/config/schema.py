"""Every setting of a run: its type, default, unit, meaning and check. This is the only place that holds defaults.

`Config` is a tree of frozen dataclasses, one a section of the TOML file. A value that breaks its check raises
`UserError` when the dataclass is made, whoever makes it.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Literal

from distil_jax.config.fields import (
    HOST_AND_PORT,
    NO_EMPTY_ITEM,
    NOT_EMPTY,
    Check,
    Section,
    at_least,
    below_one,
    between,
    each,
    setting,
    weight,
)
from distil_jax.config.tasks import Augment, FineTune, Study, TaskSettings
from distil_jax.config.terms import ActivationTerms
from distil_jax.errors import UserError

MOST_WEIGHTS = 10**11  # of a model made from scratch; float32 with its two moments takes 12 bytes a weight
MOST_TOKENS = 2**31 - 1  # of a batch: its positions are counted in 32 bits
_RATE = Check("that is -1, or at least 0 and below 1", lambda value: value == -1 or 0 <= value < 1, -1, 1)
_VOCABULARY = 30522  # BERT's; the real one is not known before the tokenizer is read


@dataclass(frozen=True)
class Run(Section):
    """What a run is called and where it happens."""

    output: str = setting("", "folder of the run: checkpoints, metrics, exported model", affects_result=False)
    seed: int = setting(0, "seed of everything random: initial weights, order, masks, dropout", at_least(0))
    platform: Literal["any", "cpu", "gpu", "tpu"] = setting(
        "any", "kind of device the run insists on; a silent fall-back to another is refused", affects_result=False
    )


@dataclass(frozen=True)
class CorpusSettings(Section):
    """Text in, token shards out."""

    folder: str = setting("", "folder of the token shards; holds train/ and validation/")
    train: tuple[str, ...] = setting(
        (), "sources of training text: files, globs, dataset ids, tfds:name", NO_EMPTY_ITEM
    )
    validation: tuple[str, ...] = setting((), "sources of held-out text", NO_EMPTY_ITEM)
    tokenizer: str = setting("", "folder or hub id of the tokenizer; empty: that of the teacher or initial model")
    sequence_length: int = setting(512, "tokens per row, [CLS] and [SEP] included", between(8, 65536))
    pack: bool = setting(True, "put several sequences into one row instead of padding it")
    sequence: Literal["line", "document"] = setting("line", "what one sequence is made of; longer ones are cut")
    min_tokens: int = setting(12, "tokens (with [CLS], [SEP]) below which a sequence is dropped", at_least(0))
    max_unk_fraction: float = setting(0.5, "fraction of [UNK] from which on a sequence is dropped", between(0, 1))
    block_bytes: int = setting(
        8 << 20, "bytes of text tokenised at a time: a shard, the unit of resuming", between(1, 1 << 30)
    )
    workers: int = setting(0, "processes that tokenise; 0: one per core", between(0, 4096), affects_result=False)
    text_column: str = setting("text", "name of the text column in CSV, TSV, JSON, Parquet and datasets", NOT_EMPTY)
    markup: Literal["keep", "drop"] = setting(
        "keep", "what to do with the lines <doc ...> and </doc> of WikiExtractor in plain text"
    )
    on_error: Literal["stop", "skip"] = setting("stop", "what to do with a document that is not readable text")
    max_documents: int = setting(0, "documents taken per split; 0: all", at_least(0))

    def validate(self) -> None:
        if self.min_tokens > self.sequence_length:
            raise UserError(
                f"corpus.min_tokens = {self.min_tokens} is above corpus.sequence_length = {self.sequence_length}: "
                "every sequence would be dropped; lower corpus.min_tokens"
            )


@dataclass(frozen=True)
class Model(Section):
    """The model that is trained: taken from `initial`, or made from scratch with the sizes below."""

    initial: str = setting("", "folder or hub id to start from; empty: random weights of the sizes below")
    freeze_encoder: bool = setting(False, "train the head only (finetune: that of the task); needs model.initial")
    family: str = setting("bert", "model_type of the architecture: bert, distilbert, ...", NOT_EMPTY)
    num_layers: int = setting(12, "encoder layers", between(1, 1 << 10))
    hidden_size: int = setting(768, "width; a multiple of num_heads", between(1, 1 << 16))
    num_heads: int = setting(12, "attention heads", between(1, 1 << 10))
    intermediate_size: int = setting(3072, "width inside the feed-forward part", between(1, 1 << 18))
    max_position_embeddings: int = setting(512, "longest sequence, tokens", between(1, 1 << 20))
    hidden_dropout: float = setting(0.1, "dropout rate after embeddings and dense layers", below_one(zero=True))
    attention_dropout: float = setting(0.1, "dropout rate of attention probabilities", below_one(zero=True))
    activation: Literal["gelu", "gelu_new", "relu", "silu"] = setting("gelu", "activation; gelu is the exact (erf) one")
    initializer_range: float = setting(0.02, "standard deviation of initial weights", between(1e-9, 100))

    def validate(self) -> None:
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"model.hidden_size = {self.hidden_size} is not a multiple of model.num_heads = {self.num_heads}"
            )
        if self.freeze_encoder and not self.initial:
            raise UserError("model.freeze_encoder = true needs model.initial, the model whose encoder is kept")


@dataclass(frozen=True)
class Teacher(Section):
    """The model that `distill` learns from."""

    path: str = setting("", "folder or hub id of the teacher")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type the teacher's weights are held in")
    cache: str = setting("", "folder of its outputs, made by cache-teacher, which then stand for it; empty: none")
    top_k: int = setting(64, "most probable tokens of a position that cache-teacher writes", between(1, 1 << 20))


@dataclass(frozen=True)
class Student(Section):
    """The model that `distill` trains (original: half the teacher's layers, same width)."""

    layers: tuple[int, ...] = setting(
        (),
        "numbers of the teacher's layers, from 0, that the student starts from; empty: chosen by layer_choice",
        each(between(0, 1023)),
    )
    num_layers: int = setting(0, "layers; 0: as many as in layers, or half the teacher's", between(0, 1 << 10))
    layer_choice: Literal["spread", "skip", "lower"] = setting(
        "spread",
        "the teacher's layers where layers is empty: evenly spread with first and last; every nth with the last, which "
        "are those that objective.hidden compares; or the lowest",
    )
    hidden_size: int = setting(
        0,
        "width; 0: the teacher's; a narrower student of a teacher starts from its embeddings, reduced by PCA, and "
        "random layers",
        between(0, 1 << 16),
    )
    num_heads: int = setting(0, "attention heads; 0: as wide as the teacher's", between(0, 1 << 10))
    intermediate_size: int = setting(
        0,
        "width inside the feed-forward part; 0: in the teacher's proportion; a smaller one starts from the neurons "
        "with the largest weights",
        between(0, 1 << 18),
    )
    embedding_size: int = setting(
        0,
        "width of factorised embeddings, which a matrix maps to the student's (student.family = electra); 0: the "
        "student's",
        between(0, 1 << 16),
    )
    hidden_dropout: float = setting(-1.0, "dropout rate of dense layers; -1: the teacher's", _RATE)
    attention_dropout: float = setting(-1.0, "dropout rate of attention probabilities; -1: the teacher's", _RATE)
    freeze_embeddings: bool = setting(False, "keep the embeddings as they start (and their copy in an MLM head)")
    family: str = setting("", "architecture; empty: the usual one of the teacher's students, distilbert for bert")
    init: str = setting(
        "teacher",
        "weights to start from: teacher, random, or a folder or hub id, which brings its own sizes and family",
        NOT_EMPTY,
    )
    copy_mlm_head: bool = setting(True, "start from the teacher's MLM head")
    fold_token_type: bool = setting(True, "add the teacher's segment-0 vector to the student's positions")

    def validate(self) -> None:
        if self.layers and self.num_layers not in (0, len(self.layers)):
            raise UserError(
                f"student.num_layers = {self.num_layers}, but student.layers names {len(self.layers)}; leave one of "
                "them out"
            )


@dataclass(frozen=True)
class Masking(Section):
    """Which tokens are predicted (original: dynamic masking, rare tokens more often)."""

    probability: float = setting(
        0.15,
        "fraction of tokens that are predicted; 0: none is masked, where no term predicts tokens",
        Check("that is 0, or from 0.001 to 0.999", lambda value: value == 0 or 0.001 <= value <= 0.999, 0, 0.999),
    )
    mask: float = setting(0.8, "fraction of those that become [MASK]", between(0, 1))
    random: float = setting(0.1, "fraction of those that become a random token", between(0, 1))
    keep: float = setting(0.1, "fraction of those that stay", between(0, 1))
    smoothing: float = setting(0.7, "exponent: weight of a token is count^-smoothing; 0: uniform", between(0, 100))

    def validate(self) -> None:
        total = self.mask + self.random + self.keep
        if abs(total - 1) > 1e-6:
            raise UserError(f"masking.mask + masking.random + masking.keep is {total:g}, must be 1")


@dataclass(frozen=True)
class Objective(ActivationTerms):
    """The weighted loss terms of pre-training and distillation; weights are not normalised (released model: 5/2/1)."""

    kl: float = weight(5.0, "the KL to the teacher's token probabilities")
    mlm: float = weight(2.0, "the masked-LM cross entropy")
    cosine: float = weight(1.0, "the cosine distance between last hidden states")
    logit_mse: float = weight(0.0, "the squared error between logits")
    restrict_kl_to_mask: bool = setting(False, "compare logits at predicted positions only, not at all")
    vocabulary: Literal["fused", "plain"] = setting(
        "fused",
        "losses over the vocabulary; fused: in chunks; plain: all logits at once, for comparison",
        affects_result=False,
    )
    chunk: int = setting(
        0, "positions of a chunk of the fused form; 0: by the memory of the device", at_least(0), affects_result=False
    )

    def validate(self) -> None:
        super().validate()
        if not self.weights:
            raise UserError("objective: the weight of every term is 0; set at least one above 0, such as objective.kl")


@dataclass(frozen=True)
class Optimizer(Section):
    """AdamW with warm-up (original: section 6 of its settings)."""

    learning_rate: float = setting(5e-4, "peak learning rate, after warm-up", between(1e-15, 1000))
    beta1: float = setting(0.9, "decay of the first moment", below_one(zero=True))
    beta2: float = setting(0.98, "decay of the second moment", below_one(zero=True))
    epsilon: float = setting(1e-6, "added to the root of the second moment", between(1e-20, 1))
    weight_decay: float = setting(0.0, "decoupled weight decay; never on biases and LayerNorms", between(0, 1000))
    warmup_fraction: float = setting(0.05, "fraction of all steps spent warming up", between(0, 1))
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", "learning rate after warm-up")
    clip_norm: float = setting(5.0, "largest global gradient norm; 0: no clipping", at_least(0))


@dataclass(frozen=True)
class Pruning(Section):
    """What is left out: by `prune` whole neurons and attention heads, for a smaller model; while training single
    weights, as a baseline.
    """

    feed_forward: float = setting(1.0, "prune: share of the feed-forward width that stays", between(1e-6, 1))
    heads: float = setting(1.0, "prune: share of the attention heads that stays", between(1e-6, 1))
    examples: int = setting(1024, "prune: training examples that judge what goes; 0: all", at_least(0))
    sparsity: float = setting(
        0.0,
        "share of the encoder's dense kernels that is 0 in the end; 0: no pruning",
        below_one(zero=True),
    )
    begin: float = setting(0.1, "share of the steps after which weights begin to go", between(0, 1))
    end: float = setting(
        0.6, "share of the steps after which no more weights go; not after begin: all go at once", between(0, 1)
    )
    every_steps: int = setting(10, "optimiser steps between choices of the weights that go", at_least(1))


@dataclass(frozen=True)
class Training(Section):
    """How long and in which portions."""

    steps: int = setting(0, "optimiser steps; 0: as many as `epochs` make", at_least(0))
    epochs: int = setting(3, "passes over the training rows; unused where steps is above 0", between(0, 1_000_000))
    extend: bool = setting(
        False,
        "accept more steps or epochs than the run in run.output had; the learning rate follows its schedule over the "
        "new length from there (resume: always)",
        affects_result=False,
    )
    batch_size: int = setting(256, "rows per optimiser step, over all devices", between(1, 1 << 24))
    micro_batch_size: int = setting(
        0,
        "rows per device and forward pass, at most; taken is the largest number that divides a device's rows; 0: as "
        "many as fit into a GPU or TPU, 16 on CPU",
        between(0, 1 << 20),
        affects_result=False,
    )
    compute_dtype: Literal["float32", "bfloat16"] = setting("float32", "type of activations; weights are float32")
    attention: Literal["auto", "xla", "cudnn", "splash"] = setting(
        "auto",
        "attention kernel where nothing is dropped out; auto: cudnn or splash where they pay",
        affects_result=False,
    )
    exact_dropout: bool = setting(
        True,
        "dropout as a function of seed, step and row alone; if not, cuDNN's attention drops out by itself where no "
        "layer is computed again: less memory and time on NVIDIA GPUs, other bits after a resume or on other devices",
    )
    remat: Literal["auto", "none", "layer"] = setting(
        "auto",
        "layer: compute each whole layer again for its gradients, for less memory; auto: where few rows would fit else",
        affects_result=False,
    )
    max_skipped_steps: int = setting(
        10,
        "steps in a row with a loss or gradients that are not finite before the run ends",
        at_least(1),
        affects_result=False,
    )

    def validate(self) -> None:
        if self.steps == 0 and self.epochs == 0:
            raise UserError("training.steps and training.epochs are both 0; set one of them above 0")


@dataclass(frozen=True)
class Parallel(Section):
    """Devices and processes; with the defaults both are found out."""

    affects_result = False

    mapping: Literal["shard_map", "pmap"] = setting("shard_map", "how the step is mapped over devices")
    fsdp: bool = setting(
        False, "cut parameters, moments and gradients over the devices, for models that one does not hold"
    )
    teacher: Literal["replicated", "fsdp"] = setting(
        "replicated", "the teacher of distill: whole on every device, or cut over them"
    )
    devices: int = setting(0, "devices used, over all processes; 0: all", between(0, 1 << 20))
    coordinator: str = setting("", "host:port of process 0; empty: found out from the cluster", HOST_AND_PORT)
    num_processes: int = setting(0, "processes of the run; 0: found out from the cluster", between(0, 1 << 20))
    process_id: int = setting(-1, "number of this process, from 0; -1: found out", at_least(-1))
    stall_minutes: float = setting(
        30.0,
        "minutes without a finished step or evaluation batch after which a run ends as stuck; more than compiling and "
        "saving take; 0: never",
        at_least(0),
    )

    def validate(self) -> None:
        if self.mapping == "pmap" and (self.fsdp or self.teacher == "fsdp"):
            raise UserError(
                "parallel.mapping = pmap holds everything whole on every device; leave it shard_map for parallel.fsdp "
                'and parallel.teacher = "fsdp"'
            )
        given = (self.coordinator != "", self.num_processes > 0)
        if any((*given, self.process_id >= 0)) and not all(given):
            raise UserError(
                "parallel.coordinator, parallel.num_processes and parallel.process_id go together: set all three (the "
                "first two in an indexed Job of Kubernetes), or none to have them found out"
            )
        if all(given) and self.process_id >= self.num_processes:
            raise UserError(
                f"parallel.process_id = {self.process_id} must be below "
                f"parallel.num_processes = {self.num_processes} (numbers start at 0)"
            )


@dataclass(frozen=True)
class Checkpoint(Section):
    """When the state is saved, besides at the end."""

    affects_result = False

    every_steps: int = setting(1000, "optimiser steps between checkpoints; 0: none", at_least(0))
    every_minutes: float = setting(10.0, "minutes between checkpoints; 0: none", between(0, 1e6))
    keep: int = setting(2, "newest checkpoints kept", between(1, 1_000_000))
    migrate: bool = setting(False, "go on from checkpoints of older formats or other float types")


@dataclass(frozen=True)
class Evaluation(Section):
    """Held-out evaluation, besides at the start and the end."""

    every_steps: int = setting(1000, "optimiser steps between evaluations; 0: none", at_least(0))
    batch_size: int = setting(
        64, "rows per evaluation pass, over all devices", between(1, 1 << 20), affects_result=False
    )
    rows: int = setting(0, "held-out rows used, the first ones; 0: all (finetune: always)", at_least(0))
    seed: int = setting(0, "seed of the held-out masks; finetune has none", at_least(0))


@dataclass(frozen=True)
class Logging(Section):
    """What is written down and shown while training."""

    affects_result = False

    every_steps: int = setting(50, "optimiser steps between rows of metrics", at_least(1))
    tensorboard: bool = setting(True, "write TensorBoard event files besides metrics.jsonl")
    wandb: bool = setting(False, "log to Weights & Biases, too; WANDB_MODE=offline stays here")
    progress: Literal["auto", "bar", "plain", "none"] = setting(
        "auto", "progress display; auto: a bar on a terminal, else plain lines"
    )


@dataclass(frozen=True)
class Config:
    """All settings of one run. Raises `UserError` where values contradict each other."""

    run: Run = Run()
    corpus: CorpusSettings = CorpusSettings()
    model: Model = Model()
    teacher: Teacher = Teacher()
    student: Student = Student()
    task: TaskSettings = TaskSettings()
    finetune: FineTune = FineTune()
    augment: Augment = Augment()
    study: Study = Study()
    masking: Masking = Masking()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    pruning: Pruning = Pruning()
    training: Training = Training()
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()

    def __post_init__(self) -> None:
        devices, training = self.parallel.devices, self.training
        if devices and training.batch_size % devices:
            raise UserError(
                f"training.batch_size = {training.batch_size} is not a multiple of parallel.devices = {devices}"
            )
        if self.pruning.sparsity and self.model.freeze_encoder:
            raise UserError("pruning.sparsity prunes the encoder, which model.freeze_encoder keeps; leave one out")
        if self.pruning.sparsity and self.parallel.fsdp:
            raise UserError("pruning.sparsity ranks weights of whole matrices, which parallel.fsdp cuts; leave one out")
        self._refuse_large_models()
        tokens = training.batch_size * self.corpus.sequence_length
        if tokens > MOST_TOKENS:
            raise UserError(
                f"training.batch_size = {training.batch_size} x corpus.sequence_length = {self.corpus.sequence_length} "
                f"is {tokens} tokens a step; at most {MOST_TOKENS} are allowed"
            )

    def _refuse_large_models(self) -> None:
        model = self.model
        layer = 4 * model.hidden_size**2 + 2 * model.hidden_size * model.intermediate_size
        weights = model.num_layers * layer + (_VOCABULARY + model.max_position_embeddings) * model.hidden_size
        if weights > MOST_WEIGHTS:
            names = ("num_layers", "hidden_size", "intermediate_size", "max_position_embeddings")
            sizes = ", ".join(f"model.{name} = {getattr(model, name)}" for name in names)
            raise UserError(f"{sizes} make a model of {weights:.2g} weights; at most {MOST_WEIGHTS:.0e} are allowed")


SECTIONS: dict[str, type[Section]] = {
    spec.name: typing.cast(type[Section], type(spec.default)) for spec in dataclasses.fields(Config)
}


def require(config: Config, *names: str) -> None:
    """Raise `UserError` where one of the settings "section.key" is empty and the command needs it."""
    for name in names:
        section, _, key = name.partition(".")
        if getattr(getattr(config, section), key) in ("", ()):
            flag = f"--{section}.{key.replace('_', '-')}"
            raise UserError(f"{name} is not set; set it in the configuration or with {flag}")
