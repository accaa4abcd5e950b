"""Hugging Face model folders in and out, without PyTorch: the only package that knows their names and file formats.

`from_pretrained` reads a folder (or hub id) of a model in `FAMILIES` into a module and float32 parameters,
`save_pretrained` writes a folder that transformers loads without missing or unexpected keys, `load_tokenizer` and
`save_tokenizer` do the same for the vocabulary. Importing this package costs NumPy only; JAX and the rest are imported
when used.
"""

from distil_jax.hf.checkpoint import PretrainedModel
from distil_jax.hf.checksums import CHECKSUMS_FILE, check_files, file_sha256
from distil_jax.hf.config import (
    encoder_config_from_hf,
    encoder_config_to_hf,
    new_encoder_config,
    read_encoder_config,
    refused_by_transformers,
    student_encoder_config,
)
from distil_jax.hf.families import FAMILIES
from distil_jax.hf.fields import read_json
from distil_jax.hf.hub import WEIGHT_FILES, home_resolved, is_in_hub_cache, locate
from distil_jax.hf.known_sizes import known_encoder_config
from distil_jax.hf.labels import has_names, numbered_labels
from distil_jax.hf.lazy_tensor import release_pages
from distil_jax.hf.new_head import add_task_head
from distil_jax.hf.pretrained import from_pretrained, match_head, order_note, read_pretrained, read_task_model
from distil_jax.hf.push import push_folder, require_repository
from distil_jax.hf.read import read_tensors
from distil_jax.hf.sentence_files import read_pooling
from distil_jax.hf.task_head import named_kind, task_head, task_head_from_hf, task_head_to_hf
from distil_jax.hf.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from distil_jax.hf.trimmed_tokenizer import Vocabulary
from distil_jax.hf.write import WEIGHTS_FILE, require_free, save_pretrained, write_weights
