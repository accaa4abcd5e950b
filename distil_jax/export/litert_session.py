"""A LiteRT file as a function of what an encoder reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.errors import UserError, one_line
from distil_jax.models import EncoderInputs

_PREFIX = "tokens_"
_OF_QUESTIONS = ("start_logits", "end_logits")


def open_litert(path: Path, threads: int = 0) -> Any:
    """A function (inputs of NumPy) -> the model's first output float32; of questions start and end, [B, L, 2].

    A row is computed by the shortest signature that it fits into. What it gives for padding is 0.

    Args:
        path: the file.
        threads: of one operator; 0: as LiteRT chooses.

    Raises:
        UserError: a file that LiteRT cannot read, or no LiteRT; when called, a row that is too long.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UserError(f'{path}: needs ai-edge-litert: pip install "distil_jax[litert]"') from error
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads or None)
        names = interpreter.get_signature_list()
    except Exception as error:  # its classes of errors have no common one
        raise UserError(f"{path}: LiteRT cannot read it ({one_line(str(error), 200)})") from error
    runners = {
        int(name.removeprefix(_PREFIX)): interpreter.get_signature_runner(name)
        for name in names
        if name.startswith(_PREFIX)
    }
    if not runners:
        raise UserError(f'{path}: has no signature "{_PREFIX}<length>"; write it again with `distil-jax export`')
    outputs = next(iter(names.values()))["outputs"]
    wanted = next((one for one in ("logits", "last_hidden_state") if one in outputs), "")

    def compute_row(ids: np.ndarray, mask: np.ndarray, types: np.ndarray) -> np.ndarray:
        """[..., L] of one row -> what the model gives, [1, ...]."""
        count = int(np.flatnonzero(mask.reshape(-1, mask.shape[-1]).any(axis=0)).max(initial=0)) + 1
        length = next((one for one in sorted(runners) if one >= count), 0)
        if not length:
            raise UserError(f"{path}: a row has {count} tokens, the file takes {max(runners)}; write it with --lengths")
        runner = runners[length]
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        found = runner(**{name: _resized(given[name], length) for name in runner.get_input_details()})
        values = found[wanted] if wanted else np.stack([found[name] for name in _OF_QUESTIONS], axis=-1)
        return _resized(values, ids.shape[-1], axis=1) if values.ndim == 3 else values

    def compute(inputs: EncoderInputs) -> np.ndarray:
        ids = np.asarray(inputs.ids, np.int32)
        mask = np.ones_like(ids) if inputs.mask is None else np.asarray(inputs.mask, np.int32)
        types = np.zeros_like(ids) if inputs.token_type_ids is None else np.asarray(inputs.token_type_ids, np.int32)
        if ids.ndim == 3:  # choices: a row each
            choices = (x.reshape(-1, 1, 1, ids.shape[-1]) for x in (ids, mask, types))
            scores = [compute_row(*choice) for choice in zip(*choices, strict=True)]
            return np.concatenate(scores).reshape(ids.shape[:2])
        rows = zip(*(x[:, None] for x in (ids, mask, types)), strict=True)
        return np.concatenate([compute_row(*row) for row in rows])

    return compute


def _resized(values: np.ndarray, length: int, axis: int = -1) -> np.ndarray:
    """Cut or filled with 0 to `length` along an axis."""
    axis %= values.ndim
    values = np.take(values, range(min(length, values.shape[axis])), axis=axis)
    missing = [(0, length - values.shape[axis]) if one == axis else (0, 0) for one in range(values.ndim)]
    return np.pad(values, missing)
