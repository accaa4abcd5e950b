"""Checkpoints of another format, type or shape: refused with both sides named, or taken over where that is asked."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax.errors import UserError
from distil_jax.runs import json_sha256
from distil_jax.training import checkpoint
from distil_jax.training.checkpoint import CORRUPT, FORMAT, Checkpoints
from distil_jax.training.step import TrainState

STORED = Path(__file__).resolve().parents[1] / "golden" / "checkpoints"
STEP = 12


def params() -> dict[str, Any]:
    """As tests/golden/checkpoints/make_formats.py saved them."""
    return {
        "encoder": {"layer_0": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4) / 7}},
        "mlm_head": {"bias": np.array([np.nan, -0.0, 1e-42], np.float32)},
    }


def state(tree: Any = None, step: int = 0) -> Any:
    """A state on one device, whose moments are not those of the stored one."""
    tree = params() if tree is None else tree
    opt_state = jax.tree.map(lambda x: x + 1, optax.adam(1e-3).init(tree))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.device_put(TrainState(step=jnp.int32(step), params=tree, opt_state=opt_state), here)


def with_kernel(kernel: np.ndarray) -> Any:
    return state(params() | {"encoder": {"layer_0": {"kernel": kernel}}})


@pytest.fixture(params=[1, 2])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a stored checkpoint of an older format."""
    shutil.unpack_archive(STORED / f"format{request.param}.zip", tmp_path)
    return tmp_path / "checkpoints"


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same checkpoint in today's format."""
    folder = tmp_path_factory.mktemp("new") / "checkpoints"
    checkpoints = Checkpoints(folder)
    opt_state = optax.adam(1e-3).init(params())
    checkpoints.save(TrainState(step=jnp.int32(STEP), params=params(), opt_state=opt_state), {"steps": 20})
    checkpoints.close()
    return folder


def refuse(folder: Path, like: TrainState, *, migrate: bool = False) -> str:
    """The line; everything stays where it is, and is not taken for damage."""
    before = sorted(path for path in folder.rglob("*"))
    with pytest.raises(UserError) as caught:
        Checkpoints(folder, migrate=migrate).resume(like)
    assert sorted(path for path in folder.rglob("*")) == before
    return str(caught.value)


@pytest.mark.fault("checkpoint of another version")
def test_the_stored_checkpoint_is_of_an_older_format(old: Path) -> None:
    number = Checkpoints(old, read_only=True).metadata(STEP)["format"]
    assert number < FORMAT == 3
    line = refuse(old, state())
    for fact in (str(old), f"step {STEP}", f"format {number}", f"format {FORMAT}", "checkpoint.migrate = true"):
        assert fact in line


@pytest.mark.fault("checkpoint of another version")
def test_a_checkpoint_that_does_not_say_its_format_is_of_the_first(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 1)
        checkpoints.save(state(step=STEP), {})
        checkpoints.close()
    for kind in ("metadata", "hashes"):
        file = tmp_path / str(STEP) / kind / "metadata"
        found = json.loads(file.read_text())
        if kind == "metadata":
            del found["format"]
        else:
            found["metadata"] = {"metadata": json_sha256({})}
        file.write_text(json.dumps(found))
    assert "step 12 is of format 1, this program writes format 3" in refuse(tmp_path, state())
    assert Checkpoints(tmp_path, migrate=True).resume(state()) is not None


@pytest.mark.fault("checkpoint of another version")
def test_an_older_format_is_taken_over_on_request(old: Path) -> None:
    found = Checkpoints(old, migrate=True).resume(state())
    assert found is not None
    taken: Any = found[0]
    metadata = found[1]
    expected = TrainState(step=jnp.int32(STEP), params=params(), opt_state=optax.adam(1e-3).init(params()))
    assert jax.tree.structure(taken) == jax.tree.structure(expected)
    for mine, reference in zip(jax.tree.leaves(taken), jax.tree.leaves(expected), strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(reference).tobytes()
    checkpoints = Checkpoints(old)
    checkpoints.save(taken.replace(step=jnp.int32(13)), metadata)
    checkpoints.close()
    assert Checkpoints(old).resume(state()) is not None  # from now on it is of today's format


@pytest.mark.fault("checkpoint of another version")
def test_parameters_of_an_older_format_can_be_used(old: Path) -> None:
    """Exports read nothing else."""
    found = Checkpoints(old, read_only=True).params(STEP, state().params)
    jax.tree.map(np.testing.assert_array_equal, found, params())


@pytest.mark.fault("checkpoint damaged")
def test_damage_in_an_older_format_is_damage(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its hashes hold, whatever their leaves are called."""
    hashes = old / "12" / "hashes" / "metadata"
    found = json.loads(hashes.read_text())
    (name,) = (name for name in found["optimizer"] if "mu" in name and "kernel" in name)
    found["optimizer"][name] = "0" * 64
    hashes.write_text(json.dumps(found))
    with (
        caplog.at_level(logging.WARNING, logger="distil_jax"),
        pytest.raises(Exception, match="no checkpoint is whole"),
    ):
        Checkpoints(old, migrate=True).resume(state())
    assert "opt_state.0.mu.encoder.layer_0.kernel is not what was saved" in caplog.text
    assert (old / CORRUPT / "12").is_dir()


@pytest.mark.fault("checkpoint of another version")
def test_a_newer_format_is_refused(new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    for migrate in (False, True):
        assert "checkpoint step 12: is of format 3, this program reads formats up to 1" in refuse(
            new, state(), migrate=migrate
        )
    with pytest.raises(UserError, match="format 3"):
        Checkpoints(new, read_only=True).params(STEP, state().params)


@pytest.mark.fault("checkpoint of other shapes or types")
@pytest.mark.parametrize("migrate", [False, True])
@pytest.mark.parametrize("shape", [(3, 8), (4, 3), (12,), (3, 4, 1)])
def test_another_shape_is_refused_always(shape: tuple[int, ...], migrate: bool, new: Path) -> None:
    line = refuse(new, with_kernel(np.zeros(shape, np.float32)), migrate=migrate)
    sizes = ",".join(map(str, shape))
    assert f"checkpoint step 12: encoder.layer_0.kernel is float32 [3,4], the model has float32 [{sizes}]" == line


@pytest.mark.fault("checkpoint of other shapes or types")
def test_another_type_is_refused_or_rounded(new: Path) -> None:
    half = with_kernel(params()["encoder"]["layer_0"]["kernel"].astype(jnp.bfloat16))
    line = refuse(new, half)
    assert "encoder.layer_0.kernel is float32 [3,4], the model has bfloat16 [3,4]; checkpoint.migrate = true" in line
    found = Checkpoints(new, migrate=True).resume(half)
    assert found is not None
    kernel = found[0].params["encoder"]["layer_0"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel, params()["encoder"]["layer_0"]["kernel"].astype(jnp.bfloat16))
    bias = np.asarray(found[0].params["mlm_head"]["bias"])
    assert bias.tobytes() == params()["mlm_head"]["bias"].tobytes()


@pytest.mark.fault("checkpoint of other shapes or types")
@pytest.mark.parametrize("migrate", [False, True])
def test_numbers_do_not_become_others(migrate: bool, new: Path) -> None:
    line = refuse(new, with_kernel(np.zeros((3, 4), np.int32)), migrate=migrate)
    assert "is float32 [3,4], the model has int32 [3,4]" in line and "migrate" not in line


@pytest.mark.fault("checkpoint of other shapes or types")
def test_missing_and_unknown_leaves_are_named(new: Path) -> None:
    more = state(params() | {"pooler": {"bias": np.zeros(2, np.float32)}})
    assert "checkpoint step 12: has no pooler.bias, the model has float32 [2]" in refuse(new, more, migrate=True)
    less = state({"encoder": params()["encoder"]})
    assert "mlm_head.bias is float32 [3], the model has no such leaf" in refuse(new, less, migrate=True)


@pytest.mark.fault("checkpoint of other shapes or types")
def test_parameters_of_another_shape_are_refused_too(new: Path) -> None:
    like = with_kernel(np.zeros((3, 8), np.float32)).params
    with pytest.raises(UserError, match=r"kernel is float32 \[3,4\], the model has float32 \[3,8\]"):
        Checkpoints(new, read_only=True).params(STEP, like)


@pytest.mark.fault("checkpoint of another version")
def test_leaves_that_a_format_adds_are_those_the_run_starts_with(old: Path) -> None:
    """Here another optimiser stands for a state with a field more; parameters are never filled in."""
    like = state()
    more = like.replace(opt_state=(*like.opt_state, optax.ScaleByScheduleState(count=jnp.int32(7))))
    found = Checkpoints(old, migrate=True).resume(more)
    assert found is not None
    opt_state: Any = found[0].opt_state
    assert int(opt_state[-1].count) == 7
    extra = state(params() | {"pooler": {"bias": np.zeros(2, np.float32)}})
    assert "has no pooler.bias" in refuse(old, extra, migrate=True)
