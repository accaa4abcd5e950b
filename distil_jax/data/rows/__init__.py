"""Rows of any file, pipe or dataset: one reader for corpora, tasks and predictions, and one writer.

A row has a place (file and line), a number and values by column. `open_rows` streams rows, `read_table` is a list of
the stream. Nothing here needs JAX; Arrow and `datasets` are imported where they are used.
"""

from distil_jax.data.rows.arriving import Arriving
from distil_jax.data.rows.conll import CONLLU_COLUMNS, TAGS, WORDS
from distil_jax.data.rows.datasets import Dataset, HubId, is_saved, open_hub, open_objects, open_source, open_tensorflow
from distil_jax.data.rows.files import Compression, RawFile, compression_of, open_chunks, suffix_of
from distil_jax.data.rows.json_rows import parse_json
from distil_jax.data.rows.lines import LINE_LIMIT, batches_of_lines, is_utf8
from distil_jax.data.rows.options import FORMATS, Format, ReadOptions
from distil_jax.data.rows.read import ENDINGS, open_rows, read_table, recognised_format
from distil_jax.data.rows.separated import FIELD_LIMIT
from distil_jax.data.rows.table import PLAIN, BadRowError, Faults, Row, RowStream, Table, place_of, repeated, some
from distil_jax.data.rows.write import RowWriter, json_line, with_predictions, writable_format, write_rows
