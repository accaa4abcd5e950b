"""Packages whose names are imported on first use, so that a command pays only for what it needs."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_imports(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package: it imports the names under `if TYPE_CHECKING:` in its `__init__` on first use.

    So each name stands there once, for the type checker and for the interpreter. They are the package's `__all__`.

    Args:
        package: its `__name__`. No name may be that of one of its modules.
    """
    source = Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8")
    guarded = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    imports = [node for block in guarded for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}
    vars(sys.modules[package]).setdefault("__all__", [*homes])

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find
