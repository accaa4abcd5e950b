"""What an export format is: one value that writes a file of a model folder and runs it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distil_jax.errors import UserError
from distil_jax.export.source import Source
from distil_jax.models import EncoderInputs

# Inputs [B, L] (of choices [B, C, L]) of NumPy -> what the model gives: task logits as of `TaskModel`, logits of a
# masked language model, or an encoder's last hidden states.
Network = Callable[[EncoderInputs], np.ndarray]


@dataclasses.dataclass(frozen=True)
class WriteOptions:
    """What a format may be asked for.

    Attributes:
        dtype: of a Hugging Face folder's weights.
        keep_float: names of dense layers and tables that a quantised format leaves in float32.
        lengths: tokens of the rows that a format of fixed lengths takes; (): chosen by it.
    """

    dtype: str = "float32"
    keep_float: frozenset[str] = frozenset()
    lengths: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
        name: as `--format` has it.
        title: what is written, for people.
        file: its place in the model folder.
        write: writes it there. Raises UserError for a model that it cannot hold.
        open: the file as its own runtime runs it, for the check; None: it cannot be run here.
        runtime: what runs it, for people.
        extra: of pip, which installs what it needs; "": nothing.
        modules: what has to be importable.
        exact: whether the same decisions are expected, not only a like score.
        weights: names of the dense layers and tables that may stay float32; None: it is not quantised.
    """

    name: str
    title: str
    file: str
    write: Callable[[Source, Path, WriteOptions], None]
    open: Callable[[Path, Source], Network] | None
    _: dataclasses.KW_ONLY
    runtime: str
    extra: str = ""
    modules: tuple[str, ...] = ()
    exact: bool = True
    weights: Callable[[Source], list[str]] | None = None

    def require_installed(self) -> None:
        """Raise UserError where a package is missing, with the command that installs it."""
        import importlib.util

        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                raise UserError(f'--format {self.name}: needs {module}: pip install "distil_jax[{self.extra}]"')
