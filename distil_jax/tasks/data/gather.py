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
from distil_jax.tasks.data.official import OFFICIAL, PLAIN_SPLITS, Columns, Official, Role, SplitPlace
from distil_jax.tasks.examples import TaskSpec

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
    official = OFFICIAL.get(spec.name)
    given: dict[Role, str] = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    files: dict[Role, Any] = {role: Path(path).expanduser() for role, path in given.items() if path}
    files |= rows or {}
    if not settings.source and not files and official is None:
        raise UserError(
            f"task.train is not set: {spec.name} needs a file to learn from; set task.train (or task.source)"
        )
    reader = _Reader(settings, spec, official)
    parts = [reader.file(role, role, path) for role, path in files.items()]
    roles: list[Role] = [role for role in ROLES if role not in files]
    if roles and (settings.source or not files):
        parts += reader.source(roles)
    return sorted(parts, key=lambda part: ROLES.index(part.role))


def own_columns(settings: TaskSettings, kind: str) -> Columns:
    """The columns of own data, as the settings call them; what they leave at its default has its usual name."""
    defaults = TaskSettings()
    plain_text, plain_label = settings.text == defaults.text, settings.label == defaults.label
    ids, pair = (settings.id,) if settings.id else (), (settings.pair,) if settings.pair else ()
    label = settings.label or defaults.label
    if kind == "token":
        words = ("words", "tokens") if plain_text else (settings.text,)
        return Columns(words, (), ("tags", "ner_tags", "label") if plain_label else label, ids)
    if kind == "question":
        question = ("question",) if plain_text else (settings.text,)
        answers = ("answers",) if plain_label else label
        return Columns(question, pair or ("context",), answers, ids or ("id",))
    if kind == "choice":
        return Columns((settings.text,), pair, label, ids, (settings.endings or ("endings",),))
    several = label if len(label) > 1 else settings.labels
    return Columns((settings.text,), pair, label if len(label) == 1 else (), ids, indicators=several)


@dataclasses.dataclass(frozen=True)
class _Reader:
    settings: TaskSettings
    spec: TaskSpec
    official: Official | None

    @property
    def columns(self) -> Columns:
        return self.official.columns if self.official else own_columns(self.settings, self.spec.kind.head)

    def file(self, role: Role, name: str, path: Any) -> Part:
        """The rows of one file, or of an object in memory."""
        if isinstance(path, Path) and path.is_dir():
            raise UserError(f"{path}: is a folder; name the file itself, or give the folder with task.source")
        faults = Faults(self.settings.on_error == "skip")
        table = read_table(path, self._options(), faults)
        if table.columns_taken:
            columns = Columns((WORDS,), label=(TAGS,))
        elif not table.unit:  # SQuAD's JSON, whose names are fixed
            columns = Columns(("question",), ("context",), ("answers",), ("id",))
        else:
            columns = self.columns
        return Part(role, name, table, columns, faults)

    def _options(self) -> ReadOptions:
        settings, columns, defaults = self.settings, self.columns, TaskSettings()
        return ReadOptions(
            separator=settings.separator,
            wanted=columns.text,
            keep=columns.names(),
            positions=columns.positions,
            flawed=bool(self.official and self.official.flawed),
            tagged=self.spec.kind.tagged,
            labelled=True,
            words=settings.text if settings.text != defaults.text else "",
            tags=settings.label[0] if settings.label not in ((), defaults.label) else "",
        )

    def source(self, roles: Collection[Role]) -> list[Part]:
        """Reads what `task.source` names, sets of these roles; only a test set may be missing there."""
        needed = set(roles) != {"test"}
        text = self.settings.source
        places = [place for place in (self.official.splits if self.official else OWN_SPLITS) if place.role in roles]
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
        usual = self.official.hub if self.official else ()
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
                table, faults = dataset.read(split, columns.names()).table(), Faults(self.settings.on_error == "skip")
                parts.append(Part(place.role, place.name, table, columns, faults))
        if not parts and needed:
            raise UserError(f"{dataset.name}: no split that {self.spec.name} needs (found: {some(dataset.splits)})")
        return parts

    # Folders

    def _folder(self, root: Path, places: list[SplitPlace], needed: bool) -> list[Part]:
        names = self.official.folders if self.official else ()
        self._check_folder(root, names)
        folders = [root / name for name in names]
        for folder in [*(path for path in folders if path.is_dir()), root]:
            if self.spec.name == "imdb" and (parts := self._reviews(folder, places)):
                return parts
            found = [(place, path) for place in places if (path := self._file_of(folder, place))]
            if found:
                return [self.file(place.role, place.name, path) for place, path in found]
        if not needed:
            return []
        names = [name for place in places for name in (place.files if self.official else OWN_STEMS[place.role])]
        raise UserError(f"{root}: holds no data of {self.spec.name} (looked for {some(names, 8)}); check the folder")

    def _check_folder(self, root: Path, names: tuple[str, ...]) -> None:
        """Raises UserError for the folder of another task: some have files of the same names and columns."""
        if not self.official or root.name in names:
            return
        other = next((name for name, official in OFFICIAL.items() if root.name in official.folders), "")
        if other:
            raise UserError(f"task.source = {str(root)!r} is the folder of {other}, not of {self.spec.name}")

    def _file_of(self, folder: Path, place: SplitPlace) -> Path | None:
        if self.official:
            return next((folder / name for name in place.files if (folder / name).is_file()), None)
        found = [p for p in sorted(folder.iterdir()) if p.name.partition(".")[0] in OWN_STEMS[place.role]]
        found = [p for p in found if p.is_file() and suffix_of(p) in ENDINGS]
        if len(found) > 1:
            raise UserError(
                f"{folder}: {found[0].name} and {found[1].name} could both be meant; name the files in [task]"
            )
        return found[0] if found else None

    def _reviews(self, folder: Path, places: Iterable[SplitPlace]) -> list[Part]:
        """IMDb as published: a file a review, in train/neg, train/pos, test/neg and test/pos."""
        parts = []
        for place in places:
            if not all((folder / place.role / label).is_dir() for label in self.spec.labels):
                continue
            table = Table(str(folder / place.role), ["id", "text", "label"], [], unit="")
            faults = Faults(self.settings.on_error == "skip")
            for label in self.spec.labels:
                for path in sorted((folder / place.role / label).glob("*.txt"), key=_review_number):
                    name = f"{label}/{path.stem}"
                    text = "\n".join(row.values[PLAIN] for row in open_rows(path, ReadOptions(format="text"), faults))
                    table.rows.append(
                        Row(f"{label}/{path.name}", len(table.rows), {"id": name, "text": text, "label": label})
                    )
            parts.append(Part(place.role, place.name, table, self.columns, faults))
        return parts


def _review_number(path: Path) -> tuple[int, str]:
    number = path.stem.partition("_")[0]
    return int(number) if number.isdecimal() else -1, path.stem
