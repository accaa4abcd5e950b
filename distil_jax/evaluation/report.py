"""Held-out measures as a Markdown table, and labels of folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.errors import UserError
from distil_jax.tables import markdown

# name of a measure -> (column heading, format)
COLUMNS: dict[str, tuple[str, str]] = {
    "parameters": ("parameters", "{:,.0f}"),
    "megabytes": ("MB on disk", "{:.1f}"),
    "mlm_loss": ("held-out loss", "{:.3f}"),
    "perplexity": ("perplexity", "{:.1f}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "kl": ("KL to teacher", "{:.3f}"),
    "agreement": ("agreement", "{:.1%}"),
    "latency": ("CPU ms", "{:.2f}"),
    "predictions": ("predictions", "{:,.0f}"),
}

_WIDTH = 80


def measures_table(measures: Mapping[str, Mapping[str, float]], first: str = "model") -> str:
    """Rows of measures under the headings of `COLUMNS`; a measure that a row lacks is left empty.

    What is wider than `_WIDTH` is several tables, one under another.
    """
    shown = [name for name in COLUMNS if any(name in row for row in measures.values())]
    tables: list[str] = []
    while shown:
        count = len(shown)
        while count > 1 and len(_table(measures, shown[:count], first).partition("\n")[0]) > _WIDTH:
            count -= 1
        tables.append(_table(measures, shown[:count], first))
        shown = shown[count:]
    return "\n\n".join(tables)


def _table(measures: Mapping[str, Mapping[str, float]], names: Sequence[str], first: str) -> str:
    rows = [
        [label, *(COLUMNS[name][1].format(row[name]) if name in row else "" for name in names)]
        for label, row in measures.items()
    ]
    return markdown([first, *(COLUMNS[name][0] for name in names)], rows)


def class_table(details: Mapping[str, Any], digits: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of classes, or of types of entities, in the details of a result.

    Shares have `digits` decimals; what is counted, such as rows or entities, is named by the details.
    """
    classes: Mapping[str, Mapping[str, float]] = details.get("classes", {})
    fields = list(dict.fromkeys(field for row in classes.values() for field in row))
    rows = [[name, *(_cell(row[field], digits) for field in fields)] for name, row in classes.items()]
    return ["class", *fields], rows


def _cell(value: float, digits: int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def folder_labels(folders: Sequence[Path], command: str) -> list[str]:
    """Labels of runs or studies: their folders' names, or the whole paths where names repeat.

    Raises:
        UserError: one is given to `command` twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"{command}: a folder is given twice; give each once")
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
