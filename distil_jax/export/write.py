"""`distil-jax export`: a model folder with files of several formats, each of which is run before the folder is kept."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distil_jax.config import TaskSettings
from distil_jax.errors import FaultError, UserError
from distil_jax.export.agreement import Agreement, compare_file
from distil_jax.export.calibrate import layers_to_keep
from distil_jax.export.check_rows import CheckRows, check_rows
from distil_jax.export.embedder import choose_pooling
from distil_jax.export.formats import FORMATS, ExportFormat, Network, WriteOptions
from distil_jax.export.jax_network import network_of
from distil_jax.export.source import Source, read_source
from distil_jax.hf import refused_by_transformers, require_free, save_pretrained
from distil_jax.tables import markdown

REPORT_FILE = "export.json"
_PLAIN = "hf"


@dataclasses.dataclass(frozen=True)
class ExportChecks:
    """How files are checked.

    Attributes:
        file: rows as `check_rows` takes them; "": the validation set of a task, or built-in sentences.
        task: whose validation set is used; None: the one of the run.
        rows: examples at most; 0: all.
        max_drop: points of 100 that a quantised file may lose, of what `Agreement.measure` says.
        force: keep a file that loses more.
        calibrate: leave the layers that lose most in float32, until no more is lost.
    """

    file: str
    task: TaskSettings | None
    rows: int
    max_drop: float
    force: bool
    calibrate: bool


@dataclasses.dataclass(frozen=True)
class FileReport:
    """A file that was written.

    Attributes:
        format: its name.
        file: in the folder.
        megabytes: of the file; of a folder, of all files in it.
        runtime: what ran it; "": nothing, it was not run.
        agreement: with the model; None: it was not compared.
        keep_float: layers that stayed float32.
    """

    format: str
    file: str
    megabytes: float
    runtime: str = ""
    agreement: Agreement | None = None
    keep_float: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Exported:
    """The model that was written, and its files."""

    source: Source
    files: tuple[FileReport, ...]

    @property
    def table(self) -> str:
        """The files in Markdown."""
        return files_table(self.files)


def export(
    model: str | Path,
    output: Path,
    *,
    formats: Sequence[str] = (_PLAIN,),
    step: int | None = None,
    pooling: str = "auto",
    normalize: bool | None = None,
    overwrite: bool = False,
    name: str = "",
    options: WriteOptions | None = None,
    checks: ExportChecks | None = None,
    show: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a model in formats: see `write_model`.

    Args:
        model: folder of a run, model folder or hub id.
        output: the folder; made whole or not at all.
        formats: names in `FORMATS`.
        step: which checkpoint of a run; None is its result, as in `read_run`.
        pooling: as `choose_pooling` takes it.
        normalize: as `choose_pooling` takes it.
        overwrite: replace an existing model.
        name: what the card of a run's model calls it; empty: as the output is called.
        options: as `write_model` takes it.
        checks: as `write_model` takes it.
        show: takes a line of progress.

    Raises:
        UserError: there is no such format, its package is missing, or as `read_source` and `write_model`.
        FaultError: as `write_model`.
    """
    chosen = [_format(one) for one in dict.fromkeys(formats)]
    require_free(output, overwrite)
    source = read_source(model, step, name or output.name)
    own = choose_pooling(source.pooling, pooling, normalize)
    if own is not None and source.head is not None:
        raise UserError(f"--pooling {pooling}: {model} has a task head, so it makes no vectors of texts; leave it out")
    source = dataclasses.replace(source, pooling=own)
    return write_model(source, output, chosen, overwrite=overwrite, options=options, checks=checks, show=show)


def write_model(
    source: Source,
    output: Path,
    formats: Sequence[ExportFormat] = (FORMATS[_PLAIN],),
    *,
    overwrite: bool = False,
    options: WriteOptions | None = None,
    checks: ExportChecks | None = None,
    show: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a model in formats, with configuration, tokenizer, model card and a report of the files.

    Every file but float32 weights of Hugging Face, which are what was read, is run by its own runtime and compared with
    the model before the folder is renamed to its place.

    Args:
        source: the model.
        output: the folder; made whole or not at all.
        formats: of the files.
        overwrite: replace an existing model.
        options: of the formats.
        checks: how files are checked; None: on the task's validation set or built-in sentences, and kept in any case.
        show: takes a line of progress.

    Raises:
        UserError: a format cannot hold the model, or a quantised file loses more than it may.
        FaultError: a float32 file computes something else than the model.
    """
    options = options or WriteOptions()
    checks = checks or ExportChecks("", None, 0, 100.0, True, False)
    checked = [
        one for one in formats if one.open is not None and not (one.name == _PLAIN and options.dtype == "float32")
    ]
    against = None
    if checked:
        rows = check_rows(source, checks.file, checks.task, checks.rows)
        against = network_of(source.encoder, source.params, source.head), rows
    reports: list[FileReport] = []
    if refused := refused_by_transformers(source.encoder):
        show(f"hf: {refused}; distil_jax reads it, and the other formats hold the whole model")

    def finish(folder: Path) -> None:
        reports.extend(
            _written(one, folder, source, options, against if one in checked else None, checks, show) for one in formats
        )
        if [one.name for one in formats] != [_PLAIN] or checked:
            contents = [_as_json(report) for report in reports]
            (folder / REPORT_FILE).write_text(json.dumps({"files": contents}, indent=2) + "\n", encoding="utf-8")
            card = folder / "README.md"
            text = f"{card.read_text(encoding='utf-8').rstrip()}\n\n## Files\n\n{files_table(reports)}\n"
            card.write_text(text, encoding="utf-8")

    save_pretrained(
        output,
        source.encoder,
        source.params,
        head=source.head,
        tokenizer=source.tokenizer,
        pooling=source.pooling,
        readme=source.readme,
        extra={**source.extra, "dtype": options.dtype},
        files=source.pictures,
        overwrite=overwrite,
        finish=finish,
    )
    return Exported(source, tuple(reports))


def _format(name: str) -> ExportFormat:
    if name not in FORMATS:
        raise UserError(f"--format {name}: no such format; choose from {', '.join(FORMATS)}")
    FORMATS[name].require_installed()
    return FORMATS[name]


def _written(
    format: ExportFormat,
    folder: Path,
    source: Source,
    options: WriteOptions,
    against: tuple[Network, CheckRows] | None,
    checks: ExportChecks,
    show: Callable[[str], None],
) -> FileReport:
    """Write a file and compare it with the model on rows; None: it is not compared."""
    started, path = time.monotonic(), folder / format.file
    path.parent.mkdir(exist_ok=True)
    if checks.calibrate and format.weights is not None and against is not None:
        kept = layers_to_keep(format, source, path, *against, checks.max_drop, show)
        options = dataclasses.replace(options, keep_float=kept)
    show(f"{format.name}: writing")
    format.write(source, path, options)
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    report = FileReport(
        format.name,
        format.file,
        round(sum(one.stat().st_size for one in files) / 1e6, 2),
        keep_float=tuple(sorted(options.keep_float)) if format.weights is not None else (),
    )
    if against is None:
        return report
    model, rows = against
    show(f"{format.name}: checking on {rows.about}")
    found = compare_file(format, path, source, model, rows)
    _judge(format, found, checks, rows.enough)
    show(f"{format.name}: written and checked in {time.monotonic() - started:.1f} s")
    return dataclasses.replace(report, runtime=format.runtime, agreement=found)


def _judge(format: ExportFormat, found: Agreement, checks: ExportChecks, enough: bool) -> None:
    """Raise where a file may not be kept; of `enough` rows, one that loses more than it may."""
    exact = format.exact and format.name != _PLAIN
    if exact and not found.is_exact:
        raise FaultError(
            f"{format.name}: outputs differ by {found.largest_difference:.2g} from the model's, of up to "
            f"{found.largest_output:.3g}; nothing is written; report it"
        )
    if not exact and enough and found.points_lost > checks.max_drop and not checks.force:
        kept = "" if format.weights is None or checks.calibrate else ", or keep layers in float32 with --calibrate"
        raise UserError(
            f"{format.name}: loses {found.points_lost:.2f} points of {found.measure} on {found.about}, more than "
            f"--max-drop {checks.max_drop:g}; nothing is written; write it all the same with --force{kept}"
        )


def _as_json(report: FileReport) -> dict[str, Any]:
    fields = dataclasses.asdict(report)
    agreement = fields.pop("agreement") or {}
    return {**fields, **agreement}


def files_table(files: Sequence[FileReport]) -> str:
    """Files, sizes and how they agree with the model, in Markdown."""
    rows = []
    for one in files:
        found, what = one.agreement, FORMATS[one.format].title
        if found is None:
            state = "as trained" if one.format == _PLAIN else f"not run here: needs {FORMATS[one.format].runtime}"
            rows.append([f"`{one.file}`", what, f"{one.megabytes:,.1f}", "", "", "", state])
            continue
        same = "" if found.equal_decisions is None else f"{100 * found.equal_decisions:.2f} %"
        same = same if found.cosine is None else f"cosine {found.cosine:.5f}"
        same = same if found.rank is None else f"{same}{', ' if same else ''}ranks {found.rank:.4f}"
        score = "" if found.before is None else f"{100 * found.before:.2f} → {100 * (found.after or 0):.2f}"
        about = f"{one.runtime} on {found.about}"
        about += f"; {len(one.keep_float)} layers in float32" if one.keep_float else ""
        rows.append(
            [f"`{one.file}`", what, f"{one.megabytes:,.1f}", f"{found.largest_difference:.2g}", same, score, about]
        )
    return markdown(
        ["file", "format", "MB", "largest difference", "same decisions", "score before → after", "run by"], rows
    )
