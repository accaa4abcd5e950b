"""Distil BERT-family encoders into small, fast ones with JAX, in and out of Hugging Face format.

`from_pretrained` and `save_pretrained` are the Python interface; the command line is `distil-jax`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distil_jax.hf import from_pretrained, load_tokenizer, save_pretrained

__version__ = "0.1.0"
__all__ = ["__version__", "from_pretrained", "load_tokenizer", "save_pretrained"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `distil-jax --help` does not pay for them.
    if name in __all__:
        import distil_jax.hf

        return getattr(distil_jax.hf, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
