"""A WordPiece vocabulary made of the user's text, the same from the same text every time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distil_jax.hf import Tokenizer, load_tokenizer

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(lines: Sequence[str], vocab_size: int, *, lowercase: bool = True) -> Tokenizer:
    """Train a BERT tokenizer (WordPiece, BERT's normalisation and word splitting) on `lines`.

    Args:
        lines: the text.
        vocab_size: tokens, the five special ones included; fewer if the text does not give that many.
        lowercase: fold case and strip accents, as BERT-uncased.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    backend.decoder = decoders.WordPiece()  # type: ignore[assignment]
    letters = sorted({letter for line in lines for letter in backend.normalizer.normalize_str(line).strip()} - {" "})
    # Ties between merges are broken by id, and the trainer numbers "##c" pieces in the order of a hash map unless they
    # are there from the start.
    pieces = [f"##{letter}" for letter in letters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*_SPECIAL, *pieces], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(lines, trainer)
    tokens = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        Path(folder, "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}), encoding="utf-8")
        return load_tokenizer(folder)
