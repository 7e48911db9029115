"""What TFX's Trainer calls. TFX reloads this module, so it defines no classes and registers nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import asdict
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from components.classifier.model import TextClassifier, build_classifier
from components.config import EncoderConfig, ExportConfig, HeadConfig, TrainingConfig
from components.encoder.checkpoint import load_weights
from components.encoder.config import BertGeometry, geometry_in_use
from components.encoder.conversion import read_record
from components.errors import ConfigError
from components.export.admission import LowPrecision
from components.export.paths import float32_dir
from components.export.portable import check_ops
from components.trainer import state
from components.trainer.batches import Examples, read_examples
from components.trainer.calibration import calibrate
from components.trainer.export import TransformGraph, export
from components.trainer.hardware import choose_strategy, has_bfloat16
from components.trainer.loop import Loop
from components.trainer.losses import class_weights
from components.trainer.metrics import scores, tune_thresholds
from components.trainer.options import check_options
from components.trainer.steps import make_predict_step, predict
from components.trainer.warm_start import warm_start

_CHECK_EXAMPLES = 64

log = logging.getLogger(__name__)


def run_fn(fn_args: Any) -> None:
    """Trains on the transformed examples and exports the best epoch's model.

    Args:
      fn_args: TFX's FnArgs: `train_files`, `eval_files`, `transform_output`, `serving_model_dir`, `model_run_dir`,
        `base_model` (a SavedModel to start from, or None), and `custom_config` with `task`, `labels`, `pairs`,
        `vocab_file`, `lower_case`, `max_length`, `encoder_config_file`, the sections `encoder`, `head`,
        `training` and (absent for float32) `export`, `checkpoint_dir`, and, where the pipeline converted pretrained
        weights, their folder `encoder_weights`.

    Raises:
      ConfigError, CheckpointError, DataError, PipelineError: as their messages say.
    """
    started = time.monotonic()
    config = fn_args.custom_config
    task, labels, pairs = config["task"], list(config["labels"]), config["pairs"]
    training = TrainingConfig.model_validate(config["training"])
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    spec = transform_output.transformed_feature_spec()
    train = read_examples(fn_args.train_files, spec, task == "multilabel", pairs)
    evaluation = read_examples(fn_args.eval_files, spec, task == "multilabel", pairs)

    keras.utils.set_random_seed(training.seed)
    strategy = choose_strategy()
    mixed = training.mixed_precision and has_bfloat16()
    if training.mixed_precision and not mixed:
        log.warning("training.mixed_precision: this machine has no bfloat16 arithmetic; training in float32")
    with strategy.scope():
        model = _build(config, policy="mixed_bfloat16" if mixed else "float32")
        loaded = _load_weights(model, config)
        base = warm_start(model, fn_args.base_model) if fn_args.base_model else None
    checkpoint_dir = os.path.join(config["checkpoint_dir"], _fingerprint(config, train, evaluation, base))
    loop = Loop(
        model, train, evaluation, task, training,
        weights=class_weights(training.class_weights, labels, train.labels, task),
        strategy=strategy, checkpoint_dir=checkpoint_dir, log_dir=os.path.join(fn_args.model_run_dir, "logs"),
    )  # fmt: skip
    progress = loop.run()

    if mixed or strategy.num_replicas_in_sync > 1:
        model = _plain_copy(model, config)
    calibration = calibrate(model, evaluation, task) if training.calibration == "temperature" else None
    predicted = predict(make_predict_step(model, task), evaluation)
    thresholds = tune_thresholds(predicted, evaluation.labels) if task == "multilabel" else None
    best = scores(predicted, evaluation.labels, task, thresholds)
    _write_json(fn_args.model_run_dir, "history.json", progress.history)
    summary = {
        "metric": training.metric,
        "best": best[training.metric],
        "best_epoch": progress.best_epoch + 1,
        "epochs": progress.epoch,
        "eval": best,
        "train_examples": len(train),
        "eval_examples": len(evaluation),
        "truncated": {"train": train.truncated, "eval": evaluation.truncated},
        "parameters": int(sum(np.prod(weight.shape) for weight in model.weights)),
        "train_seconds": progress.seconds,
        "seconds": time.monotonic() - started,
        "weights": loaded,
        "warm_start": base,
        "mixed_precision": mixed,
        "replicas": strategy.num_replicas_in_sync,
        "calibration": calibration,
        "thresholds": None if thresholds is None else [float(value) for value in thresholds],
    }
    _write_json(fn_args.model_run_dir, "summary.json", summary)
    check = _check(evaluation, predicted)
    transform = TransformGraph(transform_output.transform_savedmodel_dir)
    contract = (transform, transform_output.raw_feature_spec(), task, labels, pairs, thresholds)
    if "export" in config:
        low = LowPrecision(model, ExportConfig.model_validate(config["export"]), train)
        export(fn_args.serving_model_dir, low.classifier, *contract)
        export(float32_dir(fn_args.serving_model_dir), model, *contract)
        low.check_elsewhere(fn_args.serving_model_dir, config["vocab_file"], pairs)
        check |= low.check(evaluation, check["keys"], task)
    else:
        export(fn_args.serving_model_dir, model, *contract)
    check_ops(fn_args.serving_model_dir)
    _write_json(fn_args.model_run_dir, "check.json", check)
    state.remove(checkpoint_dir)


def _build(config: dict[str, Any], policy: str) -> TextClassifier:
    encoder = EncoderConfig.model_validate(config["encoder"])
    geometry = _geometry(config, encoder)
    check_options(TrainingConfig.model_validate(config["training"]), encoder, geometry, config["max_length"])
    return build_classifier(
        geometry,
        HeadConfig.model_validate(config["head"]),
        config["task"],
        len(config["labels"]),
        config["pairs"],
        config["max_length"],
        policy,
        encoder.trainable,
    )


def _load_weights(model: TextClassifier, config: dict[str, Any]) -> dict[str, Any] | None:
    name, converted = config["encoder"]["weights"], config.get("encoder_weights")
    if name is None:
        return None
    if converted is None:
        loaded = load_weights(model.encoder, name, config["vocab_file"])
        log.info("encoder weights from %s: %s, %d tensors unused", name, loaded.format, len(loaded.unused))
        return {"source": name, **asdict(loaded)}
    record = read_record(converted)
    load_weights(model.encoder, converted, config["vocab_file"])
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
    """The same weights in a model on one device that computes in float32."""
    plain = _build(config, policy="float32")
    for target, source in zip(plain.weights, model.weights, strict=True):
        target.assign(source.numpy())
    return plain


def _fingerprint(config: dict[str, Any], train: Examples, evaluation: Examples, base: dict[str, Any] | None) -> str:
    # Where things are does not change what comes out; the weights' own files are in `file_hashes`.
    apart = ("checkpoint_dir", "encoder_weights", "export")
    settings = {key: value for key, value in config.items() if key not in apart}
    parts = [json.dumps(settings, sort_keys=True), json.dumps(base), train.digest(), evaluation.digest()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _check(evaluation: Examples, predicted: np.ndarray) -> dict[str, Any]:
    _, first = np.unique(evaluation.keys, return_index=True)
    rows = first[:: max(1, len(first) // _CHECK_EXAMPLES)][:_CHECK_EXAMPLES]
    return {
        "split": "eval",
        "keys": [int(key) for key in evaluation.keys[rows]],
        "probabilities": [[float(p) for p in row] for row in predicted[rows]],
    }


def _write_json(folder: str, name: str, value: Any) -> None:
    tf.io.gfile.makedirs(folder)
    with tf.io.gfile.GFile(os.path.join(folder, name), "w") as file:
        file.write(json.dumps(value, indent=1))
