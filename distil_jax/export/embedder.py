"""Texts as vectors, by the encoder of a sentence-transformers folder, a model folder, a run or a hub id."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.errors import UserError
from distil_jax.export.checkpoint import run_at
from distil_jax.export.row_network import Compute, RowNetwork
from distil_jax.hf import Tokenizer, load_tokenizer, locate, read_pooling, read_pretrained
from distil_jax.models import POOLING_MODES, EncoderConfig, Pooling, SentenceEncoder, pool
from distil_jax.tasks import encoded_texts


class Embedder:
    """An encoder with pooling and its tokenizer, on all devices, ready for texts.

    Attributes:
        pooling: how vectors are made.
        width: of the vectors.
        network: what computes.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        params: Any,
        tokenizer: Tokenizer,
        pooling: Pooling,
        dtype: str = "float32",
        compute: Compute | None = None,
    ) -> None:
        """Puts the parameters on the devices; nothing is compiled yet.

        Args:
            encoder: sizes.
            params: {"encoder"} of NumPy arrays.
            tokenizer: of the model.
            pooling: how vectors are made.
            dtype: what is computed in: "float32" or "bfloat16".
            compute: gives the last hidden states in place of JAX, see `RowNetwork`.

        Raises:
            UserError: `pooling.max_length` is above the model's, or the tokenizer does not fit.
        """
        self._limit = pooling.max_length or encoder.max_length
        model = SentenceEncoder(encoder, pooling, np.dtype(dtype))
        pooled = None if compute is None else lambda inputs: pool(compute(inputs), inputs.mask, pooling)
        self.network = RowNetwork(model, {"encoder": params["encoder"]}, tokenizer, self._limit, pooled)
        self._tokenizer, self.pooling, self.width = tokenizer, pooling, encoder.hidden_size

    def encode(self, texts: Sequence[str], *, batch_size: int = 0, prompt: str | None = None) -> np.ndarray:
        """Vectors of texts.

        Args:
            texts: N texts; what a text has beyond the longest row is cut.
            batch_size: rows computed at once; 0: chosen by the kind of device and the rows' lengths.
            prompt: name of the prompt that is put before each text; None: the model's own choice, "": none.

        Returns:
            [N, width] float32, in the order of the texts.

        Raises:
            UserError: one text where several are wanted, what is no text, no such prompt, or vectors that are not
                finite.
        """
        if isinstance(texts, str):
            raise UserError("texts: is one text, not several; put it into a list")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"texts[{number}]: is {type(text).__name__}, not a text; leave it out")
        chunks = self.chunks(((text, None) for text in texts), batch_size=batch_size, prompt=prompt)
        found = [vector for chunk in chunks for vector, _ in chunk]
        return np.stack(found) if found else np.zeros((0, self.width), np.float32)

    def chunks(
        self, texts: Iterable[tuple[str, Any]], *, batch_size: int = 0, prompt: str | None = None
    ) -> Iterator[list[tuple[np.ndarray, Any]]]:
        """(vector [width] float32, what came with its text), in their order, as `RowNetwork.chunks` has it."""
        before = self.prompt_text(prompt)
        for chunk in self.network.chunks(texts, lambda item: len(item[0]), batch_size):
            whole = [before + text for text, _ in chunk]
            lowered = [text.lower() for text in whole] if self.pooling.lower_case else whole
            encoded = encoded_texts(self._tokenizer, lowered, self._limit)
            vectors = self.network.outputs(encoded, batch_size)
            yield [(vector, given) for vector, (_, given) in zip(vectors, chunk, strict=True)]

    def prompt_text(self, name: str | None) -> str:
        """The text of a prompt, as `encode` takes its name. Raises UserError where there is none of this name."""
        name, prompts = self.pooling.prompt if name is None else name, dict(self.pooling.prompts)
        if name and name not in prompts:
            raise UserError(f"prompt = {name!r}: the model has {', '.join(prompts) or 'no prompts'}")
        return prompts.get(name, "")


def load_embedder(
    path: str | Path,
    *,
    pooling: str = "auto",
    normalize: bool | None = None,
    max_length: int = 0,
    dtype: str = "float32",
    step: int | None = None,
    compute: Compute | None = None,
) -> Embedder:
    """The encoder of a model folder, a sentence-transformers folder, a run or a hub id; heads are passed over.

    Args:
        path: folder or hub id.
        pooling: "mean", "cls" or "max"; "auto": as the folder says, for one that says nothing "mean".
        normalize: vectors have length 1; None: as the folder says, for one that says nothing not.
        max_length: tokens a text may have; 0: as the folder says, for one that says nothing as many as the model takes.
        dtype: what is computed in: "float32" or "bfloat16".
        step: which checkpoint of a run; None: its result.
        compute: as `Embedder` takes it.

    Raises:
        UserError: no such model, or settings that are none.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r}; known: float32, bfloat16")
    trained = run_at(path, step)
    if trained is not None:
        encoder, params, tokenizer, own = trained.encoder, trained.params, trained.tokenizer, trained.pooling
    else:
        encoder, params, *_ = read_pretrained(locate(path), "none")
        tokenizer, own = load_tokenizer(path), read_pooling(locate(path, files="sentence"))
    chosen = choose_pooling(own, pooling, normalize) or Pooling()
    length = max_length or min(chosen.max_length, encoder.max_length)
    return Embedder(encoder, params, tokenizer, dataclasses.replace(chosen, max_length=length), dtype, compute)


def choose_pooling(own: Pooling | None, mode: str, normalize: bool | None) -> Pooling | None:
    """A model's own pooling with what the user asks for; None where neither says anything.

    Args:
        own: the model's.
        mode: "mean", "cls" or "max"; "auto": the model's own; "none": without pooling.
        normalize: None: the model's own.

    Raises:
        UserError: there is no such mode, or a normalisation of nothing.
    """
    if mode not in ("auto", "none", *POOLING_MODES):
        raise UserError(f"--pooling {mode}: must be one of auto, none, {', '.join(POOLING_MODES)}")
    if mode == "none" or (mode == "auto" and own is None):
        if normalize is not None:
            raise UserError("--normalize: the model has no pooling whose vectors it could change; give --pooling mean")
        return None
    changes: dict[str, Any] = {} if mode == "auto" else {"mode": mode}
    if normalize is not None:
        changes["normalize"] = normalize
    return dataclasses.replace(own or Pooling(), **changes)


def encode(
    model: str | Path | Embedder, texts: Sequence[str], *, batch_size: int = 0, prompt: str | None = None
) -> np.ndarray:
    """Vectors of texts.

    Args:
        model: a path or hub id (see `load_embedder`), or an embedder, which keeps its compiled programs.
        texts: as of `Embedder.encode`, as are the others.
        batch_size: rows computed at once.
        prompt: name of a prompt.

    Returns:
        [N, width] float32.

    Raises:
        UserError: as `load_embedder` and `Embedder.encode`.
    """
    embedder = model if isinstance(model, Embedder) else load_embedder(model)
    return embedder.encode(texts, batch_size=batch_size, prompt=prompt)
