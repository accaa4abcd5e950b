"""Steps that are not finite: skipped on every device alike, counted, given up after too many, and never saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax.config import Config, Optimizer
from distil_jax.data.corpus import open_corpus
from distil_jax.data.corpus.batches import batch_rows, stream_order
from distil_jax.errors import FaultError
from distil_jax.runs import read_metrics
from distil_jax.training import loop
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.distill import distill
from distil_jax.training.nonfinite import FOLDER, REPORT_FILE, Skips, refuse_nonfinite
from distil_jax.training.optimizer import learning_rate_schedule, make_optimizer
from distil_jax.training.parallel import make_devices
from distil_jax.training.step import AXIS, TrainState, apply_gradients, init_state

pytestmark = pytest.mark.fault("loss or gradient not finite")
SETTINGS, STEPS = Optimizer(warmup_fraction=0.5, weight_decay=0.1), 12
OPTIMIZER = make_optimizer(SETTINGS, STEPS)
SCHEDULE: Any = learning_rate_schedule(SETTINGS, STEPS)
PARAMS = {"body": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "bias": np.ones(4, np.float32)}}


def mapped_step(mapping: str, count: int) -> tuple[Any, Any]:
    """A step whose loss is the sum of (x @ kernel + bias)² over rows x [b, 3] of all devices, and its first state."""
    devices = make_devices(mapping, count)

    def step(state: TrainState, rows: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.sum(jnp.square(rows @ params["body"]["kernel"] + params["body"]["bias"][None]))

        value, gradients = jax.lax.psum(jax.value_and_grad(loss)(state.params), AXIS)
        state, metrics = apply_gradients(state, gradients, value, OPTIMIZER, SCHEDULE)
        return state, metrics

    function = devices.map(step, replicated=1)
    state = devices.replicate(init_state(PARAMS, OPTIMIZER, ("body",)))
    return (lambda state, rows: function(state, devices.shard_batch(rows))), (state, function)


@pytest.mark.parametrize(("mapping", "count"), [("shard_map", 1), ("shard_map", 8), ("pmap", 8)])
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30], ids=["nan", "inf", "overflow"])
def test_a_bad_row_of_one_device_skips_the_step_on_all(mapping: str, count: int, poison: float) -> None:
    step, (state, function) = mapped_step(mapping, count)
    good = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    bad = good.copy()
    bad[5, 1] = poison
    state, _ = step(state, good)
    before = jax.tree.map(np.asarray, state)
    after, metrics = step(state, bad)
    assert float(metrics["skipped"]) == 1
    assert int(after.step) == 2
    leaf: Any
    for leaf in jax.tree.leaves(after):  # every device holds the same
        values = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all(np.array_equal(values[0], other) for other in values)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    for name in ("mu", "nu"):
        jax.tree.map(
            np.testing.assert_array_equal, optax.tree.get(after.opt_state, name), optax.tree.get(before.opt_state, name)
        )
    final, metrics = step(after, good)
    assert float(metrics["skipped"]) == 0
    assert float(metrics["learning_rate"]) == pytest.approx(float(SCHEDULE(2)))
    if mapping == "shard_map":
        assert function._cache_size() == 1, "nothing is compiled again"
    # The same two good steps by hand: the second with the moments of the first, but the third learning rate.
    params: Any = PARAMS
    plain = optax.chain(optax.clip_by_global_norm(SETTINGS.clip_norm), optax.scale_by_adam(0.9, 0.98, 1e-6))
    moments = plain.init(params)
    for number in (0, 2):
        outputs = good @ params["body"]["kernel"] + params["body"]["bias"][None]
        gradients = {"body": {"kernel": 2 * good.T @ outputs, "bias": 2 * outputs.sum(axis=0)}}
        moved, moments = plain.update(gradients, moments)
        decay = {"body": {"kernel": SETTINGS.weight_decay * params["body"]["kernel"], "bias": 0.0}}
        rate = SCHEDULE(number)
        params = jax.tree.map(lambda p, u, d, rate=rate: p - rate * (u + d), params, moved, decay)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), final.params, params)


def test_norms_of_every_tensor_come_with_the_step() -> None:
    step, (state, _) = mapped_step("shard_map", 2)
    rows = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    outputs = rows @ PARAMS["body"]["kernel"] + PARAMS["body"]["bias"]
    expected = [np.linalg.norm(2 * outputs.sum(axis=0)), np.linalg.norm(2 * rows.T @ outputs)]  # bias, kernel
    np.testing.assert_allclose(step(state, rows)[1]["gradient_norms"], expected, rtol=1e-5)


def test_skips_are_counted() -> None:
    skips = Skips()
    for skipped in (True, False, True, True):
        skips = skips.after(skipped)
    assert skips == Skips(total=3, in_row=2)


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    tree = make_devices("shard_map", 8).replicate({"a": np.ones(3, np.float32), "n": np.int32(3), "z": np.ones(2)})
    refuse_nonfinite(tree, "step 3")
    tree["z"] = tree["z"].at[1].set(-jnp.inf)
    with pytest.raises(FaultError, match=r"step 3: \['z'\] is not finite, and so is not saved"):
        refuse_nonfinite(tree, "step 3")


def poisoned(make: Callable[..., Any], steps: tuple[int, ...]) -> Callable[..., Any]:
    """A maker of steps like `make`, in which the teacher gives NaN at some of them (from 0)."""

    def maker(*arguments: Any) -> Any:
        step = make(*arguments)

        def train_step(state: TrainState, constants: Any, rows: Any) -> Any:
            bad = jnp.isin(state.step, jnp.array(steps))
            teacher = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), constants.teacher)
            return step(state, constants._replace(teacher=teacher), rows)

        return train_step

    return maker


@pytest.fixture
def often_saved(tiny_config: Callable[..., Config]) -> Callable[..., Config]:
    """As `tiny_config`, with a checkpoint of every step."""
    return lambda output, changes=None: tiny_config(output, {"checkpoint.every_steps": 1, **(changes or {})})


def host_state(folder: Path, step: int, like: Any) -> Any:
    return jax.tree.map(np.asarray, Checkpoints(folder / "checkpoints", read_only=True).restore(step, like))


def test_a_run_goes_on_after_skipped_steps_also_when_it_is_killed(
    often_saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "make_train_step", poisoned(loop.make_train_step, (4, 5, 9)))
    changes = {"training.max_skipped_steps": 3, "logging.progress": "plain"}
    outcome = distill(often_saved(tmp_path / "whole", changes))
    assert outcome.skipped_steps == 3
    assert "3 steps skipped" in capsys.readouterr().err
    rows = read_metrics(tmp_path / "whole", "train")
    assert [row["metrics"]["skipped_steps"] for row in rows] == [0, 0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 3]
    assert [row["step"] for row in rows if row["metrics"]["loss"] is None] == [5, 6, 10]
    states = {step: host_state(tmp_path / "whole", step, outcome.state) for step in (4, 6, 7)}
    jax.tree.map(np.testing.assert_array_equal, states[4].params, states[6].params)
    assert any((a != b).any() for a, b in zip(*(jax.tree.leaves(states[n].params) for n in (6, 7)), strict=True))

    finished = loop.StepLogger.finished

    def stop(self: Any, number: int, metrics: Any) -> None:
        finished(self, number, metrics)
        if number == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.StepLogger, "finished", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(often_saved(tmp_path / "stopped", changes))
    again = distill(often_saved(tmp_path / "stopped", changes))
    assert 0 < again.resumed_from < 6
    assert again.skipped_steps == 3
    jax.tree.map(np.testing.assert_array_equal, again.state, outcome.state)
    found = [[(r["step"], r["metrics"]) for r in read_metrics(tmp_path / run)] for run in ("whole", "stopped")]
    assert found[0] == found[1]


def test_too_many_in_a_row_end_the_run_with_a_report(
    often_saved: Any, whole_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "make_train_step", poisoned(loop.make_train_step, tuple(range(3, STEPS))))
    config = often_saved(tmp_path / "run", {"training.max_skipped_steps": 4})
    for _ in range(2):  # started again it ends at the same step
        with pytest.raises(FaultError, match="step 7: loss or gradients of 4 steps in a row are not finite"):
            distill(config)
    steps = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).all_steps()
    assert max(steps) <= 7
    for step in steps:
        state = host_state(tmp_path / "run", step, whole_run.outcome.state)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    folder = tmp_path / "run" / FOLDER / "step_7"
    report = json.loads((folder / REPORT_FILE).read_text())
    assert (report["step"], report["skipped_in_a_row"], report["skipped_steps"]) == (7, 4, 4)
    assert report["metrics"]["loss"] == report["metrics"]["loss_kl"] == "nan"
    assert np.isfinite(report["metrics"]["loss_mlm"]), "the term that has no part of the teacher in it"
    train = open_corpus(Path(config.corpus.folder) / "train")
    rows = batch_rows(stream_order(train.num_rows, 0), 6, 8, slice(0, 8))
    assert report["rows"] == rows.tolist()
    np.testing.assert_array_equal(np.load(folder / "batch_0.npz")["ids"], train.read(rows))
    params = host_state(tmp_path / "run", 3, whole_run.outcome.state).params
    encoder = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(params["encoder"]["layer_0"])))
    assert report["parameter_norms"]["layers"]["encoder.layer_0"] == pytest.approx(encoder, rel=1e-5)
    names = {".".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert set(report["parameter_norms"]["tensors"]) == set(report["gradient_norms"]["tensors"]) == names
    assert report["gradient_norms"]["layers"]["encoder.layer_0"] == "nan"


def test_a_state_that_is_not_finite_is_never_saved(
    often_saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = loop.make_train_step

    def breaking(*arguments: Any) -> Any:
        step = make(*arguments)

        def train_step(state: TrainState, constants: Any, rows: Any) -> Any:
            after: Any
            after, metrics = step(state, constants, rows)
            broken = jax.tree.map(lambda x: jnp.where(state.step == 3, jnp.inf, x), after.params)
            return after.replace(params=broken), metrics

        return train_step

    monkeypatch.setattr(loop, "make_train_step", breaking)
    with pytest.raises(FaultError, match="step 4: .* is not finite, and so is not saved"):
        distill(often_saved(tmp_path / "run"))
    assert Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).all_steps() == [1, 2, 3]
