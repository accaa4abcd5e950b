"""Writes format1.zip and format2.zip, checkpoints as earlier versions wrote them: python make_formats.py

Hashes of format 1 go by Python's own spelling of paths ("['opt_state'][0].mu['w']"), those of format 2 by dotted ones.
Both have copies of the tokenizer and of the evaluations in their metadata.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

STEP = 12
HERE = Path(__file__).resolve().parent


def params() -> dict[str, Any]:
    """What is saved, all of it known without reading it back."""
    return {
        "encoder": {"layer_0": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4) / 7}},
        "mlm_head": {"bias": np.array([np.nan, -0.0, 1e-42], np.float32)},
    }


def leaf_hashes(tree: Any, *, dotted: bool) -> dict[str, str]:
    """SHA-256 over type, shape and bytes of every leaf."""
    spelling = {"simple": True, "separator": "."} if dotted else {}
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(leaf)
        digest = hashlib.sha256(f"{values.dtype} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).tobytes())
        found[jax.tree_util.keystr(path, **spelling)] = digest.hexdigest()
    return found


def write(folder: Path, number: int) -> None:
    """Write the checkpoint of format `number` into `folder`."""
    optimizer = {"step": np.int32(STEP), "opt_state": optax.adam(1e-3).init(params())}
    metadata = {"format": number, "evaluations": {"0": {"mlm_loss": 4.5}}, "tokenizer": {"vocab.txt": "a\nß\n"}}
    hashes = {
        "params": leaf_hashes(params(), dotted=number > 1),
        "optimizer": leaf_hashes(optimizer, dotted=number > 1),
        "metadata": {"metadata": hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()},
    }
    with ocp.CheckpointManager(folder) as manager:
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params()),
            optimizer=ocp.args.StandardSave(optimizer),
            metadata=ocp.args.JsonSave(metadata),
            hashes=ocp.args.JsonSave(hashes),
        )
        manager.save(STEP, args=items)
        manager.wait_until_finished()


if __name__ == "__main__":
    for number in (1, 2):
        with tempfile.TemporaryDirectory() as temporary:
            write(Path(temporary) / "checkpoints", number)
            shutil.make_archive(str(HERE / f"format{number}"), "zip", temporary, "checkpoints")
