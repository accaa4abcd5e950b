"""The help of commands: the first page, the page of all settings; and messages in the words of who typed flags."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from distil_jax.config.commands import Arguments
from distil_jax.config.fields import Field, fields_of
from distil_jax.config.files import find_field, setting_names, to_tables
from distil_jax.config.schema import SECTIONS, Config

WIDTH = 80
_INDENT = 30
_USAGE = "[--config FILE] [--section.key VALUE ...]"


@dataclasses.dataclass(frozen=True)
class ShortHelp:
    """What the first page of a command's help shows.

    Attributes:
        example: a whole command.
        needed: settings without which it does not start, by "section.key".
        common: the settings that people change.
    """

    example: str
    needed: tuple[str, ...]
    common: tuple[str, ...]


def short_help(page: ShortHelp, config: Config, prog: str, description: str, count: int) -> str:
    """The first page, of at most `WIDTH` columns; `count` settings are on the other one."""
    lines = _head(f"{prog} {_USAGE}", description)
    for title, names in (("needed", page.needed), ("often changed", page.common)):
        if names:
            lines += ["", f"{title}:", *(line for name in names for line in _setting(name, config))]
    lines += ["", "example:", *_wrapped_command(page.example)]
    rest = f"`{prog} --help-all` shows all {count} settings. --config FILE reads them from TOML, where "
    return "\n".join([*lines, "", *textwrap.wrap(f"{rest}--training.steps 10 is steps = 10 below [training].", WIDTH)])


def full_help(page: ShortHelp | None, config: Config, prog: str, description: str, names: Sequence[str]) -> str:
    """The page of all these settings, by section; those that the first page needs are marked."""
    needed = () if page is None else page.needed
    lines = [
        *_head(f"{prog} {_USAGE}", description),
        *("", "  --config FILE"),
        *_described("TOML file, or name of a shipped configuration; its values are the defaults below"),
    ]
    for section in dict.fromkeys(name.partition(".")[0] for name in names):
        lines += ["", *textwrap.wrap(f"[{section}] {inspect.getdoc(SECTIONS[section])}", WIDTH)]
        for name in names:
            if name.startswith(f"{section}."):
                lines += _setting(name, config, "needed: " if name in needed else "")
    return "\n".join(lines)


def command_help(kind: type[Arguments], prog: str) -> str:
    """The help of a command that takes no configuration: all its arguments, in at most `WIDTH` columns."""
    positional = " ".join(kind.label(name) for name in kind.positional.split())
    lines = _head(" ".join(filter(None, (prog, positional, "[--option VALUE ...]"))), inspect.getdoc(kind) or "")
    fields = fields_of(kind).items()
    needed = [key for key, field in fields if field.default is dataclasses.MISSING]
    for title, shown in (("needed", needed), ("options", [key for key, _ in fields if key not in needed])):
        entries = (entry(kind.label(key), field, field.default) for key, field in fields if key in shown)
        lines += ["", f"{title}:", *(line for one in entries for line in one)] if shown else []
    return "\n".join([*lines, *(["", "example:", *_wrapped_command(kind.example)] if kind.example else [])])


def _head(usage: str, description: str) -> list[str]:
    paragraphs = (textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False) for paragraph in description.split("\n\n"))
    return [*textwrap.wrap(f"usage: {usage}", WIDTH), *(line for lines in paragraphs for line in ("", *lines))]


def _setting(name: str, config: Config, mark: str = "") -> list[str]:
    section, key, field = find_field(name)
    return entry(flag_of(name), field, to_tables(config)[section][key], mark)


def entry(label: str, field: Field, value: Any = dataclasses.MISSING, mark: str = "") -> list[str]:
    """The lines on one argument: its flag or name, what it takes, what it means, and its value where it has one."""
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    known = "" if value in (dataclasses.MISSING, None) or not shown else f" [{shown}]"
    if label.startswith("--"):
        label = f"{label}, {no_flag_of(label)}" if field.is_switch else f"{label} {field.takes}"
    text = _described(f"{mark}{field.help}{known}")
    if len(label) < _INDENT - 3:
        return [f"{f'  {label}':<{_INDENT}}{text[0].lstrip()}", *text[1:]]
    return [f"  {label}", *text]


def _described(text: str) -> list[str]:
    return [" " * _INDENT + line for line in textwrap.wrap(text, WIDTH - _INDENT)]


def _wrapped_command(text: str) -> list[str]:
    """Lines of a command, each flag with its value."""
    text = re.sub(r"(--\S+) (?!--)", "\\1\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(
        text, WIDTH - 4, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False, break_long_words=False
    )
    lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def flag_of(name: str) -> str:
    """The flag of a setting: "--training.batch-size"."""
    return f"--{name.replace('_', '-')}"


def no_flag_of(flag: str) -> str:
    """The flag that says no to a yes/no setting: "--corpus.no-pack" of "--corpus.pack"."""
    section, dot, key = flag.removeprefix("--").rpartition(".")
    return f"--{section}{dot}no-{key}"


def in_flags(message: str, arguments: Sequence[str]) -> str:
    """A message with settings as flags, for a command whose settings were typed as flags alone.

    `training.steps = 10` becomes `--training.steps 10`. Where a file was given, those that were typed are flags.
    """
    typed = {one.partition("=")[0].replace("_", "-") for one in arguments if one.startswith("--")}
    from_file = "--config" in typed

    def flag(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        if name not in _NAMES or (from_file and flag_of(name) not in typed):
            return found[0]
        if value in ("true", "false"):
            return flag_of(name) if value == "true" else no_flag_of(flag_of(name))
        bare = (value or "").strip("'\"")
        return flag_of(name) + (f" {bare}" if bare else found["equals"] or "")

    return _NAMED.sub(flag, message)


_NAMES = frozenset(setting_names())
# A name that stands by itself, not in a path, with what it is set to.
_NAMED = re.compile(
    r"""(?<![\w./-])(?P<name>[a-z]+\.[a-z0-9_]+)(?![\w/]|\.\w)"""
    r"""(?P<equals>\s=\s(?P<value>"[^"]*"|'[^']*'|[^\s,;:()\[\]"]*[^\s,;:()\[\]".])?)?"""
)
