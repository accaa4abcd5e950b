"""Rows of any file, pipe or dataset: one reader for corpora, tasks and predictions.

A row has a place (file and line), a number and values by column. Nothing here needs JAX, and Arrow and `datasets` are
imported where they are used.
"""

from distil_jax.data.rows.files import CHUNK, Compression, RawFile, chunks_of, compression_of, unfolds_too_far
from distil_jax.data.rows.table import BadRowError, Faults, Row, Table, place_of, repeated, some

__all__ = [
    "CHUNK",
    "BadRowError",
    "Compression",
    "Faults",
    "RawFile",
    "Row",
    "Table",
    "chunks_of",
    "compression_of",
    "place_of",
    "repeated",
    "some",
    "unfolds_too_far",
]
