"""Writes format1.zip, a checkpoint as the first version of this program wrote it: python make_format1.py

Its hashes go by Python's own spelling of paths ("['opt_state'][0].mu['w']"); format 2 has dotted ones.
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


def leaf_hashes(tree: Any) -> dict[str, str]:
    """SHA-256 over type, shape and bytes of every leaf."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(leaf)
        digest = hashlib.sha256(f"{values.dtype} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).tobytes())
        found[jax.tree_util.keystr(path)] = digest.hexdigest()
    return found


def write(folder: Path) -> None:
    """Write the checkpoint into `folder`."""
    optimizer = {"step": np.int32(STEP), "opt_state": optax.adam(1e-3).init(params())}
    metadata = {"format": 1, "evaluations": {"0": {"mlm_loss": 4.5}}, "tokenizer": {"vocab.txt": "a\nß\n"}}
    hashes = {
        "params": leaf_hashes(params()),
        "optimizer": leaf_hashes(optimizer),
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
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary) / "checkpoints")
        shutil.make_archive(str(HERE / "format1"), "zip", temporary, "checkpoints")
