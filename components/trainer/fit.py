"""One training of one configuration: model, weights to start from, loop."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import keras
import tensorflow as tf
from pydantic import ValidationError

from components.classifier.model import TextClassifier, build_classifier
from components.config import EncoderConfig, HeadConfig, Section, TrainingConfig
from components.encoder.checkpoint import load_weights
from components.encoder.config import BertGeometry, geometry_in_use
from components.encoder.conversion import read_record
from components.errors import ConfigError
from components.trainer.batches import Examples
from components.trainer.hardware import has_bfloat16
from components.trainer.loop import Loop, Progress
from components.trainer.lora import enable_lora, merged_values
from components.trainer.losses import class_weights
from components.trainer.options import check_options
from components.trainer.warm_start import meaning, warm_start

AnySection = TypeVar("AnySection", bound=Section)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """What a training came to.

    Attributes:
      model: with the best epoch's weights, in float32 on one device, low-rank updates merged.
      progress: of the loop.
      weights, warm_start: where it started from, for the account.
      mixed: whether it trained in bfloat16.
      replicas: how many trained it.
      checkpoint_dir: that of this training alone; to be removed when its result is safe.
    """

    model: TextClassifier
    progress: Progress
    weights: dict[str, Any] | None
    warm_start: dict[str, Any] | None
    mixed: bool
    replicas: int
    checkpoint_dir: str


def fit(
    config: dict[str, Any],
    train: Examples,
    evaluation: Examples,
    log_dir: str,
    strategy: tf.distribute.Strategy,
    base_model: str | None = None,
) -> Fitted:
    """Trains, from the checkpoint that an earlier try of the very same training has left, if any.

    Args:
      config: see `components.trainer.run_fn`.
      train, evaluation: the examples of the two splits.
      log_dir: TensorBoard's.
      strategy: see `components.trainer.hardware`.
      base_model: a SavedModel to start from.

    Raises:
      ConfigError, CheckpointError, PipelineError: as their messages say.
    """
    training = _section(TrainingConfig, config, "training")
    keras.utils.set_random_seed(training.seed)
    mixed = training.mixed_precision and has_bfloat16()
    if training.mixed_precision and not mixed:
        log.warning("training.mixed_precision: this machine has no bfloat16 arithmetic; training in float32")
    if training.xla and not tf.config.list_physical_devices("GPU"):
        log.warning("training.xla: this machine has no GPU; the step is not compiled by XLA")
        training = training.model_copy(update={"xla": False})
    with strategy.scope():
        model = _build(config, policy="mixed_bfloat16" if mixed else "float32")
        loaded = _load_weights(model, config)
        base = warm_start(model, base_model, meaning_of(config)) if base_model else None
        if training.lora_rank:
            enable_lora(model, training.lora_rank, training.lora_alpha)
    checkpoint_dir = os.path.join(config["checkpoint_dir"], _fingerprint(config, train, evaluation, base))
    loop = Loop(
        model, train, evaluation, config["task"], training,
        weights=class_weights(training.class_weights, list(config["labels"]), train.labels, config["task"]),
        strategy=strategy, checkpoint_dir=checkpoint_dir, log_dir=log_dir,
    )  # fmt: skip
    progress = loop.run()
    if mixed or training.lora_rank or strategy.num_replicas_in_sync > 1:
        model = _plain_copy(model, config)
    return Fitted(model, progress, loaded, base, mixed, strategy.num_replicas_in_sync, checkpoint_dir)


def meaning_of(config: dict[str, Any]) -> dict[str, Any]:
    """What the weights of a model of this configuration mean: see `components.trainer.warm_start.meaning`."""
    return meaning(config, _geometry(config, _section(EncoderConfig, config, "encoder")))


def _build(config: dict[str, Any], policy: str) -> TextClassifier:
    encoder = _section(EncoderConfig, config, "encoder")
    geometry = _geometry(config, encoder)
    head, windows = _section(HeadConfig, config, "head"), config["overlap"] is not None
    check_options(_section(TrainingConfig, config, "training"), encoder, geometry, config["max_length"], head, windows)
    return build_classifier(
        geometry,
        head,
        config["task"],
        len(config["labels"]),
        1 + config["pairs"] + config.get("neighbours", False),  # segments
        config["max_length"],
        policy,
        encoder.trainable,
        config["overlap"],
    )


def _section(kind: type[AnySection], config: dict[str, Any], name: str) -> AnySection:
    """A section of the configuration; with a trial's values in it, it may be none."""
    try:
        return kind.model_validate(config[name])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, (name, *first["loc"])))
        raise ConfigError(f"{key}: {first['msg'].removeprefix('Value error, ')}") from None


def _load_weights(model: TextClassifier, config: dict[str, Any]) -> dict[str, Any] | None:
    name, converted = config["encoder"]["weights"], config.get("encoder_weights")
    if name is None:
        return None
    if converted is None:
        loaded = load_weights(model.encoder, name, config["vocab_file"], config["lower_case"])
        log.info("encoder weights from %s: %s, %d tensors unused", name, loaded.format, len(loaded.unused))
        return {"source": name, **asdict(loaded)}
    record = read_record(converted)
    load_weights(model.encoder, converted, config["vocab_file"], config["lower_case"])
    log.info("encoder weights from %s, converted from %s", name, record.format)
    return {**asdict(record), "converted": converted}


def _geometry(config: dict[str, Any], encoder: EncoderConfig) -> BertGeometry:
    geometry = geometry_in_use(config["encoder_config_file"], encoder, config["vocab_file"])
    if config["max_length"] > geometry.max_position_embeddings:
        raise ConfigError(
            f"tokenizer.max_length: {config['max_length']} tokens, but the encoder has positions for "
            f"{geometry.max_position_embeddings} (encoder.max_position_embeddings)"
        )
    return geometry


def _plain_copy(model: TextClassifier, config: dict[str, Any]) -> TextClassifier:
    """The same weights, low-rank updates merged, in a model on one device that computes in float32."""
    plain = _build(config, policy="float32")
    for target, value in zip(plain.weights, merged_values(model), strict=True):
        target.assign(value)
    return plain


def _fingerprint(config: dict[str, Any], train: Examples, evaluation: Examples, base: dict[str, Any] | None) -> str:
    # Where things are does not change what comes out; the weights' own files are in `file_hashes`.
    apart = ("checkpoint_dir", "encoder_weights", "export")
    settings = {key: value for key, value in config.items() if key not in apart}
    parts = [json.dumps(settings, sort_keys=True), json.dumps(base), train.digest(), evaluation.digest()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
