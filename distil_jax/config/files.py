"""Configurations as files: TOML in with inheritance, TOML out, and what two configurations differ in."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distil_jax.config.fields import Field, fields_of
from distil_jax.config.schema import SECTIONS, Config
from distil_jax.errors import UserError, one_line, shown

INHERIT = "inherit"
_LARGEST_FILE = 256 << 10  # bytes; with every setting spelled out a file has about 10 kB
_LONGEST_NAME = 100  # characters of a name that the nearest valid one is looked for
_MOST_PARENTS = 16
# Thirty keys joined by dots. Settings have one dot at most, and the parser takes quadratic time over such chains.
# (Repetitions are bounded and possessive, so that this search itself is linear.)
_CHAIN = re.compile(r"""(?:(?:[\w-]{1,80}+|"(?:[^"\\\n]|\\.){0,80}+"|'[^'\n]{0,80}+')[ \t]{0,80}+\.[ \t]{0,80}+){30}""")


Tables = dict[str, dict[str, Any]]  # section -> key -> value, every value checked


def load_config(source: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration, the files it inherits from first.

    Args:
        source: path of a TOML file, or the name of a shipped one ("quickstart").
        overrides: values by "section.key" that win over the file.

    Raises:
        UserError: file missing or not TOML, unknown section or key (the nearest valid one is named), a value of the
            wrong type or out of bounds, values that contradict each other, files that inherit from each other.
    """
    path = find_config(source)
    tables = _read(path, ())
    try:
        config = _build(tables)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return with_overrides(config, overrides or {})


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with the values given by "section.key" put in their places; the same errors as in a file."""
    tables = to_tables(config)
    for name, value in overrides.items():
        section, key, field = find_field(name)
        tables[section][key] = field.checked(value, name)
    return _build(tables)


def settings_in(text: str) -> dict[str, Any]:
    """The values in `teacher.dtype=bfloat16+training.micro_batch_size=8`, by "section.key"; they are not checked."""
    found = {}
    for part in text.split("+"):
        name, _, value = part.strip().partition("=")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value  # a word without quotes
        if isinstance(found[name], list):
            found[name] = tuple(found[name])
    return found


def find_config(source: str | Path) -> Path:
    """Path of a configuration given by path or by the name of a shipped one."""
    path = Path(source)
    if _is_file(path):
        return path
    names = sorted(file.stem for file in shipped_folder().glob("*.toml"))
    if str(source) in names:
        return shipped_folder() / f"{source}.toml"
    if not str(source).isprintable() or len(str(source)) > 255:
        raise UserError(f"no configuration file {shown(str(source))}; shipped ones: {', '.join(names)}")
    if path.is_dir():
        raise UserError(f"{source} is a folder; give a TOML file or a shipped configuration: {', '.join(names)}")
    near = difflib.get_close_matches(path.stem, names, 1)
    hint = f"did you mean the shipped {near[0]!r}?" if near else f"shipped ones: {', '.join(names)}"
    raise UserError(f"no configuration file {str(source)!r}; {hint}")


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is no error."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def shipped_config(name: str) -> Path:
    """Path of the configuration that is shipped under `name` ("quickstart")."""
    path = shipped_folder() / f"{name}.toml"
    return path if path.is_file() else find_config(name)


def shipped_folder() -> Path:
    """The folder `configs`: in the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next((path for path in (package / "configs", package.parent / "configs") if path.is_dir()), package)


def to_tables(config: Config) -> Tables:
    """All values as section -> key -> value."""
    return {
        section: {key: getattr(getattr(config, section), key) for key in fields_of(kind)}
        for section, kind in SECTIONS.items()
    }


def config_to_toml(config: Config) -> str:
    """Every setting as TOML; reading it back gives an equal `Config`."""
    lines: list[str] = []
    for section, table in to_tables(config).items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in table.items()), ""]
    return "\n".join(lines)


def config_from_toml(text: str, where: str) -> Config:
    """The configuration in `text`; errors name `where` it comes from. Nothing can be inherited."""
    try:
        tables = _checked(_parsed(text, where), where)
        return _build(tables)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def run_identity(config: Config) -> dict[str, Any]:
    """The settings that decide what a run computes, by "section.key", as JSON values.

    Left out are those that say where and how it is executed (devices, micro-batches, folders of output, logging,
    checkpoints), which may change between a run and its resumption.
    """
    return {
        f"{section}.{key}": list(value) if isinstance(value, tuple) else value
        for section, table in to_tables(config).items()
        for key, value in table.items()
        if fields_of(SECTIONS[section])[key].affects_result
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two identities differ, a line each: "optimizer.beta1: was 0.9, is 0.95"."""
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name}: was {_side(before, name)}, is {_side(now, name)}"
        for name in names
        if _side(before, name) != _side(now, name)
    ]


def find_field(name: str) -> tuple[str, str, Field]:
    """Section, key and schema of the setting called "section.key"; `UserError` naming the nearest if there is none."""
    section, _, key = name.partition(".")
    if section in SECTIONS and key in fields_of(SECTIONS[section]):
        return section, key, fields_of(SECTIONS[section])[key]
    alike = [other for other in setting_names() if other.partition(".")[2] == name]  # of a name without its section
    meant = " or ".join(map(repr, alike or [nearest_setting(name)]))
    raise UserError(f"there is no setting {shown(name)}; did you mean {meant}?")


def setting_names() -> list[str]:
    """All settings as "section.key"."""
    return [f"{section}.{key}" for section, kind in SECTIONS.items() for key in fields_of(kind)]


def nearest_setting(name: str) -> str:
    """The valid "section.key" most like `name`: the same key elsewhere first, then the same section, then any."""
    name = name[:_LONGEST_NAME]
    section, _, key = name.rpartition(".")
    same_key = [other for other in setting_names() if other.partition(".")[2] == key]
    same_section = [other for other in setting_names() if other.partition(".")[0] == section]
    near_key = [other for other in same_section if _likeness(other.partition(".")[2], key) >= 0.6]
    pool = same_key or near_key or setting_names()
    return max(pool, key=lambda other: max(_likeness(other, name), _likeness(other.partition(".")[2], key)))


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one[:_LONGEST_NAME], other[:_LONGEST_NAME]).ratio()


def _read(path: Path, seen: tuple[Path, ...]) -> Tables:
    """Tables of a file on top of those it inherits, each checked under the name of the file it stands in."""
    if path.resolve() in seen:
        raise UserError(f"{path}: inherits from itself ({' -> '.join(file.name for file in (*seen, path))})")
    if len(seen) > _MOST_PARENTS:
        raise UserError(f"{path}: more than {_MOST_PARENTS} files that inherit from each other; put them together")
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise UserError(f"{path}: larger than {_LARGEST_FILE} bytes, so no configuration")
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so no TOML configuration") from None
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror})") from None
    raw = _parsed(text, str(path))
    parent = raw.pop(INHERIT, None)
    tables = _checked(raw, str(path))
    if parent is None:
        return tables
    if not isinstance(parent, str) or not _is_file(path.parent / parent):
        raise UserError(f"{path}: inherit = {shown(parent)}: must be the path of a TOML file, relative to this one")
    merged = _read(path.parent / parent, (*seen, path.resolve()))
    for section, table in tables.items():
        merged.setdefault(section, {}).update(table)
    return merged


def _parsed(text: str, where: str) -> dict[str, Any]:
    chain = _CHAIN.search(text)
    if chain:
        line = text.count("\n", 0, chain.start()) + 1
        raise UserError(f"{where}: line {line} has a chain of dotted keys; settings are key = value under [section]")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UserError(f"{where}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # besides TOMLDecodeError, numbers of thousands of digits and dates that are none
        raise UserError(f"{where}: not valid TOML: {one_line(error)}") from None


def _checked(raw: Mapping[str, Any], where: str) -> Tables:
    """The tables of one file with every name, type and bound checked."""
    tables: Tables = {}
    for section, table in raw.items():
        if section not in SECTIONS:
            raise UserError(f"{where}: {_unknown_section(section, table)}")
        if not isinstance(table, dict):
            raise UserError(f"{where}: {one_line(section, 80)} = {shown(table)}: must be a section, [{section}]")
        tables[section] = {}
        for key, value in table.items():
            try:
                tables[section][key] = find_field(f"{section}.{key}")[2].checked(value, f"{section}.{key}")
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
    return tables


def _unknown_section(name: str, value: Any) -> str:
    if not isinstance(value, dict):
        return f"there is no setting {shown(name)} outside a section; did you mean {nearest_setting(name)!r}?"
    near = max([*SECTIONS], key=lambda other: _likeness(other, name))
    return f"there is no section [{one_line(name, 80)}]; did you mean [{near}]?"


def _build(tables: Tables) -> Config:
    made = {section: SECTIONS[section](**table) for section, table in tables.items()}
    return dataclasses.replace(Config(), **made)  # type: ignore[arg-type]


def _side(values: Mapping[str, Any], name: str) -> str:
    return shown(values[name]) if name in values else "not set"


def _toml(value: Any) -> str:
    """A value as TOML: JSON but for one character, which only JSON leaves as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
