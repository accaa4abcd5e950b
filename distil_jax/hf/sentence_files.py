"""The files that sentence-transformers adds to a model folder <-> `Pooling`.

modules.json lists the encoder, its pooling and perhaps a normalisation; 1_Pooling/config.json has the kind of pooling,
sentence_bert_config.json the longest text, config_sentence_transformers.json the prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distil_jax.errors import UserError, shown
from distil_jax.hf.fields import Fields, read_json, read_json_list

if TYPE_CHECKING:
    from distil_jax.models import Pooling, PoolingMode

MODULES = "modules.json"
SENTENCE_SETTINGS = "sentence_bert_config.json"
GENERAL_SETTINGS = "config_sentence_transformers.json"
POOLING_SETTINGS = "1_Pooling/config.json"
SENTENCE_FILES = (MODULES, SENTENCE_SETTINGS, GENERAL_SETTINGS, POOLING_SETTINGS)
# Field of 1_Pooling/config.json -> mode. Versions before 6 have a field a mode, newer ones "pooling_mode".
_MODE_FIELDS: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}
_OTHER_MODES = ("mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
_LONGEST = 1 << 20  # tokens


def read_pooling(folder: Path) -> Pooling | None:
    """How the model in a sentence-transformers folder makes vectors; None for a folder without modules.json.

    Raises:
        UserError: a damaged file, or a module or kind of pooling that is not computed here.
    """
    from distil_jax.models import Pooling

    where = folder / MODULES
    if not where.is_file():
        return None
    modules = [_module(one, str(where)) for one in read_json_list(where)]
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise UserError(
            f"{where}: the modules {', '.join(kinds)} are not supported, only Transformer, Pooling, Normalize"
        )
    if modules[0][1]:
        raise UserError(f"{where}: the encoder is in {shown(modules[0][1])}; only one beside {MODULES} is read")
    settings = _optional(folder / SENTENCE_SETTINGS)
    prompts, prompt = _prompts(_optional(folder / GENERAL_SETTINGS))
    return Pooling(
        _mode(folder / modules[1][1] / "config.json"),
        normalize=len(kinds) > 2,
        max_length=settings.size("max_seq_length", 0, 0, _LONGEST) if settings.raw.get("max_seq_length") else 0,
        lower_case=settings.raw.get("do_lower_case") is True,
        prompts=prompts,
        prompt=prompt,
    )


def _module(entry: Any, where: str) -> tuple[str, str]:
    """The name of a module's class, and its folder."""
    kind, path = (entry.get("type"), entry.get("path", "")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(path, str) or not re.fullmatch(r"(\w[\w.-]*)?", path):
        raise UserError(f"{where}: {shown(entry)} is no module, which has a type and the path of a folder")
    return kind.rpartition(".")[2], path


def _optional(path: Path) -> Fields:
    return Fields(read_json(path) if path.is_file() else {}, str(path))


def _mode(path: Path) -> PoolingMode:
    raw = read_json(path)
    modes: list[Any] = [mode for field, mode in _MODE_FIELDS.items() if raw.get(field)]
    modes += [mode for mode in _OTHER_MODES if raw.get(f"pooling_mode_{mode}")]
    named = raw.get("pooling_mode")
    if named is not None:
        modes = named if isinstance(named, list) else [named]
    if len(modes) != 1 or modes[0] not in _MODE_FIELDS.values():
        raise UserError(f"{path}: pooling {shown(modes)} is not supported; known: {', '.join(_MODE_FIELDS.values())}")
    if raw.get("include_prompt") is False:
        raise UserError(f"{path}: include_prompt = false (prompts that are not pooled) is not supported")
    return cast("PoolingMode", modes[0])


def _prompts(settings: Fields) -> tuple[tuple[tuple[str, str], ...], str]:
    prompts, default = settings.raw.get("prompts") or {}, settings.raw.get("default_prompt_name") or ""
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f"{settings.where}: prompts = {shown(prompts)}, expected texts by name")
    if default and default not in prompts:
        raise UserError(f"{settings.where}: default_prompt_name = {shown(default)} is none of its prompts")
    return tuple(prompts.items()), default


def write_pooling(folder: Path, pooling: Pooling, width: int, max_length: int) -> None:
    """Add these files to a model folder, in the form of version 2, which later ones read. Raises OSError.

    Args:
        folder: exists.
        pooling: what is written.
        width: of the vectors.
        max_length: tokens of the longest row of the encoder.
    """
    kinds = ["Transformer", "Pooling", *(["Normalize"] if pooling.normalize else [])]
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    longest = min(pooling.max_length or max_length, max_length)
    modes = {field: mode == pooling.mode for field, mode in _MODE_FIELDS.items()}
    files: dict[str, Any] = {
        MODULES: modules,
        SENTENCE_SETTINGS: {"max_seq_length": longest, "do_lower_case": pooling.lower_case},
        POOLING_SETTINGS: {"word_embedding_dimension": width, **modes, "include_prompt": True},
        GENERAL_SETTINGS: {
            "__version__": {},
            "prompts": dict(pooling.prompts),
            "default_prompt_name": pooling.prompt or None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for number, kind in enumerate(kinds):
        if number > 1:  # which has no settings; the hub keeps no empty folder
            (folder / f"{number}_{kind}").mkdir()
            (folder / f"{number}_{kind}" / "config.json").write_text("{}\n", encoding="utf-8")
