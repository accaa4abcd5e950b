"""The inputs that the finished runs of a study would read now, to compare with their records."""

from __future__ import annotations

from collections.abc import Callable

from distil_jax.config import Config
from distil_jax.errors import UserError
from distil_jax.evaluation.study_plan import PlannedRun
from distil_jax.hf import read_task_model
from distil_jax.runs import INPUTS_FILE, fingerprint, read_inputs
from distil_jax.tasks import TaskData

TASK, INITIAL, TEACHER = "task", "model.initial", "teacher.path"


class CurrentInputs:
    """The inputs of the runs of one task as they are now, each read once.

    An input that cannot be read (moved or deleted) leaves a finished run finished; this is noted once.
    """

    def __init__(self, data_of: Callable[[int], TaskData], note: Callable[[str], None]) -> None:
        self._data_of = data_of
        self._note = note
        self._noted: set[str] = set()
        self._models: dict[tuple[str, int | None], str] = {}

    def of(self, run: PlannedRun) -> dict[str, str]:
        """Name -> sha256, as in the run's own record, of its readable inputs.

        Raises:
            UserError: the record is damaged.
        """
        recorded = read_inputs(run.folder) if (run.folder / INPUTS_FILE).is_file() else {}
        found: dict[str, str] = {}
        try:
            if recorded:
                data = self._data_of(run.seed)
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
        section, _, field = name.partition(".")
        source, seed = getattr(getattr(config, section), field), config.run.seed
        for key in ((source, None), (source, seed)):
            if key in self._models:
                return self._models[key]
        model = read_task_model(
            source, data.spec.kind.head, labels=data.labels, problem=data.spec.kind.problem, seed=seed
        )
        return self._models.setdefault((source, seed if model.is_new_head else None), fingerprint(model.params))
