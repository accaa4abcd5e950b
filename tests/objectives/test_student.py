"""Where the student starts: the layer map, and that nothing of the teacher gets lost on the way."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config import Student
from distil_jax.errors import UserError
from distil_jax.models import EncoderConfig, MaskedLM
from distil_jax.objectives import principal_directions, start_layers, student_config, student_params, student_sizes
from distil_jax.objectives.compared import layer_pairs

TEACHER = EncoderConfig(
    "bert", 31, 8, 4, 2, 12, 16, type_vocab_size=2, attention_output_dropout=0.1, initializer_range=0.4, pooler=True
)
IDS = np.random.default_rng(0).integers(0, 31, (3, 10)).astype(np.int32)
MASK = (np.arange(10)[None] < np.array([[10], [7], [4]])).astype(np.int32)


@pytest.fixture(scope="module")
def teacher() -> Any:
    params = jax.jit(lambda: MaskedLM(TEACHER).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])()
    noise = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * noise.standard_normal(x.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def teachers_logits(teacher: Any) -> np.ndarray:
    return np.asarray(jax.jit(MaskedLM(TEACHER).apply)({"params": teacher}, IDS, MASK))


def embedded(config: EncoderConfig, params: Any) -> np.ndarray:
    """Hidden states of the same weights without any layer."""
    module = MaskedLM(dataclasses.replace(config, num_layers=0, pooler=False))
    return np.asarray(jax.jit(lambda p: module.apply({"params": p}, IDS, method="encode"))(params))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((12, 6), (0, 2, 4, 7, 9, 11)),  # hard-coded in the original
        ((12, 0), (0, 2, 4, 7, 9, 11)),
        ((6, 3), (0, 2, 5)),
        ((4, 0), (0, 3)),
        ((24, 2), (0, 23)),
        ((5, 0), (0, 2, 4)),
        ((3, 3), (0, 1, 2)),
        ((1, 0), (0,)),
        ((12, 1), (0,)),
    ],
)
def test_layers_are_spread_evenly(sizes: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert start_layers(Student(num_layers=sizes[1]), sizes[0]) == expected


@pytest.mark.parametrize("total", range(1, 25))
def test_layers_are_different_ascending_and_reach_from_first_to_last(total: int) -> None:
    for count in range(2, total + 1):
        layers = start_layers(Student(num_layers=count), total)
        assert len(layers) == len(set(layers)) == count
        assert list(layers) == sorted(layers)
        assert (layers[0], layers[-1]) == (0, total - 1)
        assert max(np.diff(layers)) - min(np.diff(layers)) <= 1


@pytest.mark.parametrize("total", range(1, 25))
def test_skipped_layers_are_those_whose_outputs_are_compared(total: int) -> None:
    for count in range(1, total + 1):
        layers = start_layers(Student(num_layers=count, layer_choice="skip"), total)
        assert list(layers) == sorted(set(layers))
        assert [(s + 1, layer + 1) for s, layer in enumerate(layers)] == layer_pairs((), count, total)
    assert layers == tuple(range(total))


@pytest.mark.parametrize("choice", ["spread", "skip", "lower"])
def test_too_many_layers_are_refused(choice: Any) -> None:
    with pytest.raises(UserError, match="13 layers"):
        start_layers(Student(num_layers=13, layer_choice=choice), 12)


@pytest.mark.parametrize("layers", [[], [4], [-1, 0], [0, 1, 99]])
def test_layers_that_are_not_there_are_refused(layers: list[int]) -> None:
    with pytest.raises(UserError, match="0 to 3"):
        student_config(TEACHER, layers)


def test_the_student_is_a_distilbert_as_wide_as_its_teacher() -> None:
    student = student_config(TEACHER, [0, 3])
    changed = {
        field.name
        for field in dataclasses.fields(student)
        if getattr(student, field.name) != getattr(TEACHER, field.name)
    }
    assert changed == {"family", "num_layers", "pooler", "type_vocab_size", "attention_output_dropout"}
    assert (student.family, student.num_layers, student.type_vocab_size) == ("distilbert", 2, 0)
    bert = student_config(TEACHER, [0, 3], "bert")
    assert bert == dataclasses.replace(TEACHER, num_layers=2, pooler=False)


def test_the_student_of_a_roberta_is_a_roberta() -> None:
    teacher = dataclasses.replace(TEACHER, family="roberta", pad_token_id=1, position_offset=2)
    assert student_config(teacher, [0, 3]) == dataclasses.replace(teacher, num_layers=2, pooler=False)
    for family in ("distilbert", "bert"):
        with pytest.raises(UserError, match=f"student.family = {family}: .*; choose roberta"):
            student_config(teacher, [0], family)
    with pytest.raises(UserError, match="student.family = .gpt2..*known: bert, distilbert, roberta"):
        student_config(teacher, [0], "gpt2")


def test_the_student_of_an_mpnet_has_its_positions() -> None:
    sizes = {"pad_token_id": 1, "position_offset": 2, "relative_buckets": 32, "type_vocab_size": 0, "pooler": False}
    config = dataclasses.replace(TEACHER, family="mpnet", max_position_embeddings=18, **sizes)
    teacher = jax.jit(lambda: MaskedLM(config).init(jax.random.key(2), jnp.zeros((1, 2), jnp.int32))["params"])()
    for family in ("distilbert", "bert", "roberta"):
        with pytest.raises(UserError, match=f"student.family = {family}: .*; choose mpnet"):
            student_config(config, [0], family)
    whole = student_config(config, range(4))
    assert whole == config
    found, wanted = (
        jax.jit(MaskedLM(config).apply)({"params": params}, IDS, MASK)
        for params in (student_params(teacher, config, whole, range(4)), teacher)
    )
    np.testing.assert_array_equal(found, wanted)  # type: ignore[arg-type]


def test_the_student_of_an_electra_has_its_embeddings_and_their_projection() -> None:
    config = dataclasses.replace(TEACHER, family="electra", embedding_size=5, pooler=False)
    teacher = jax.jit(lambda: MaskedLM(config).init(jax.random.key(2), jnp.zeros((1, 2), jnp.int32))["params"])()
    whole = student_config(config, range(4))
    assert whole == config
    found, wanted = (
        jax.jit(MaskedLM(config).apply)({"params": params}, IDS, MASK)
        for params in (student_params(teacher, config, whole, range(4)), teacher)
    )
    np.testing.assert_array_equal(found, wanted)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="student.family = bert: .*embedding_size = 0, not 5.*; choose electra"):
        student_config(config, [0], "bert")
    narrow = student_config(config, [0, 3], sizes={"hidden_size": 4, "num_heads": 1, "intermediate_size": 6})
    start = student_params(teacher, config, narrow, [0, 3])["encoder"]
    assert start.keys() == {"embeddings"}
    assert start["embeddings"].keys() == {"word", "position", "token_type", "norm"}
    assert start["embeddings"]["word"]["embedding"].shape == (31, 5)


def test_a_student_that_could_not_be_exported_is_refused() -> None:
    """DistilBERT's files have no field for the epsilon of its norms."""
    other = dataclasses.replace(TEACHER, layer_norm_eps=1e-5)
    with pytest.raises(UserError, match="layer_norm_eps = 1e-12, not 1e-05.* choose bert"):
        student_config(other, [0])
    assert student_config(other, [0], "bert").layer_norm_eps == 1e-5


def test_parameters_are_those_of_the_model(teacher: Any) -> None:
    """Whatever the family: the same tree, shapes and types as a fresh model has."""
    for family in ("distilbert", "bert"):
        config = student_config(TEACHER, [1, 3], family)
        fresh = jax.eval_shape(lambda c=config: MaskedLM(c).init(jax.random.key(0), IDS)["params"])
        params = student_params(teacher, TEACHER, config, [1, 3])
        found = jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), params)
        assert found == jax.tree.map(lambda x: (x.shape, x.dtype), dict(fresh))


def test_layers_and_head_are_copies_of_the_chosen_ones(teacher: Any) -> None:
    config = student_config(TEACHER, [2, 0])
    params = student_params(teacher, TEACHER, config, [2, 0])
    for mine, reference in (("layer_0", "layer_2"), ("layer_1", "layer_0")):
        jax.tree.map(np.testing.assert_array_equal, params["encoder"][mine], teacher["encoder"][reference])
    jax.tree.map(np.testing.assert_array_equal, params["mlm_head"], teacher["mlm_head"])


def test_the_folded_segment_makes_the_embedding_output_the_teachers(teacher: Any) -> None:
    config = student_config(TEACHER, [0, 3])
    wanted = embedded(TEACHER, teacher)
    folded = student_params(teacher, TEACHER, config, [0, 3])
    np.testing.assert_allclose(embedded(config, folded), wanted, atol=1e-5)
    dropped = student_params(teacher, TEACHER, config, [0, 3], fold_token_type=False)
    assert np.abs(embedded(config, dropped) - wanted).max() > 0.1
    np.testing.assert_array_equal(
        dropped["encoder"]["embeddings"]["position"]["embedding"],
        teacher["encoder"]["embeddings"]["position"]["embedding"],
    )


@pytest.mark.parametrize("family", ["distilbert", "bert"])
def test_a_student_with_every_layer_is_its_teacher(teacher: Any, teachers_logits: Any, family: str) -> None:
    config = student_config(TEACHER, range(4), family)
    params = student_params(teacher, TEACHER, config, range(4))
    found = jax.jit(MaskedLM(config).apply)({"params": params}, IDS, MASK)
    np.testing.assert_allclose(found, teachers_logits, atol=2e-5)


def test_the_teacher_stays_as_it_is(teacher: Any) -> None:
    before = jax.tree.map(np.copy, teacher)
    student_params(teacher, TEACHER, student_config(TEACHER, [0]), [0])
    jax.tree.map(np.testing.assert_array_equal, before, teacher)


def test_a_distilbert_teacher_has_no_bert_student(teacher: Any) -> None:
    small = student_config(TEACHER, [0, 3])
    params = student_params(teacher, TEACHER, small, [0, 3])
    again = student_params(params, small, student_config(small, [1]), [1])
    np.testing.assert_array_equal(
        again["encoder"]["embeddings"]["position"]["embedding"],
        params["encoder"]["embeddings"]["position"]["embedding"],
    )
    with pytest.raises(UserError, match="token types"):
        student_params(params, small, student_config(small, [1], "bert"), [1])


def test_layers_and_sizes_follow_from_the_settings() -> None:
    assert start_layers(Student(), 4) == (0, 3)
    assert start_layers(Student(num_layers=3), 12) == (0, 6, 11)
    assert start_layers(Student(num_layers=3, layer_choice="lower"), 12) == (0, 1, 2)
    assert start_layers(Student(num_layers=3, layer_choice="skip"), 6) == (1, 3, 5)
    assert start_layers(Student(layers=(3, 1, 1)), 4) == (3, 1, 1)
    with pytest.raises(UserError, match=r"num_layers = 2.*student.layers names 1"):
        Student(num_layers=2, layers=(0,))
    assert student_sizes(Student(), TEACHER) == {"num_layers": 2}
    narrow = student_sizes(Student(hidden_size=4, hidden_dropout=0), TEACHER)
    assert narrow == {"num_layers": 2, "hidden_size": 4, "num_heads": 1, "intermediate_size": 6, "hidden_dropout": 0}
    with pytest.raises(UserError, match=r"hidden_size = 8 .*num_heads = 3"):
        student_sizes(Student(num_heads=3), TEACHER)


def test_a_narrower_student_keeps_the_best_projection_of_the_embeddings(teacher: Any) -> None:
    table = teacher["encoder"]["embeddings"]["word"]["embedding"]
    directions = principal_directions(table, 5)
    np.testing.assert_allclose(directions.T @ directions, np.eye(5), atol=1e-5)
    values = np.linalg.svd(table, compute_uv=False)
    lost = np.linalg.norm(table - table @ directions @ directions.T) ** 2
    assert lost == pytest.approx((values[5:] ** 2).sum(), rel=1e-4)  # Eckart and Young: no projection loses less
    config = student_config(TEACHER, [0, 3], sizes={"hidden_size": 5, "num_heads": 1})
    params = student_params(teacher, TEACHER, config, [0, 3])
    assert params.keys() == {"encoder"} and params["encoder"].keys() == {"embeddings"}
    found = {name: x["embedding"] for name, x in params["encoder"]["embeddings"].items()}
    np.testing.assert_allclose(found["word"], table @ directions, atol=1e-6)
    folded = student_params(teacher, TEACHER, student_config(TEACHER, [0]), [0])["encoder"]["embeddings"]["position"]
    np.testing.assert_allclose(found["position"], folded["embedding"] @ directions, atol=1e-6)


def test_a_smaller_feed_forward_part_keeps_its_largest_neurons(teacher: Any) -> None:
    doubled = jax.tree.map(np.copy, teacher)
    layer = doubled["encoder"]["layer_1"]
    layer["ffn_out"]["kernel"][[2, 7]] = 0.0  # these two compute nothing
    config = student_config(TEACHER, [1], sizes={"intermediate_size": 10})
    small = student_params(doubled, TEACHER, config, [1])
    whole = student_params(doubled, TEACHER, student_config(TEACHER, [1]), [1])
    outputs: list[Any] = [
        MaskedLM(each).apply({"params": params}, IDS, MASK)
        for each, params in ((config, small), (student_config(TEACHER, [1]), whole))
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)


def test_a_student_has_the_heads_that_were_left_to_its_teacher(teacher: Any) -> None:
    pruned = dataclasses.replace(TEACHER, num_heads=1, head_size=4)
    config = student_config(pruned, [0], sizes=student_sizes(Student(num_layers=1), pruned))
    assert (config.num_heads, config.head_width) == (1, 4)
    other = student_config(pruned, [0], sizes=student_sizes(Student(num_layers=1, num_heads=2), pruned))
    assert (other.num_heads, other.head_width) == (2, 4)
    six = dataclasses.replace(pruned, num_heads=3)
    other = student_config(six, [0], sizes=student_sizes(Student(num_layers=1, num_heads=2), six))
    with pytest.raises(UserError, match=r"student.num_heads = 2.*student.init = random"):
        student_params(teacher, six, other, [0])


@pytest.mark.parametrize("sizes", [{"hidden_size": 16, "num_heads": 4}, {"intermediate_size": 13}])
def test_a_wider_student_has_no_start_in_its_teacher(teacher: Any, sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"above the teacher's.*student.init = random"):
        student_params(teacher, TEACHER, student_config(TEACHER, [0], sizes=sizes), [0])


def test_factorised_embeddings_are_the_best_of_their_rank(teacher: Any) -> None:
    with pytest.raises(UserError, match=r"student.family = distilbert.*choose electra"):
        student_config(TEACHER, [0], sizes={"embedding_size": 5})
    sizes = student_sizes(Student(num_layers=2, embedding_size=5), TEACHER)
    config = student_config(TEACHER, [0, 3], "electra", sizes)
    params = student_params(teacher, TEACHER, config, [0, 3])
    table = teacher["encoder"]["embeddings"]["word"]["embedding"]
    left, values, right = np.linalg.svd(table, full_matrices=False)
    found = params["encoder"]["embeddings"]
    product = found["word"]["embedding"] @ found["project"]["kernel"]
    np.testing.assert_allclose(product, (left[:, :5] * values[:5]) @ right[:5], atol=1e-5)
    assert params.keys() == {"encoder"}, "a head reads embeddings of their width"
    jax.tree.map(np.testing.assert_array_equal, params["encoder"]["layer_1"], teacher["encoder"]["layer_3"])
    fresh = jax.eval_shape(lambda: MaskedLM(config).init(jax.random.key(0), IDS)["params"])["encoder"]["embeddings"]
    assert fresh.keys() - found.keys() == {"norm"}
    assert all(np.shape(x) == fresh[name][key].shape for name in found for key, x in found[name].items())


def test_a_teacher_without_head_gives_the_same_student(teacher: Any) -> None:
    config = student_config(TEACHER, [0, 3])
    headless = student_params(teacher["encoder"], TEACHER, config, [0, 3])
    whole = student_params({"encoder": teacher["encoder"]}, TEACHER, config, [0, 3])
    jax.tree.map(np.testing.assert_array_equal, headless, whole)
