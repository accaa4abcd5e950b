"""Which part of a checkpoint cannot be read; Orbax seldom names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distil_jax.training.integrity import dotted

TEXTS = ("hashes", "metadata")
_SIDE_FILES = ("_METADATA", "_sharding", "array_metadatas/process_0")


def unreadable_part(folder: Path) -> tuple[str, Exception] | None:
    """The first file or leaf of the checkpoint in `folder` that cannot be read, with the reason; None: all can."""
    texts: dict[str, Any] = {}
    for name in TEXTS:
        try:
            texts[name] = json.loads((folder / name / "metadata").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return name, error
    hashes = texts["hashes"] if isinstance(texts["hashes"], dict) else {}
    for item in (name for name in hashes if name not in TEXTS and isinstance(hashes[name], dict)):
        for file in _SIDE_FILES:
            try:
                json.loads((folder / item / file).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                return f"{item}/{file}", error
        for leaf in hashes[item]:
            try:
                _read_leaf(folder / item, dotted(leaf))
            except (OSError, ValueError) as error:
                return dotted(leaf), error
    return None


def _read_leaf(folder: Path, name: str) -> None:
    import tensorstore

    store = {"driver": "ocdbt", "base": f"file://{folder.absolute()}/", "path": f"{name}/"}
    tensorstore.open({"driver": "zarr", "kvstore": store}).result().read().result()
