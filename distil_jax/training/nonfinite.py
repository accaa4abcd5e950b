"""Steps whose loss or gradients are not finite: skipped on the device, counted on the host, and reported in the end."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from distil_jax.errors import FaultError
from distil_jax.training.integrity import leaves_by_name
from distil_jax.training.step import parts

FOLDER = "nonfinite"  # in a run's folder
REPORT_FILE = "report.json"


class NonfiniteError(FaultError):
    """A run that ends because its numbers are not finite; all of its processes raise this at the same step."""


@dataclasses.dataclass(frozen=True)
class Skips:
    """How many steps of a run were skipped: in all, and the last ones in a row."""

    total: int = 0
    in_row: int = 0

    def after(self, skipped: bool) -> Skips:
        """With one more step."""
        return Skips(self.total + skipped, self.in_row + 1 if skipped else 0)


def refuse_nonfinite(tree: Any, what: str) -> None:
    """Raise `NonfiniteError`, naming the first array of `tree` that holds NaN or Inf; checked on the devices."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, _), is_finite in zip(leaves, np.asarray(_are_finite([leaf for _, leaf in leaves])), strict=True):
        if not is_finite:
            raise NonfiniteError(
                f"{what}: {jax.tree_util.keystr(path)} is not finite, and so is not saved; start "
                "again with a lower optimizer.learning_rate, in another folder"
            )


# One program: of several under way at once, each with a sum over cut arrays, processes on CPU can wait for each other
# for ever.
@jax.jit
def _are_finite(leaves: list[Array]) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])  # true for whole numbers


def write_report(
    run_folder: Path,
    step: int,
    skips: Skips,
    metrics: Mapping[str, Any],
    rows: np.ndarray,
    batch: Any,
    params: Mapping[str, Any],
    trained: Sequence[str],
) -> Path:
    """The folder `nonfinite/step_N/` of the run, with a report on a step that was skipped.

    report.json has the step, its losses, the numbers of the rows of the global batch, and norms of parameters and
    gradients, by tensor and by group of the first two levels ("encoder.layer_3"). Numbers that are not finite are the
    texts "nan", "inf" and "-inf". batch_P.npz, a file a process, has the arrays that went into the step.

    Args:
        run_folder: of the run.
        step: number of the step.
        skips: with it.
        metrics: of the step.
        rows: numbers of the training rows of its batch, [B].
        batch: this process's part of it, a tree of host arrays.
        params: parameters, those before the step, since it was skipped.
        trained: the groups that have gradients, as in `parts`.
    """
    folder = run_folder / FOLDER / f"step_{step}"
    folder.mkdir(parents=True, exist_ok=True)
    arrays: Any = {name or "ids": leaf for name, leaf in leaves_by_name(batch).items()}
    np.savez(folder / f"batch_{jax.process_index()}.npz", **arrays)
    if jax.process_index():
        return folder
    names = leaves_by_name(parts(dict(params), trained))
    gradients = dict(zip(names, np.asarray(metrics["gradient_norms"], np.float64), strict=True))
    norms = {name: float(optax.tree.norm(leaf)) for name, leaf in leaves_by_name(params).items()}
    report = {
        "step": step,
        "skipped_in_a_row": skips.in_row,
        "skipped_steps": skips.total,
        "metrics": {name: _shown(value) for name, value in metrics.items() if np.ndim(value) == 0},
        "rows": rows.tolist(),
        "parameter_norms": _with_groups(norms),
        "gradient_norms": _with_groups(gradients),
    }
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return folder


def _with_groups(norms: Mapping[str, float]) -> dict[str, Any]:
    """Norms of the groups, then of the tensors."""
    groups: dict[str, float] = {}
    for name, norm in norms.items():
        group = ".".join(name.split(".")[:2])
        groups[group] = math.hypot(groups.get(group, 0.0), norm)
    return {
        "layers": {name: _shown(norm) for name, norm in groups.items()},
        "tensors": {name: _shown(norm) for name, norm in norms.items()},
    }


def _shown(value: Any) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)
