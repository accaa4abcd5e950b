"""Faces of packages: every name is there, and imported on first use alone."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

LAZY = (
    "distil_jax",
    *(f"distil_jax.{name}" for name in ("benchmark", "data.corpus", "evaluation", "export", "runs", "tasks")),
)


@pytest.mark.parametrize("package", LAZY)
def test_every_name_of_a_face_is_there(package: str) -> None:
    face = importlib.import_module(package)
    for name in face.__all__:
        assert not isinstance(getattr(face, name), ModuleType), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = face.no_such_name


def test_faces_import_no_jax() -> None:
    code = f"import sys, {', '.join(LAZY)}; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
