"""Arguments of `distil-jax predict`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal


@dataclasses.dataclass(frozen=True)
class PredictArguments:
    """Predict texts, or the rows of a file, with a fine-tuned model; results are JSON, one object a line."""

    model: Annotated[str, "folder of a fine-tuning run, model folder or hub id"]
    text: tuple[str, ...] = ()
    """texts (tagging: words between blanks; choice: what comes before the endings)"""
    pair: tuple[str, ...] = ()
    """second texts, as many as texts (choice: what every ending starts with)"""
    question: str = ""
    """question about --context"""
    context: str = ""
    """text that the answer is looked for in"""
    endings: tuple[str, ...] = ()
    """what may follow --text"""
    input: str = ""
    """.txt (a text a line), .jsonl, .csv, .tsv or .parquet file, CoNLL columns for tags, SQuAD's .json for questions;
    -: lines or JSON lines of standard input"""
    output: str = "-"
    """file to write, replaced if it is there; -: standard output"""
    text_column: str = ""
    """column of texts, questions or words; empty: as in fine-tuning, or the usual names"""
    pair_column: str = ""
    """column of second texts, contexts or starts of endings; empty: as in fine-tuning, or the usual names"""
    endings_columns: tuple[str, ...] = ()
    """columns of the endings, or the one that holds a list of them; empty: as in fine-tuning, or endings"""
    batch_size: int = 0
    """rows computed at once; 0: chosen by the kind of device and the length of the rows"""
    max_length: int = 0
    """tokens a row may have; 0: as in fine-tuning, for a model from elsewhere as many as it takes up to 512"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type that is computed in"""
    threshold: float = 0.5
    """probability from which a label is given where several may hold"""
    n_best: int = 0
    """answers to a question that are listed; 0: only the best"""
    no_answer: bool = False
    """a question may have no answer (always so for models that were fine-tuned on such ones)"""
    null_threshold: float | None = None
    """no answer is given where its score beats the best answer's by more than this; None: as in fine-tuning, else 0"""
    on_error: Literal["stop", "skip"] = "stop"
    """what to do with a row that cannot be used; skip counts them"""
    step: int = -1
    """which checkpoint of a run; -1: its best or newest, as for export"""
