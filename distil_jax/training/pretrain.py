"""Pre-training: a masked language model from scratch, or from a given model whose encoder may stay frozen."""

from __future__ import annotations

from distil_jax.config import Config, Model, Objective, require
from distil_jax.errors import UserError
from distil_jax.hf import new_encoder_config
from distil_jax.models import EncoderConfig
from distil_jax.runs import Watchdog, fingerprint
from distil_jax.training.loop import TrainResult
from distil_jax.training.step import Params
from distil_jax.training.text_run import (
    TextTraining,
    matching_tokenizer,
    open_corpora,
    read_model,
    train_on_text,
    with_pooling,
)


def pretrain(config: Config) -> TrainResult:
    """The finished run of a masked language model, from scratch or from `model.initial`.

    Raises:
        UserError: settings, corpus, model or the run's folder do not fit each other; before anything is compiled.
    """
    require(config, "run.output", "corpus.folder")
    with Watchdog(config) as watchdog:
        corpora, settings = open_corpora(config), config.model
        source = settings.initial or config.corpus.tokenizer
        if not source:
            raise UserError("corpus.tokenizer: name the tokenizer's folder or hub id, or give model.initial")
        tokenizer = matching_tokenizer(config.corpus.tokenizer or source, corpora.train)
        if settings.initial:
            encoder, params = read_model(settings.initial)
        else:
            encoder, params = scratch_encoder(settings, tokenizer.vocab_size, tokenizer.pad_id), {}
        training = pretraining(config, encoder, params)
        if not settings.initial:
            return train_on_text(config, watchdog, training, corpora, tokenizer, {})
        inputs = {"model.initial": fingerprint(params)}
        return train_on_text(config, watchdog, with_pooling(training, settings.initial), corpora, tokenizer, inputs)


def pretraining(config: Config, encoder: EncoderConfig, params: Params) -> TextTraining:
    """What `pretrain` trains: `params` of `model.initial`, or none for a model from scratch."""
    frozen, initial = config.model.freeze_encoder, config.model.initial
    return TextTraining(
        encoder=encoder,
        params=params,
        trainable=("mlm_head",) if frozen else ("encoder", "mlm_head"),
        objective=Objective(kl=0.0, cosine=0.0, mlm=1.0, vocabulary=config.objective.vocabulary),
        description={"stage": "pretrain", "initial": initial, "frozen_encoder": frozen},
    )


def scratch_encoder(settings: Model, vocab_size: int, pad_id: int) -> EncoderConfig:
    """The encoder of the sizes in the section [model]."""
    return new_encoder_config(
        settings.family,
        "model.family",
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.max_position_embeddings,
        activation=settings.activation,
        hidden_dropout=settings.hidden_dropout,
        attention_dropout=settings.attention_dropout,
        initializer_range=settings.initializer_range,
        pad_token_id=pad_id,
    )
