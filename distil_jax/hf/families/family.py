"""What a model family is: one value that says how transformers names, stores and builds its models.

Families differ by these values only; the code that reads and writes is the same for all. A tensor's name stands here
without the family's prefix ("bert."), which models with a head put before the names of their encoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, HeadName

    Head = HeadName | Literal["mlm", "none"]

# The same for every family of transformers: the class is the family's class prefix and one of these.
CLASS_SUFFIXES: Mapping[Head, str] = {
    "mlm": "ForMaskedLM",
    "none": "Model",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "question": "ForQuestionAnswering",
    "choice": "ForMultipleChoice",
    "replaced": "ForPreTraining",
}


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """Where one tensor goes: `path` in the parameter tree, `name` and `shape` as PyTorch has them.

    `{i}` stands for the layer number. `shape` holds letters: V vocabulary, P rows of the position table, T token
    types, E embeddings, H hidden, F feed-forward, N attention heads, R buckets of relative positions, K outputs of a
    task head. `transpose`: PyTorch's Linear keeps [out, in], we keep [in, out].
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[str, ...]
    transpose: bool = False


def linear(path: str, name: str, shape: str) -> tuple[TensorRule, TensorRule]:
    """Kernel and bias of a dense layer; `shape` is PyTorch's, output first."""
    parts = tuple(path.split("/"))
    return (
        TensorRule((*parts, "kernel"), f"{name}.weight", tuple(shape), transpose=True),
        TensorRule((*parts, "bias"), f"{name}.bias", (shape[0],)),
    )


def norm(path: str, name: str, size: str = "H") -> tuple[TensorRule, TensorRule]:
    """Scale and bias of a LayerNorm."""
    parts = tuple(path.split("/"))
    return TensorRule((*parts, "scale"), f"{name}.weight", (size,)), TensorRule(
        (*parts, "bias"), f"{name}.bias", (size,)
    )


def embedding(which: str, name: str, size: str) -> TensorRule:
    """A table of vectors of the embeddings' size."""
    return TensorRule(("encoder", "embeddings", which, "embedding"), f"embeddings.{name}.weight", (size, "E"))


EMBEDDINGS = (
    embedding("word", "word_embeddings", "V"),
    embedding("position", "position_embeddings", "P"),
    *norm("encoder/embeddings/norm", "embeddings.LayerNorm", "E"),
)
TOKEN_TYPES = (embedding("token_type", "token_type_embeddings", "T"),)
PROJECTION = linear("encoder/embeddings/project", "embeddings_project", "HE")
RELATIVE_POSITIONS = (
    TensorRule(("encoder", "relative_positions", "bias"), "encoder.relative_attention_bias.weight", ("R", "N")),
)
POOLER = linear("encoder/pooler", "pooler.dense", "HH")
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"


@dataclasses.dataclass(frozen=True)
class ConfigField:
    """A field of config.json.

    Attributes:
        name: the one that is written.
        default: its value in transformers where it is absent.
        aliases: further names that are read.
        same_as: field of `EncoderConfig` whose value stands in the file where it is 0 here.
    """

    name: str
    default: Any
    aliases: tuple[str, ...] = ()
    same_as: str = ""


@dataclasses.dataclass(frozen=True)
class HeadRule:
    """How transformers builds a family's head of one kind.

    Attributes:
        output: name of the output layer.
        dense: name of the dense layer before it; "" if there is none (the encoder's pooler is then read for token 0).
        dense_activation: what follows that layer; "": the encoder's activation.
        dropout_field: field of config.json with the dropout rate; "" if no field has it.
        dropout: the rate where the field is absent or null; None: that of the hidden layers.
        drops_input: dropout at the same rate comes before the dense layer, too.
    """

    output: str = "classifier"
    _: dataclasses.KW_ONLY
    dense: str = ""
    dense_activation: str = "relu"
    dropout_field: str = ""
    dropout: float | None = None
    drops_input: bool = False

    def tensors(self) -> tuple[TensorRule, ...]:
        """The tensors of the head."""
        dense = linear("task_head/dense", self.dense, "HH") if self.dense else ()
        return (*dense, *linear("task_head/output", self.output, "KH"))


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of encoders as transformers has it.

    Attributes:
        name: model_type in config.json, `family` in `EncoderConfig`.
        class_prefix: what its class names begin with.
        prefix: what its tensors' names begin with in a model with a head.
        fields: field of `EncoderConfig` -> field of config.json.
        constants: further fields that are written.
        required: fields that have one value in every model that is read, and are written.
        implied: encoder -> the fields of `EncoderConfig` that follow from the family and from other fields.
        signature: fields that, all present, make a config.json without model_type and architectures one of this family.
        layer: tensors of a layer.
        mlm_head: tensors of the masked-language-model head.
        tied: copies of tensors that we hold once -> the tensor: accepted where equal.
        ignored: further names that may be left out without a note.
        mlm_classes: classes besides "...ForMaskedLM" that have this head.
        mlm_activation: activation of this head; "": the encoder's.
        has_pooler: whether its bare model has BERT's pooler.
        tokenizer: class of its tokenizers, where a tokenizer_config.json names none.
        reads_token_types: whether its tokenizers give its models the types of a pair's tokens.
        heads: kind of a task head -> how it is built.
        student: family of its usual students; "": its own.
    """

    name: str
    class_prefix: str
    prefix: str
    fields: Mapping[str, ConfigField]
    layer: tuple[TensorRule, ...]
    mlm_head: tuple[TensorRule, ...]
    tied: Mapping[str, str]
    heads: Mapping[HeadName, HeadRule]
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    implied: Callable[[EncoderConfig], dict[str, Any]] = lambda config: {}
    signature: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    mlm_classes: frozenset[str] = frozenset()
    mlm_activation: str = ""
    has_pooler: bool = True
    tokenizer: str = "BertTokenizer"
    reads_token_types: bool = True
    student: str = ""

    def architecture(self, head: Head) -> str:
        """transformers' class of the model with this head."""
        return self.class_prefix + CLASS_SUFFIXES[head]

    @property
    def architectures(self) -> dict[str, Head]:
        """transformers' classes -> the head of each."""
        named: list[Head] = ["mlm", "none", *self.heads]
        found: dict[str, Head] = {self.architecture(head): head for head in named}
        for name in self.mlm_classes:
            found[name] = "mlm"
        return found

    @property
    def has_token_types(self) -> bool:
        """Whether its embeddings tell the two texts of a pair from each other."""
        return "type_vocab_size" in self.fields
