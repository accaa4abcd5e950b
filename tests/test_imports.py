"""What imports what: packages only those below them and only by their faces; dependencies are those declared."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the outside in; a package imports only what stands below it.
LAYERS = (
    *({"cli"}, {"api"}, {"evaluation", "benchmark", "serving"}, {"export"}, {"training"}, {"tasks"}, {"runs"}),
    *({"data"}, {"objectives"}, {"hf"}, {"models"}, {"cpu"}, {"config"}),
    {"charts", "errors", "lazy", "tables", "target"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in sorted(names)}
# Package -> packages whose modules it imports, not their faces. Training has no names of its own (see its docstring);
# the start-up of a process is called by its module's name.
BESIDE_FACES: dict[str, set[str]] = {
    "api": {"runs", "training"},
    "benchmark": {"runs", "training"},
    "cli": {"runs", "training"},
    "evaluation": {"training"},
    "export": {"training"},
}


class Import(NamedTuple):
    """Names that a module of the package imports from another: `from distil_jax.<source> import <names>`."""

    module: str
    source: str
    names: tuple[str, ...]

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    @property
    def target(self) -> str:
        return self.source.partition(".")[0]


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of distil_jax, by its name below it."""
    for path in sorted((ROOT / "distil_jax").rglob("*.py")):
        parts = path.relative_to(ROOT / "distil_jax").with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports() -> Iterator[Import]:
    """Every import of one top-level package of distil_jax in another, those in functions as well."""
    for module, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distil_jax."):
                found = Import(module, str(node.module).partition(".")[2], tuple(alias.name for alias in node.names))
                if module and found.target != found.package:
                    yield found


FOUND = [*imports()]


def names_of(face: Path) -> set[str]:
    """What a package offers: what its `__init__` imports from its own modules or defines, without a leading "_"."""
    found: set[str] = set()
    package = ".".join(face.parent.relative_to(ROOT).parts)
    tree = ast.parse(face.read_text(encoding="utf-8"))
    for node in (*tree.body, *(inner for block in tree.body if isinstance(block, ast.If) for inner in block.body)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{package}."):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("package", RANK)
def test_a_package_imports_only_what_stands_below_it(package: str) -> None:
    upward = {(one.module, one.target) for one in FOUND if one.package == package and RANK[one.target] <= RANK[package]}
    assert not upward


@pytest.mark.parametrize("package", RANK)
def test_packages_are_imported_by_their_faces(package: str) -> None:
    """From a package, never from a module in it, and only names that it offers."""
    faces = {name: path for name, path in modules() if path.name == "__init__.py"}
    beside: set[str] = set()
    for one in FOUND:
        if one.package != package or (ROOT / "distil_jax" / f"{one.target}.py").is_file():
            continue
        offered = names_of(faces[one.source]) if one.source in faces else set()
        if not {*one.names} <= offered:
            beside.add(one.target)
    assert beside <= BESIDE_FACES.get(package, set())


# What a distribution is imported as, where that is not its name.
IMPORT_NAMES = {"orbax-checkpoint": "orbax", "scikit-learn": "sklearn"}
# Declared for another reason than an import.
NOT_IMPORTED = {
    "importlib_resources": "tensorflow-datasets imports it without declaring it",
}


def declared(*groups: str) -> set[str]:
    """Import names of the declared dependencies, those of some extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for group in groups for line in project["optional-dependencies"][group])]
    names = [re.match(r"[\w-]+", line)[0] for line in lines]  # type: ignore[index]
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names} - set(NOT_IMPORTED)


def imported() -> set[str]:
    """Top-level modules that distil_jax imports from elsewhere, those in functions as well."""
    found: set[str] = set()
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"distil_jax"}


def test_dependencies_are_declared_and_imported() -> None:
    optional = declared("tfds", "plot", "onnx", "coreml", "litert", "serve", "wandb")
    assert imported() - optional == set(), "imported, but not declared"
    assert declared() - imported() == set(), "declared, but not imported"


def test_declared_dependencies_are_installed() -> None:
    names = {name for group in importlib.metadata.packages_distributions().values() for name in group}
    assert names, "the environment lists no distribution"
    assert declared() <= {*importlib.metadata.packages_distributions()}
