"""What the compiled losses hold: no array of positions x vocabulary; memory that hardly grows with positions."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax.config import Objective
from distil_jax.data.corpus.masking import MaskingRule, masking_log_weights
from distil_jax.models import EncoderConfig, MaskedLM
from distil_jax.objectives import student_config, student_params, vocabulary
from distil_jax.objectives.vocabulary import (
    chunk_size,
    fused_vocabulary_loss,
    plain_vocabulary_loss,
    vocabulary_measures,
)
from distil_jax.objectives.vocabulary_terms import OutputLayer, Positions
from distil_jax.training.parallel import make_devices
from distil_jax.training.step import FrozenInputs, init_state, make_train_step
from distil_jax.training.text_step import TextModels, make_evaluation_step, text_step_config

VOCAB, WIDTH = 30522, 768
TERMS = ("kl", "mlm", "logit_mse")


def compiled(
    function: Any, tokens: int, vocab: int = VOCAB, width: int = WIDTH, terms: tuple[str, ...] = TERMS, **options: Any
) -> Any:
    """`function(student, teacher, positions, coefficients)` compiled for its shapes, not run; `options` are XLA's."""

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    layer = OutputLayer(array(tokens, width), array(vocab, width), array(vocab))
    positions = Positions({name: array(tokens) for name in terms}, array(tokens, dtype=jnp.int32))
    return jax.jit(function).lower(layer, layer, positions, {name: array() for name in terms}).compile(options)


def with_gradient(loss: Any) -> Any:
    return jax.value_and_grad(partial(loss, temperature=2.0), has_aux=True)


def sizes(program: str) -> set[tuple[int, ...]]:
    """Shapes of all the arrays of a compiled program."""
    return {tuple(map(int, shape.split(","))) for shape in re.findall(r"[a-z]+\d*\[(\d[\d,]*)\]", program)}


def largest(program: str) -> int:
    return max(map(math.prod, sizes(program)))


def test_no_array_of_positions_by_vocabulary() -> None:
    tokens, vocab, width = 203, 1009, 32
    held = largest(compiled(with_gradient(partial(fused_vocabulary_loss, chunk=16)), tokens, vocab, width).as_text())
    assert held <= max(16 * vocab, vocab * width)
    assert (tokens, vocab) in sizes(compiled(with_gradient(plain_vocabulary_loss), tokens, vocab, width).as_text())

    def measures(student: Any, teacher: Any, positions: Positions, _: Any) -> Any:
        return vocabulary_measures(student, teacher, positions.targets, positions.weights["kl"], chunk=16)  # type: ignore

    held = largest(compiled(measures, tokens, vocab, width).as_text())
    assert held <= max(16 * vocab, vocab * width)


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    """Without the gradient of the table (a frozen encoder) there is no sum of its size, nor the matmul for it."""

    def of_bias(student: OutputLayer, *rest: Any) -> Any:
        loss = partial(fused_vocabulary_loss, temperature=2.0, chunk=16)
        return jax.grad(lambda hidden, bias: loss(OutputLayer(hidden, student.table, bias), *rest)[0], argnums=(0, 1))(
            student.hidden, student.bias
        )

    whole = with_gradient(partial(fused_vocabulary_loss, chunk=16))
    flops = [compiled(f, 16, 1009, 32).cost_analysis()["flops"] for f in (whole, of_bias)]
    assert flops[1] < 0.85 * flops[0]
    table = re.compile(r"= f32\[1009,32\]\S* (?!parameter|get-tuple-element|copy)")
    assert table.search(compiled(whole, 203, 1009, 32).as_text())
    assert not table.search(compiled(of_bias, 203, 1009, 32).as_text())


def test_memory_grows_by_hidden_states_only_base_size() -> None:
    """2k, 8k and 32k positions, compiled for BERT base's vocabulary and width."""
    held = {
        tokens: compiled(with_gradient(fused_vocabulary_loss), tokens).memory_analysis().temp_size_in_bytes
        for tokens in (2048, 8192, 32768)
    }
    logits = 4 * chunk_size(32768, VOCAB) * VOCAB
    assert held[2048] < 5 * logits + 3 * 4 * VOCAB * WIDTH
    for few, many in ((2048, 8192), (8192, 32768)):
        assert held[many] - held[few] < 4 * 4 * WIDTH * (many - few) + logits // 2, held


@pytest.mark.parametrize(("terms", "arrays"), [(("kl", "mlm"), 3), (("mlm",), 2), (("kl", "mlm", "logit_mse"), 5)])
def test_how_many_arrays_of_logits_are_held_at_once(terms: tuple[str, ...], arrays: int) -> None:
    """In the order of operations that `distil-jax` chooses on CPU, next to the sum of the table's gradient."""
    order: Any = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    held = compiled(with_gradient(fused_vocabulary_loss), 2048, terms=terms, **order)
    logits = 4 * chunk_size(2048, VOCAB) * VOCAB
    assert held.memory_analysis().temp_size_in_bytes < 1.05 * arrays * logits


def steps_of(objective: Objective, vocab: int, rows: int, length: int) -> list[Any]:
    """The train step and the evaluation step of a tiny teacher and student, lowered."""
    teacher = EncoderConfig("bert", vocab, 16, 1, 2, 32, 32, type_vocab_size=2)
    student = student_config(teacher, [0])
    shapes = jax.eval_shape(lambda: MaskedLM(teacher).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    models = TextModels(
        student=MaskedLM(student),
        teacher=MaskedLM(teacher),
        objective=objective,
        rule=MaskingRule(4, vocab, 0.15, 0.8, 0.1),
        cls_id=2,
        pad_id=0,
    )
    trainable = ("encoder", "mlm_head")
    optimizer, devices = optax.sgd(1.0), make_devices("shard_map", 1)
    state = init_state(student_params(params, teacher, student, [0]), optimizer, trainable)
    frozen = FrozenInputs(np.int32(0), params, masking_log_weights(np.ones(vocab, np.int64), (0, 1, 2, 3, 4), 0.7))
    ids = np.full((rows, length), 5, np.uint16)
    train = devices.map(
        make_train_step(text_step_config(models, rows, trainable), optimizer, lambda _: 0.1), replicated=2
    )
    measure = devices.map(make_evaluation_step(models, rows), replicated=3)
    return [train.lower(state, frozen, ids), measure.lower(state.params, frozen, np.int32(0), ids)]


def test_whole_steps_hold_no_array_of_positions_by_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, rows, length = 1009, 8, 32
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", 1)
    monkeypatch.setattr(vocabulary, "LEAST_CHUNK", 16)
    for objective in (Objective(), Objective(restrict_kl_to_mask=True)):
        for step in steps_of(objective, vocab, rows, length):
            program = step.compile().as_text()
            assert max(math.prod(shape) for shape in sizes(program) if vocab in shape) == 16 * vocab
            assert largest(program) < 32 * vocab
    plain = steps_of(Objective(vocabulary="plain"), vocab, rows, length)[0].compile().as_text()
    assert largest(plain) == rows * length * vocab
