"""Models, texts and settings as a caller has them, as the paths and the configuration that a run reads.

What is in memory is written below `inputs` in the run's folder, so that the run can be continued from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distil_jax.api.result import Result, module_of
from distil_jax.config import Config, load_config, with_overrides
from distil_jax.data.rows import Faults, RowWriter, open_rows
from distil_jax.errors import UserError
from distil_jax.export import read_run
from distil_jax.hf import Tokenizer, home_resolved, save_pretrained
from distil_jax.runs import CONFIG_FILE, INPUTS_FOLDER

# A folder or hub id, (module, params, tokenizer), or what a function of this package returned.
Model = str | Path | tuple[Any, Any, Tokenizer] | Result
_ROWS_AT_ONCE = 1000


def run_folder(folder: str | Path | None) -> Path:
    """The folder of a run: the one given, else a new one for temporary files."""
    return Path(tempfile.mkdtemp(prefix="distil_jax-")) if folder is None else home_resolved(folder)


def make_config(config: str | Path | Config | None, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> Config:
    """A configuration with settings by "section.key" or as {section: {key: value}}.

    Args:
        config: a configuration, a TOML file, or the name of a shipped one; None: the defaults.
        given: the caller's settings.
        fixed: those that follow from other arguments.

    Raises:
        UserError: no such file or setting, a value that cannot be one, or a setting of `fixed` that is given too.
    """
    base = config if isinstance(config, Config) else Config() if config is None else load_config(config)
    flat: dict[str, Any] = {"corpus.workers": 1}  # others would import the caller's script again
    for name, value in given.items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
    if twice := [name for name in flat if name in fixed]:
        raise UserError(f"{twice[0]}: follows from the other arguments; leave it out")
    return with_overrides(base, {**flat, **fixed})


def model_folder(model: Model, place: Path) -> str:
    """The folder or hub id of a model; one in memory, or of a run, is written to `place`.

    Raises:
        UserError: it is no model, or a run without a checkpoint.
    """
    if isinstance(model, str | Path):
        if not (home_resolved(model) / CONFIG_FILE).is_file():
            return str(model)
        trained = read_run(home_resolved(model))
        module, params, tokenizer = *module_of(trained), trained.tokenizer
    elif isinstance(model, Result):
        module, params, tokenizer = model.module, model.params, model.tokenizer
    elif isinstance(model, tuple) and len(model) == 3:
        module, params, tokenizer = model
    else:
        raise UserError(
            f"a model of type {type(model).__name__}; give a folder, a hub id, (module, params, tokenizer) or a result"
        )
    head = getattr(module, "head", None)
    save_pretrained(place, module.config, params, head=head, tokenizer=tokenizer, overwrite=True)
    return str(place)


def text_sources(
    text: Any, folder: Path, split: str, column: str, *, on_error: str = "stop", argument: str = "text"
) -> tuple[str, ...]:
    """Sources of a corpus: files as they are, texts in memory as a file below `folder`.

    Args:
        text: a file, folder, glob or dataset id (a str), a `Path`, or several `Path`s; or texts in memory: a list of
            str, of dicts, a dict of lists, a DataFrame, a `datasets.Dataset`.
        folder: of the run.
        split: "train" or "validation".
        column: of the text in rows.
        on_error: "stop" at a row without a text, or "skip" it.
        argument: what the caller calls the text, for messages.

    Raises:
        UserError: there is no text, or a row has none.
    """
    if isinstance(text, str | Path):
        return (str(text),)
    if isinstance(text, list | tuple) and text and all(isinstance(one, Path) for one in text):
        return tuple(map(str, text))
    place = folder / INPUTS_FOLDER / f"{split}.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    faults = Faults(on_error == "skip", 'corpus={"on_error": "skip"}')
    found = rows_of(text, column)
    if not isinstance(text, Mapping) and not hasattr(text, "column_names") and not hasattr(text, "itertuples"):
        found = _mappings(found, faults, argument)
    writer, rows = RowWriter(place), []
    for number, row in enumerate(open_rows(found, faults=faults), 1):
        value, where = row.values.get(column), f"{argument}, row {row.place}"
        if column not in row.values:
            columns = ", ".join(map(str, row.values)) or "none"
            faults(where, f"no column {column!r} (found: {columns}; corpus={{'text_column': NAME}} names another)")
        elif not isinstance(value, str | None):
            faults(where, f"column {column!r} holds {type(value).__name__}, not text")
        else:
            rows.append({column: value})
        if number % _ROWS_AT_ONCE == 0:
            writer.write(rows)
            rows = []
    writer.write(rows)
    writer.close()
    return (str(place),)


def _mappings(rows: Iterable[Any], faults: Faults, argument: str) -> Iterator[Mapping[str, Any]]:
    """The rows that are mappings; any other is a fault."""
    for number, row in enumerate(rows, 1):
        if isinstance(row, Mapping):
            yield row
        else:
            faults(f"{argument}, row {number}", f"{type(row).__name__}, neither a text nor a dict")


def rows_of(data: Any, column: str = "text") -> Any:
    """Rows that the readers take: those given, a dict of lists row by row, bare texts under the name of a column."""
    if isinstance(data, Mapping):
        for name, values in data.items():
            if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__"):
                raise UserError(f"column {name!r}: is {type(values).__name__}, not a list; put one row into a list")
        lengths = {len(values) for values in data.values()}
        if not lengths:
            raise UserError("rows: no columns; give a dict of lists")
        if len(lengths) != 1:
            raise UserError(f"columns of {' and '.join(map(str, sorted(lengths)))} rows; give as many of each")
        return [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    if hasattr(data, "column_names") or hasattr(data, "itertuples"):
        return data
    if not isinstance(data, Iterable):
        raise UserError(f"rows of type {type(data).__name__}; give a list, a dict of lists, a DataFrame or a Dataset")
    return ({column: row} if isinstance(row, str) else row for row in data)
