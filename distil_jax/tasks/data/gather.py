"""Finds the data of a task, in files, folders of the published form, and datasets, and reads its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.config import TaskSettings
from distil_jax.data.rows import (
    ENDINGS,
    PLAIN,
    TAGS,
    WORDS,
    Dataset,
    Faults,
    HubId,
    ReadOptions,
    Row,
    Table,
    is_saved,
    open_hub,
    open_rows,
    open_tensorflow,
    read_table,
    some,
    suffix_of,
)
from distil_jax.errors import UserError
from distil_jax.tasks.data.columns import PLAIN_SPLITS, Columns, Role, SplitPlace
from distil_jax.tasks.examples import TaskSpec
from distil_jax.tasks.kinds import TaskKind
from distil_jax.tasks.registry import TASKS

ROLES: tuple[Role, ...] = ("train", "validation", "test")
OWN_STEMS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
OWN_SPLITS = tuple(dataclasses.replace(place, dataset_names=OWN_STEMS[place.role]) for place in PLAIN_SPLITS)


@dataclasses.dataclass(frozen=True)
class Part:
    """One set of rows: what it is for, its name among those ("matched"), its rows, columns, and what was left out."""

    role: Role
    name: str
    table: Table
    columns: Columns
    faults: Faults


def gather(settings: TaskSettings, spec: TaskSpec, rows: Mapping[Role, Any] | None = None) -> list[Part]:
    """All sets of a task, read but not yet checked row by row.

    A file given for train, validation or test stands for all such sets of the source. Without a source, the task's
    dataset is taken where no file is given either.

    Args:
        settings: files, source and columns.
        spec: the task.
        rows: rows in memory by role, instead of files: what `data.rows.read_table` takes.

    Raises:
        UserError: nothing is given, or found, or it cannot be read.
    """
    given: dict[Role, str] = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    files: dict[Role, Any] = {role: Path(path).expanduser() for role, path in given.items() if path}
    files |= rows or {}
    if not settings.source and not files and not spec.published:
        if settings.unlabelled:
            return []
        raise UserError(f"task.train is not set: {spec.name} needs a file to learn from; set it, or task.source")
    reader = _Reader(settings, spec)
    parts = [reader.file(role, role, path) for role, path in files.items()]
    roles: list[Role] = [role for role in ROLES if role not in files]
    if roles and (settings.source or not files):
        parts += reader.source(roles)
    return sorted(parts, key=lambda part: ROLES.index(part.role))


def own_columns(settings: TaskSettings, kind: TaskKind[Any]) -> Columns:
    """The columns of own data, as the settings call them; what they leave at its default has the kind's usual name."""
    usual, defaults = kind.columns, TaskSettings()
    plain_text = settings.text == defaults.text and settings.text != usual.text[0]
    label = usual.label if settings.label in ((), defaults.label) else settings.label
    several = settings.label if len(settings.label) > 1 else settings.labels
    return Columns(
        text=usual.text if plain_text else (settings.text,),
        pair=(settings.pair,) if settings.pair else () if kind.optional_pair else usual.pair,
        label=() if label == settings.label and len(label) > 1 else label,
        id=(settings.id,) if settings.id else usual.id if kind.unique_ids else (),
        endings=(settings.endings,) if settings.endings and usual.endings else usual.endings,
        indicators=several if kind.several_labels else (),
        soft=settings.soft_labels,
    )


@dataclasses.dataclass(frozen=True)
class _Reader:
    settings: TaskSettings
    spec: TaskSpec

    @property
    def columns(self) -> Columns:
        published = self.spec.published
        return published.columns if published else own_columns(self.settings, self.spec.kind)

    def file(self, role: Role, name: str, path: Any) -> Part:
        """The rows of one file, or of an object in memory."""
        if isinstance(path, Path) and path.is_dir():
            raise UserError(f"{path}: is a folder; name the file itself, or give the folder with task.source")
        faults = self._faults()
        if not isinstance(path, str | Path):
            faults.remedy = 'task={"on_error": "skip"}'  # as Python's callers say it, whose rows are in memory
        table = read_table(path, self._options(), faults)
        if table.columns_taken:
            columns = Columns((WORDS,), label=(TAGS,))
        elif not table.unit:  # SQuAD's JSON, whose names are fixed
            columns = Columns(("question",), ("context",), ("answers",), ("id",))
        else:
            columns = self.columns
        return Part(role, name, table, columns, faults)

    def _faults(self) -> Faults:
        return Faults(self.settings.on_error == "skip", gather=True)

    def _options(self) -> ReadOptions:
        settings, columns, defaults = self.settings, self.columns, TaskSettings()
        return ReadOptions(
            separator=settings.separator,
            wanted=columns.text,
            keep=columns.names(),
            positions=columns.positions,
            flawed=self.spec.published is not None and self.spec.published.flawed,
            tagged=self.spec.kind.tagged,
            labelled=True,
            words=settings.text if settings.text != defaults.text else "",
            tags=settings.label[0] if settings.label not in ((), defaults.label) else "",
        )

    def source(self, roles: Collection[Role]) -> list[Part]:
        """Reads what `task.source` names, sets of these roles; only a test set may be missing there."""
        needed = set(roles) != {"test"}
        text = self.settings.source
        splits = self.spec.published.splits if self.spec.published else OWN_SPLITS
        places = [place for place in splits if place.role in roles]
        path = Path(text).expanduser()
        if text.startswith("tfds:"):
            return self._dataset(open_tensorflow(text), places, needed)
        if text and not text.startswith("hf:"):
            if is_saved(path):
                return self._dataset(open_hub([HubId(str(path))]), places, needed)
            if path.is_dir():
                return self._folder(path, places, needed)
            if path.is_file():
                raise UserError(f"task.source = {text!r} is a file; give files with task.train, validation and test")
            if text.startswith((".", "/", "~")) or text.count("/") > 1:
                raise UserError(f"task.source: no folder {text}; check the path")
        return self._dataset(open_hub(self._hub_ids(text.removeprefix("hf:"))), places, needed)

    def _hub_ids(self, text: str) -> list[HubId]:
        usual = self.spec.published.hub if self.spec.published else ()
        if not text:
            return [*usual]
        name, _, config = text.partition(":")
        if config or not usual or not usual[0].config:
            return [HubId(name, config)]
        return [HubId(name, usual[0].config), HubId(name)]

    def _dataset(self, dataset: Dataset, places: Sequence[SplitPlace], needed: bool) -> list[Part]:
        parts, columns = [], self.columns
        for place in places:
            split = next((name for name in place.dataset_names if name in dataset.splits), None)
            if split is not None:
                table = dataset.read(split, columns.names()).table()
                parts.append(Part(place.role, place.name, table, columns, self._faults()))
        if not parts and needed:
            raise UserError(f"{dataset.name}: no split that {self.spec.name} needs (found: {some(dataset.splits)})")
        return parts

    # Folders

    def _folder(self, root: Path, places: list[SplitPlace], needed: bool) -> list[Part]:
        published = self.spec.published
        names = published.folders if published else ()
        if published and root.name not in names:
            # Raises for the folder of another task: some have files of the same names and columns.
            for other in TASKS.values():
                if other.published and root.name in other.published.folders:
                    raise UserError(
                        f"task.source = {str(root)!r} is the folder of {other.name}, not of {self.spec.name}"
                    )
        folders = [root / name for name in names]
        for folder in [*(path for path in folders if path.is_dir()), root]:
            if published and published.text_files and (parts := self._text_files(folder, places)):
                return parts
            found = [(place, path) for place in places if (path := self._file_of(folder, place))]
            if found:
                return [self.file(place.role, place.name, path) for place, path in found]
        if not needed:
            return []
        names = [name for place in places for name in (place.files if published else OWN_STEMS[place.role])]
        raise UserError(f"{root}: holds no data of {self.spec.name} (looked for {some(names, 8)}); check the folder")

    def _file_of(self, folder: Path, place: SplitPlace) -> Path | None:
        if self.spec.published:
            return next((folder / name for name in place.files if (folder / name).is_file()), None)
        found = [p for p in sorted(folder.iterdir()) if p.name.partition(".")[0] in OWN_STEMS[place.role]]
        found = [p for p in found if p.is_file() and suffix_of(p) in ENDINGS]
        if len(found) > 1:
            raise UserError(f"{folder}: {found[0].name} and {found[1].name} both fit; name the files in [task]")
        return found[0] if found else None

    def _text_files(self, folder: Path, places: Iterable[SplitPlace]) -> list[Part]:
        """A file a text, in a folder a class: train/neg, train/pos, test/neg and test/pos of IMDb."""
        parts = []
        for place in places:
            if not all((folder / place.role / label).is_dir() for label in self.spec.labels):
                continue
            table = Table(str(folder / place.role), unit="", columns=["id", "text", "label"])
            faults = self._faults()
            for label in self.spec.labels:
                for path in sorted((folder / place.role / label).glob("*.txt"), key=_leading_number):
                    name = f"{label}/{path.stem}"
                    text = "\n".join(row.values[PLAIN] for row in open_rows(path, ReadOptions(format="text"), faults))
                    table.rows.append(
                        Row(f"{label}/{path.name}", len(table.rows), {"id": name, "text": text, "label": label})
                    )
            parts.append(Part(place.role, place.name, table, self.columns, faults))
        return parts


def _leading_number(path: Path) -> tuple[int, str]:
    number = path.stem.partition("_")[0]
    return int(number) if number.isdecimal() else -1, path.stem
