"""What surrounds a run: folder, lock, manifest, metrics log, progress, preemption, watchdog, coordination, start-up.

Names are imported on first use: `distil-jax resume` reads a run's folder before JAX may be imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.runs.coordination import all_agree, broadcast, first_process_in, is_distributed, read_all
    from distil_jax.runs.files import (
        json_sha256,
        replacing,
        require_writable,
        unfinished,
        write_atomically,
    )
    from distil_jax.runs.folder import (
        CONFIG_FILE,
        INPUTS_FILE,
        INPUTS_FOLDER,
        STUDY_FILE,
        check_run_folder,
        fingerprint,
        open_run_folder,
        read_config,
        read_inputs,
    )
    from distil_jax.runs.lock import check_owner, lock_folder
    from distil_jax.runs.log_filters import filter_storage_logs, quiet_event_loops
    from distil_jax.runs.manifest import (
        MANIFEST_FILE,
        OPENING_FILE,
        config_sha256,
        processor_name,
        read_starts,
        record_start,
        versions,
    )
    from distil_jax.runs.metrics_log import EVALUATION, METRICS_FILE, MetricsWriter, read_evaluations, read_metrics
    from distil_jax.runs.model_file import (
        MODEL_FILE,
        TOKENIZER_FOLDER,
        keep_model_file,
        model_sha256,
        read_model_file,
        tokenizer_flaws,
    )
    from distil_jax.runs.preemption import NOTHING_NEW
    from distil_jax.runs.progress import Progress, announce, prepare_display
    from distil_jax.runs.save_clock import SaveClock, is_due
    from distil_jax.runs.watchdog import Watchdog
else:
    __getattr__ = lazy_imports(__name__)
