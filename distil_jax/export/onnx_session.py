"""An ONNX file as a function of what an encoder reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.errors import UserError, one_line
from distil_jax.models import EncoderInputs


def open_onnx(path: Path, threads: int = 0) -> Any:
    """A function (inputs of NumPy) -> the model's first output float32; of questions start and end, [B, L, 2].

    Args:
        path: the file.
        threads: of one operator; 0: one a core.

    Raises:
        UserError: a file that onnxruntime cannot read, or no onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f'{path}: needs onnxruntime: pip install "distil_jax[onnx]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes of errors have no common one
        raise UserError(f"{path}: onnxruntime cannot read it ({one_line(str(error), 200)})") from error
    names = [one.name for one in session.get_inputs()]
    outputs = [one.name for one in session.get_outputs()]
    wanted = outputs if "start_logits" in outputs else outputs[:1]

    def compute(inputs: EncoderInputs) -> np.ndarray:
        ids = np.asarray(inputs.ids, np.int64)
        given = {"input_ids": ids, "attention_mask": inputs.mask, "token_type_ids": inputs.token_type_ids}
        default = {"attention_mask": np.ones_like, "token_type_ids": np.zeros_like}
        feed = {n: default[n](ids) if given[n] is None else np.asarray(given[n], np.int64) for n in names}
        found: Any = session.run(wanted, feed)
        return np.stack(found, axis=-1) if len(found) > 1 else found[0]

    return compute
