"""Terms on attention, relations and sentences in packed rows, against PyTorch on each sequence by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from distil_jax.config import FineTune, Objective
from distil_jax.errors import UserError
from distil_jax.models import Activations, EncoderConfig, EncoderInputs, MaskedLM
from distil_jax.objectives import TERMS, Compared, SumCount, active_activation_terms, capture_of, check_terms
from distil_jax.objectives.compared import sentences

MASK = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 3, 3, 3, 0]], np.int32)
SENTENCES = [(row, MASK[row] == number) for row in range(3) for number in range(1, 4) if (MASK[row] == number).any()]
TEACHER = EncoderConfig("bert", 40, 12, 3, 4, 16, 16, type_vocab_size=2, initializer_range=0.5)
STUDENT = EncoderConfig("distilbert", 40, 8, 2, 2, 16, 16, initializer_range=0.5, hidden_dropout=0, attention_dropout=0)
OFF = {"kl": 0, "mlm": 0, "cosine": 0}
CASES = {
    "attention": {"attention_heads": "mean", "attention_layers": ("1:2", "2:3")},
    "attention_kl": {"attention_heads": "mean"},
    "relations": {"relation_heads": 4, "relation_layers": ("2:2", "1:3")},
    "pooled": {},
    "pooled_cosine": {"pooling": "cls"},
    "similarity": {"similarity_temperature": 0.3},
}


def settings_of(name: str, **options: Any) -> Objective:
    return Objective(**OFF, **{name: 1}, **options)


def activations(config: EncoderConfig, seed: int) -> Activations:
    """Of every kind, of random weights and ids; what padding holds is far off."""
    module, generator = MaskedLM(config), np.random.default_rng(seed)
    ids = jnp.asarray(generator.integers(5, 40, MASK.shape), jnp.int32)
    inputs = EncoderInputs(ids, jnp.asarray(MASK))
    captured = frozenset({"hidden_states", "queries", "keys", "values", "scores"})

    @jax.jit
    def run() -> Any:
        params = module.init(jax.random.key(seed), inputs)["params"]
        params = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
        return module.apply({"params": params}, inputs, captured, method="activations")

    def spoil(x: Any) -> np.ndarray:
        x, padding = np.array(x), MASK == 0
        if x.ndim == 4 and x.shape[2] == x.shape[3]:
            x[np.broadcast_to(padding[:, None, :, None], x.shape)] = 50.0
        else:
            x[padding] = 50.0
        return x

    return jax.tree.map(spoil, run())


@pytest.fixture(scope="module")
def both() -> tuple[Activations, Activations]:
    return activations(STUDENT, 0), activations(TEACHER, 1)


def compared(student: Any, teacher: Any, projection: Any = None) -> Compared:
    real = jnp.asarray(MASK > 0, jnp.float32)
    return Compared(student, teacher, jnp.asarray(MASK), real, jnp.ones(len(MASK)), projection=projection)


def kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Of scores [..., K], summed over all but the last axis."""
    target, given = functional.log_softmax(teacher, -1), functional.log_softmax(student, -1)
    return functional.kl_div(given, target, reduction="sum", log_target=True)


def reference(name: str, settings: Any, student: Any, teacher: Any, projection: torch.Tensor) -> torch.Tensor:
    """The sum of a term, sequence by sequence."""
    total = torch.zeros(())
    if name in ("pooled", "pooled_cosine", "similarity"):
        vectors = []
        for model in (student, teacher):
            parts = [model.hidden[row][torch.from_numpy(where)] for row, where in SENTENCES]
            vectors.append(torch.stack([x[0] if settings.pooling == "cls" else x.mean(0) for x in parts]))
        s, t = vectors
        if name == "similarity":
            for i in range(len(s)):
                others = [j for j in range(len(s)) if j != i]
                scores = [functional.cosine_similarity(x[i][None], x[others]) / 0.3 for x in (s, t)]
                total = total + kl(scores[1], scores[0])
            return total
        s = s @ projection
        if name == "pooled_cosine":
            return (1 - functional.cosine_similarity(s, t)).sum()
        return ((s - t).square().sum(-1) / t.square().sum(-1)).sum()
    layers = {"attention": [(0, 1), (1, 2)], "attention_kl": [(0, 1), (1, 2)], "relations": [(1, 1), (0, 2)]}[name]
    for row, where in SENTENCES:
        inside = torch.from_numpy(where)
        for i, j in layers:
            if name == "relations":
                for kind in ("queries", "keys", "values"):
                    scores = []
                    for model, layer in ((student, i), (teacher, j)):
                        x = getattr(model, kind)[layer][row][inside].flatten(1)
                        x = x.reshape(len(x), 4, -1).transpose(0, 1)
                        scores.append(x @ x.transpose(1, 2) / x.shape[-1] ** 0.5)
                    total = total + kl(scores[1], scores[0]) / 4
                continue
            s, t = (model.scores[layer][row][:, inside][:, :, inside] for model, layer in ((student, i), (teacher, j)))
            if name == "attention":
                total = total + (s.mean(0) - t.mean(0)).square().mean(-1).sum()
            else:
                total = total + kl(t.softmax(-1).mean(0).log(), s.softmax(-1).mean(0).log())
    return total / len(layers)


def on_torch(x: Any, *, grad: bool = False) -> Any:
    return jax.tree.map(lambda x: torch.from_numpy(np.array(x)).requires_grad_(grad), x)


PROJECTION = np.random.default_rng(7).standard_normal((8, 12)).astype(np.float32) / 3


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_pytorch_on_each_sequence(both: Any, name: str) -> None:
    settings, (student, teacher) = settings_of(name, **CASES[name]), both
    tensors, matrix = on_torch(student, grad=True), torch.from_numpy(PROJECTION).requires_grad_()
    expected = reference(name, settings, tensors, on_torch(teacher), matrix)
    expected.backward()

    @jax.jit
    def term(student: Any, projection: Any) -> SumCount:
        compute: Any = TERMS[name].compute
        used = projection if TERMS[name].projects else None
        return compute(compared(student, teacher, used), settings)

    found = term(student, PROJECTION)
    assert float(found.sum) == pytest.approx(expected.item(), rel=2e-5)
    assert float(found.count) == (len(SENTENCES) if TERMS[name].counts == "sequences" else (MASK > 0).sum())
    gradients = jax.grad(lambda *x: term(*x).sum, argnums=(0, 1))(student, jnp.asarray(PROJECTION))
    pairs = zip(jax.tree.leaves(gradients), [*jax.tree.leaves(tensors, is_leaf=torch.is_tensor), matrix], strict=True)
    moved = 0
    for gradient, tensor in pairs:
        wanted = np.zeros_like(gradient) if tensor.grad is None else np.nan_to_num(tensor.grad.numpy())
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=2e-6)
        moved += bool(np.any(gradient))
    assert moved


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_differences(both: Any, name: str) -> None:
    settings, (student, teacher) = settings_of(name, **CASES[name]), both
    noise = np.random.default_rng(3)
    direction = jax.tree.map(lambda x: noise.standard_normal(x.shape).astype(np.float32), student)

    @jax.jit
    def value(step: Any) -> Any:
        moved = jax.tree.map(lambda x, d: x + step * d, student, direction)
        compute: Any = TERMS[name].compute
        return compute(compared(moved, teacher, PROJECTION if TERMS[name].projects else None), settings).sum

    difference = (float(value(5e-3)) - float(value(-5e-3))) / 1e-2
    assert float(jax.grad(value)(0.0)) == pytest.approx(difference, rel=2e-2)


def test_a_model_compared_with_itself_has_no_loss(both: Any) -> None:
    teacher = both[1]
    for name in CASES:
        compute: Any = TERMS[name].compute
        assert abs(float(compute(compared(teacher, teacher), settings_of(name)).sum)) < 1e-5, name


def test_a_sentence_without_others_has_no_similarity() -> None:
    hidden = jnp.ones((1, 4, 3))
    mask = jnp.ones((1, 4), jnp.int32)
    alone = Compared(Activations(hidden), Activations(hidden * 2), mask, jnp.ones((1, 4)), jnp.ones(1))

    def value(hidden: Any) -> Any:
        compute: Any = TERMS["similarity"].compute
        return compute(alone._replace(student=Activations(hidden)), settings_of("similarity")).sum

    found, gradient = jax.value_and_grad(value)(hidden)
    assert float(found) == 0 and not np.any(gradient)


def test_rows_of_one_sequence_are_compared_as_rows(both: Any) -> None:
    """Fine-tuning packs nothing: its sentences are its rows, and the terms on them have the same values."""
    student, teacher = both
    packed = compared(student, teacher, PROJECTION)._replace(mask=jnp.asarray(MASK > 0, jnp.int32))
    alone, settings = packed._replace(sequences=1), settings_of("similarity")
    assert [len(x) for x in sentences(alone, settings)] == [len(MASK)] * 3
    for name in ("pooled", "pooled_cosine", "similarity"):
        compute: Any = TERMS[name].compute
        values = [compute(one, settings_of(name)).sum for one in (alone, packed)]
        np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"attention": 1}, r"attention_heads.*2.*4"),
        ({"attention": 1, "attention_heads": "mean", "attention_layers": ("0:1",)}, r"attention_layers.*0:1"),
        ({"relations": 1, "relation_heads": 3}, r"relation_heads.*8.*12.*4"),
        ({"relations": 1, "relation_layers": ("2:4",)}, r"relation_layers.*2:4.*2.*3"),
        ({"hidden": 1, "hidden_layers": ("3:3",)}, r"hidden_layers.*3:3.*2.*3"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], facts: str) -> None:
    for settings in (Objective(**OFF, **options), FineTune(**options)):
        with pytest.raises(UserError, match=f"{settings.full_name('')}{facts}"):
            check_terms(settings, STUDENT, TEACHER)
    check_terms(Objective(), STUDENT, TEACHER)
    check_terms(settings_of("attention"), dataclasses.replace(STUDENT, num_heads=4), TEACHER)


def test_only_what_terms_read_is_captured() -> None:
    assert capture_of(active_activation_terms(settings_of("relations"))) == {"queries", "keys", "values"}
    assert capture_of(active_activation_terms(settings_of("attention"))) == {"scores"}
    assert capture_of(active_activation_terms(settings_of("similarity"))) == frozenset()
