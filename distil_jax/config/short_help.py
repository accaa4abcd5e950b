"""The first page of a command's help, and messages on settings in the words of who typed flags."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from distil_jax.config.commands import Arguments
from distil_jax.config.fields import Field, fields_of
from distil_jax.config.files import find_field, setting_names, to_tables
from distil_jax.config.schema import Config

WIDTH = 80
_INDENT = 30


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
    """The page, of at most `WIDTH` columns; `count` settings are on the other one."""
    usage = f"usage: {prog} [--config FILE] [--section.key VALUE ...]"
    lines = [*textwrap.wrap(usage, WIDTH), "", *textwrap.wrap(description, WIDTH)]
    for title, names in (("needed", page.needed), ("often changed", page.common)):
        if not names:
            continue
        lines += ["", f"{title}:"]
        for name in names:
            lines += _entry(name, config)
    lines += ["", "example:", *_wrapped_command(page.example)]
    rest = f"`{prog} --help-all` shows all {count} settings. --config FILE reads them from TOML, where "
    return "\n".join([*lines, "", *textwrap.wrap(f"{rest}--training.steps 10 is steps = 10 below [training].", WIDTH)])


def command_help(kind: type[Arguments], prog: str) -> str:
    """The help of a command that takes no configuration: all its arguments, in at most `WIDTH` columns."""
    positional, fields = kind.positional.split(), fields_of(kind)
    usage = f"usage: {prog} {' '.join(name.upper() for name in positional)}"
    lines = [*textwrap.wrap(f"{usage.rstrip()} [--option VALUE ...]", WIDTH), ""]
    for part in inspect.cleandoc(kind.__doc__ or "").split("\n\n"):
        lines += [*textwrap.wrap(part, WIDTH, break_on_hyphens=False), ""]
    needed = {key: field for key, field in fields.items() if field.default is dataclasses.MISSING}
    for title, shown in (("needed", needed), ("options", {key: fields[key] for key in fields if key not in needed})):
        if shown:
            lines.append(f"{title}:")
        for key, field in shown.items():
            name = key.upper() if key in positional else kind.full_name(key)
            lines += _described(name, field, field.default, plain=key in positional)
        lines += [""] * bool(shown)
    example = ["example:", *_wrapped_command(kind.example)] if kind.example else []
    return "\n".join([*lines, *example]).rstrip()


def _entry(name: str, config: Config) -> list[str]:
    section, key, field = find_field(name)
    return _described(flag_of(name), field, to_tables(config)[section][key])


def _described(name: str, field: Field, value: Any, *, plain: bool = False) -> list[str]:
    """A setting, what it takes, what it means, and its value; one that is `plain` is given without a flag."""
    known = "" if value in ("", (), None, dataclasses.MISSING) else f" [{_shown(value)}]"
    name = name.replace("--", "--[no-]") if value is True and "." not in name else name
    flag = f"  {name} {'' if plain else _metavar(field)}".rstrip()
    text = textwrap.wrap(f"{field.help}{known}", WIDTH - _INDENT) or [""]
    if len(flag) < _INDENT - 1:
        return [f"{flag:<{_INDENT}}{text[0]}", *(" " * _INDENT + line for line in text[1:])]
    return [flag, *(" " * _INDENT + line for line in text)]


def _metavar(field: Field) -> str:
    kind = next((one for one in get_args(field.annotation) if one is not NoneType), field.annotation)
    kind = kind if isinstance(field.annotation, UnionType) else field.annotation
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {bool: "" if kind is field.annotation else "True|False", int: "N", float: "X", str: "TEXT"}.get(kind, "...")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
            section, _, key = name.partition(".")
            return flag_of(name if value == "true" else f"{section}.no_{key}")
        bare = (value or "").strip("'\"")
        return flag_of(name) + (f" {bare}" if bare else found["equals"] or "")

    return _NAMED.sub(flag, message)


_NAMES = frozenset(setting_names())
# A name that stands by itself, not in a path, with what it is set to.
_NAMED = re.compile(
    r"""(?<![\w./-])(?P<name>[a-z]+\.[a-z0-9_]+)(?![\w/]|\.\w)"""
    r"""(?P<equals>\s=\s(?P<value>"[^"]*"|'[^']*'|[^\s,;:()\[\]"]*[^\s,;:()\[\]".])?)?"""
)
