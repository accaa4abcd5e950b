"""Pages of the site that are made from other files: the settings from the schema, the rest from the top level."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

from distil_jax.config import SECTIONS, fields_of

_ROOT = Path(__file__).resolve().parents[1]
COPIES = {
    "benchmarks.md": "benchmarks/RESULTS.md",
    "changes.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages; mkdocs calls it."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "settings.md", content=settings_page()))
    for page, source in COPIES.items():
        text = (_ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def settings_page() -> str:
    """Every setting by section: what it means, its default, and what may be given."""
    lines = [
        "# Settings",
        "",
        "A setting is `section.key` in a message, `key` below `[section]` in a TOML file, and `--section.key` on the",
        "command line, with `-` for `_`.",
    ]
    for name, section in SECTIONS.items():
        lines += ["", f"## [{name}]", "", inspect.cleandoc(section.__doc__ or ""), ""]
        lines += ["| setting | default | meaning | may be |", "|---|---|---|---|"]
        for key, field in fields_of(section).items():
            cells = (f"`{key}`", f"`{_toml(field.default)}`", field.help, field.allowed)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
