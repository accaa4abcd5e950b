"""What the runs of one task of a study read: its data by seed, and hashes to compare with the records of runs."""

from __future__ import annotations

from collections.abc import Callable

from distil_jax.config import Config
from distil_jax.errors import UserError
from distil_jax.evaluation.study_plan import PlannedRun
from distil_jax.hf import read_task_model
from distil_jax.runs import INPUTS_FILE, announce, fingerprint, read_inputs
from distil_jax.tasks import TaskData, load_task
from distil_jax.training.task_models import known_labels

TASK, INITIAL, TEACHER = "task", "model.initial", "teacher.path"


class TaskInputs:
    """The inputs of the runs of one task, each read once, when it is first needed.

    Data are read again for another seed only where they depend on it: reading for a second seed shows whether they do.
    A failed reading is not repeated. An input that cannot be read (moved or deleted) leaves a finished run finished;
    this is noted once.
    """

    def __init__(self, config: Config, note: Callable[[str], None]) -> None:
        self._config = config
        self._note = note
        self._noted: set[str] = set()
        self._data: dict[int, TaskData] = {}
        self._same = False
        self._error: UserError | None = None
        self._models: dict[tuple[str, int | None], str] = {}

    def data(self, seed: int) -> TaskData:
        """The data of a run with that seed. Raises UserError as `load_task`."""
        if self._error is not None:
            raise self._error
        if seed in self._data or self._same:
            return self._data.get(seed) or next(iter(self._data.values()))
        try:
            data = load_task(self._config.task, seed, known_labels(self._config))
            announce([] if self._data else data.report.lines())
        except UserError as error:
            self._error = error
            raise
        self._same = any(other.sha256 == data.sha256 for other in self._data.values())
        self._data = {seed: data}
        return data

    def hashes(self, run: PlannedRun) -> dict[str, str]:
        """Name -> sha256, as in the run's own record, of its inputs as they are now, if they are readable.

        Raises:
            UserError: the record is damaged.
        """
        recorded = read_inputs(run.folder) if (run.folder / INPUTS_FILE).is_file() else {}
        found: dict[str, str] = {}
        try:
            if recorded:
                data = self.data(run.seed)
                found[TASK] = data.sha256
                for name in (INITIAL, TEACHER):
                    if name in recorded:
                        found[name] = self._model(name, run.config, data)
        except UserError as error:
            if str(error) not in self._noted:
                self._noted.add(str(error))
                self._note(f"note: finished runs are not compared with what cannot be read: {error}")
        return found

    def _model(self, name: str, config: Config, data: TaskData) -> str:
        """The fingerprint that `finetune` records. The seed decides the values of a new head."""
        source, seed = {INITIAL: config.model.initial, TEACHER: config.teacher.path}[name], config.run.seed
        for key in ((source, None), (source, seed)):
            if key in self._models:
                return self._models[key]
        kind = data.spec.kind
        model = read_task_model(source, kind.head, labels=data.labels, problem=kind.problem, seed=seed)
        return self._models.setdefault((source, seed if model.is_new_head else None), fingerprint(model.params))
