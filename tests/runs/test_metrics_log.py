"""The metrics log: rows on disk, what a resumed run keeps of them, TensorBoard files."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.errors import UserError
from distil_jax.runs.metrics_log import MetricsWriter, read_evaluations, read_metrics


def rows(folder: Path) -> list[dict[str, Any]]:
    """The file's lines as strict JSON, read without the code under test."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """Scalars in TensorBoard event files."""
    return [(one.tag, step, one.simple_value) for step, one in logged_values(folder) if one.HasField("simple_value")]


def texts(folder: Path) -> list[tuple[str, int, str]]:
    return [
        (one.tag, step, one.tensor.string_val[0].decode())
        for step, one in logged_values(folder)
        if one.HasField("tensor")
    ]


def logged_values(folder: Path) -> list[tuple[int, Any]]:
    """(step, value) of TensorBoard event files: records of (length, crc, protobuf Event, crc)."""
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def run(folder: Path, first: int, last: int, restored_step: int | None = None) -> None:
    """A run that writes a row every 10 steps."""
    with MetricsWriter(folder, restored_step=restored_step, tensorboard=False) as writer:
        for step in range(first, last + 1, 10):
            writer.write(step, {"loss": jnp.float32(1 / step)}, timing={"tokens_per_second": 1e3 * step})
            if step % 20 == 0:
                writer.write(step, {"loss": 2 / step}, "validation")


def test_rows_hold_the_values_exactly_and_keep_the_clock_apart(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        metrics = {
            "f32": jnp.float32(0.1),
            "f64": 1 / 3,
            "int": jnp.int32(2**30 + 1),
            "numpy": np.float32(1e-8),
            "bf16": jnp.bfloat16(0.5),
        }
        writer.write(3, metrics, "train", {"tokens_per_second": 12.5})
    (row,) = rows(tmp_path)
    assert (row["step"], row["kind"]) == (3, "train")
    values = row["metrics"]
    assert np.float32(values["f32"]) == np.float32(0.1) and values["f64"] == 1 / 3
    assert values["int"] == 2**30 + 1 and isinstance(values["int"], int)
    assert np.float32(values["numpy"]) == np.float32(1e-8) and values["bf16"] == 0.5
    assert row["timing"].keys() == {"time", "tokens_per_second"} and row["timing"]["tokens_per_second"] == 12.5


def test_values_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": jnp.float32(jnp.nan), "norm": float("inf"), "good": 1.0})
    assert rows(tmp_path)[0]["metrics"] == {"loss": None, "norm": None, "good": 1.0}


def test_writing_does_not_wait_for_the_row_it_is_given(tmp_path: Path) -> None:
    class Late:
        """A value that is still being computed until `ready`."""

        ready = False
        copied = False

        def copy_to_host_async(self) -> None:
            self.copied = True

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            assert self.ready, "the writer waited for the device"
            return np.array(0.25, np.float32)

    writer = MetricsWriter(tmp_path, tensorboard=False)
    late = Late()
    writer.write(1, {"loss": late})
    assert late.copied and rows(tmp_path) == []
    late.ready = True
    writer.write(2, {"loss": Late()})
    assert [row["metrics"]["loss"] for row in rows(tmp_path)] == [0.25]


def test_flush_brings_everything_to_the_disk(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": jnp.sum(jnp.ones(8))})
    writer.flush()
    assert rows(tmp_path)[0]["metrics"] == {"loss": 8.0}
    assert scalars(tmp_path) == [("train/loss", 1, 8.0)]
    writer.close()
    writer.close()


def test_interrupted_and_resumed_ends_like_uninterrupted(tmp_path: Path) -> None:
    run(tmp_path / "whole", 10, 100)
    run(tmp_path / "torn", 10, 70)
    with (tmp_path / "torn" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 80, "kind": "tra')  # killed while writing
    run(tmp_path / "torn", 50, 100, restored_step=40)

    def without_clock(folder: Path) -> list[dict[str, Any]]:
        return [{name: row[name] for name in ("step", "kind", "metrics")} for row in rows(folder)]

    assert without_clock(tmp_path / "torn") == without_clock(tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) == 15
    assert sorted(path.name for path in (tmp_path / "torn").iterdir()) == ["metrics.jsonl"]


def test_a_run_from_the_start_drops_what_is_there(tmp_path: Path) -> None:
    run(tmp_path, 10, 40)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"loss": 1.0}, "validation")
    assert [row["step"] for row in rows(tmp_path)] == [0]


def test_rows_up_to_the_restored_step_are_not_touched(tmp_path: Path) -> None:
    run(tmp_path, 10, 40)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    MetricsWriter(tmp_path, restored_step=40, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_tensorboard_has_the_same_values_and_forgets_lost_steps(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import SessionLog  # type: ignore[attr-defined]

    with MetricsWriter(tmp_path) as writer:
        writer.write(5, {"loss": 0.5}, "validation", {"tokens_per_second": 3.0})
    assert scalars(tmp_path) == [("validation/loss", 5, 0.5), ("validation/tokens_per_second", 5, 3.0)]
    first = set((tmp_path / "tensorboard").iterdir())
    MetricsWriter(tmp_path, restored_step=3).close()
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

    (second,) = set((tmp_path / "tensorboard").iterdir()) - first
    data, starts = second.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        starts += [event.step] if event.session_log.status == SessionLog.START else []
        data = data[16 + length :]
    assert starts == [4]


def test_what_makes_no_curve_is_a_text(tmp_path: Path) -> None:
    """The opening table, and values of a start that are in every row."""
    (tmp_path / "opening.txt").write_text("student   small\n")
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2):
            writer.write(step, {"loss": 0.5}, timing={"compile_seconds": 11.24921928, "tokens_per_second": 3.0})
    assert [name for name, *_ in scalars(tmp_path)] == ["train/loss", "train/tokens_per_second"] * 2
    (run_name, _, table), (name, _, seconds) = texts(tmp_path)
    assert "run" in run_name and table == "    student   small\n"
    assert name.startswith("train/compile_seconds") and seconds == "11.2492"
    assert rows(tmp_path)[1]["timing"]["compile_seconds"] == 11.24921928


def test_only_one_process_writes(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "run", enabled=False) as writer:
        writer.write(1, {"loss": 1.0})
        writer.flush()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl: not writable.*run\.output"):
        MetricsWriter(tmp_path / "file" / "run")


def test_read_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    run(tmp_path, 10, 40)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step"')
    assert [row["step"] for row in read_metrics(tmp_path, "validation")] == [20, 40]
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20, 20, 30, 40, 40]


def test_evaluations_up_to_a_step(tmp_path: Path) -> None:
    run(tmp_path, 10, 40)
    assert read_evaluations(tmp_path, 40) == {20: {"loss": 0.1}, 40: {"loss": 0.05}}
    assert read_evaluations(tmp_path, 39) == {20: {"loss": 0.1}}
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"loss": jnp.float32(jnp.nan), "score": 1 / 3}, "validation")
    found = read_evaluations(tmp_path, 0)[0]
    assert found["score"] == 1 / 3 and np.isnan(found["loss"])


def test_replicated_arrays_of_several_devices_are_written(tmp_path: Path) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    value = jax.device_put(jnp.float32(3), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": value})
    assert rows(tmp_path)[0]["metrics"] == {"loss": 3.0}


def test_importing_the_log_does_not_import_jax() -> None:
    code = "import sys, distil_jax.runs.metrics_log; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"jax", "tensorboardX", "rich", "numpy"}.isdisjoint(modules)


@pytest.mark.parametrize("line", ['{"step": "3", "kind": "train", "metrics": {}}', "[" * 10**5, "null", "\0\0", "3"])
def test_a_line_that_is_no_row_is_dropped(line: str, tmp_path: Path) -> None:
    row = '{"step": 1, "kind": "train", "metrics": {}}'
    (tmp_path / "metrics.jsonl").write_text(f"{row}\n{line}\n{row}\n")
    assert len(read_metrics(tmp_path)) == 2
    MetricsWriter(tmp_path, restored_step=1, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_text() == f"{row}\n{row}\n"


def test_weights_and_biases_gets_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stub: what is logged, under which step, and that a run that continues is the same one."""
    made: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    run = SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append((-1, {}))
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: made.append(options) or run))
    for step in (1, 2):
        with MetricsWriter(tmp_path / "run", restored_step=step - 1, tensorboard=False, wandb=True) as writer:
            writer.write(step, {"loss": 2.0, "bad": float("nan")}, timing={"tokens_per_second": 5.0})
    assert logged[:2] == [(1, {"train/loss": 2.0, "train/tokens_per_second": 5.0}), (-1, {})]
    assert made[0] == made[1] and made[0]["resume"] == "allow"


def test_weights_and_biases_that_are_missing_or_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(UserError, match="no API key.*WANDB_MODE"):
        MetricsWriter(tmp_path / "run", tensorboard=False, wandb=True)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install"):
        MetricsWriter(tmp_path / "other", tensorboard=False, wandb=True)


def test_weights_and_biases_offline(tmp_path: Path) -> None:
    """The real package, without network: the rows are in its file, and the run that continues has the same id."""
    pytest.importorskip("wandb", reason="wandb is not installed: pip install '.[wandb]'")
    code = (
        "import sys; from pathlib import Path; from distil_jax.runs import MetricsWriter\n"
        "for step in (1, 2):\n"
        "    with MetricsWriter(Path('run'), restored_step=step - 1, tensorboard=False, wandb=True) as writer:\n"
        "        writer.write(step, {'loss': 2.0 / step, 'bad': float('nan')}, timing={'tokens_per_second': 5.0})\n"
    )
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({path.name for path in files}) == 1
    assert all(b"train/loss" in path.read_bytes() and b"train/tokens_per_second" in path.read_bytes() for path in files)
