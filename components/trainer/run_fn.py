"""What TFX's Trainer calls. TFX reloads this module, so it defines no classes and registers nothing."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from components.config import ExportConfig, TrainingConfig
from components.export.admission import LowPrecision
from components.export.classifier import served
from components.export.paths import float32_dir
from components.export.portable import check_ops
from components.trainer import state
from components.trainer.batches import Examples, read_examples
from components.trainer.calibration import calibrate
from components.trainer.export import TransformGraph, export
from components.trainer.fit import fit, meaning_of
from components.trainer.hardware import choose_strategy, wait_for_all, worker_number
from components.trainer.hyperparameters import decoded, with_values
from components.trainer.metrics import scores, tune_thresholds
from components.trainer.steps import make_predict_step, predict
from components.trainer.warm_start import write_meaning
from components.transform.vocab_file import read_tokens

_CHECK_EXAMPLES = 64


def run_fn(fn_args: Any) -> None:
    """Trains on the transformed examples and exports the best epoch's model.

    Args:
      fn_args: TFX's FnArgs: `train_files`, `eval_files`, `transform_output`, `serving_model_dir`, `model_run_dir`,
        `base_model` (a SavedModel to start from, or None), `hyperparameters` (what the Tuner found best, which stands
        above the configuration, or None), and `custom_config` with `task`, `labels`, `pairs`,
        `neighbours` (whether pairs are of sentences before and after; absent: no),
        `vocab_file`, `lower_case`, `max_length`, `overlap` (of windows, or None), `encoder_config_file`, the sections
        `encoder`, `head`, `training` and (absent for float32) `export`, `checkpoint_dir`, and, where the pipeline
        converted pretrained weights, their folder `encoder_weights`.

    Raises:
      ConfigError, CheckpointError, DataError, PipelineError: as their messages say.
    """
    started = time.monotonic()
    strategy = choose_strategy()
    config = fn_args.custom_config
    found = getattr(fn_args, "hyperparameters", None)  # KerasTuner's own account of a trial
    hyperparameters = decoded(found["values"]) if found else None
    if hyperparameters:
        config = with_values(config, hyperparameters)
    task, labels, pairs = config["task"], list(config["labels"]), config["pairs"]
    training = TrainingConfig.model_validate(config["training"])
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    spec = transform_output.transformed_feature_spec()
    train = read_examples(fn_args.train_files, spec, task == "multilabel", pairs)
    evaluation = read_examples(fn_args.eval_files, spec, task == "multilabel", pairs)

    fitted = fit(config, train, evaluation, os.path.join(fn_args.model_run_dir, "logs"), strategy, fn_args.base_model)
    if worker_number(strategy):  # the chief alone exports; TFX looks for it in every worker
        wait_for_all(strategy)
        return
    model, progress = fitted.model, fitted.progress

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
        "weights": fitted.weights,
        "warm_start": fitted.warm_start,
        "mixed_precision": fitted.mixed,
        "replicas": fitted.replicas,
        "hyperparameters": hyperparameters,
        "calibration": calibration,
        "thresholds": None if thresholds is None else [float(value) for value in thresholds],
    }
    _write_json(fn_args.model_run_dir, "summary.json", summary)
    check = _check(evaluation, predicted)
    transform = TransformGraph(transform_output.transform_savedmodel_dir)
    vocabulary = read_tokens(config["vocab_file"])
    contract = (transform, transform_output.raw_feature_spec(), task, labels, pairs, vocabulary, thresholds)
    if "export" in config:
        low = LowPrecision(model, ExportConfig.model_validate(config["export"]), train)
        export(fn_args.serving_model_dir, low.classifier, *contract)
        export(float32_dir(fn_args.serving_model_dir), served(model)[0], *contract)
        low.check_elsewhere(fn_args.serving_model_dir, config["vocab_file"], pairs)
        check |= low.check(evaluation, check["keys"], task)
    else:
        export(fn_args.serving_model_dir, served(model)[0], *contract)
    check_ops(fn_args.serving_model_dir)
    write_meaning(fn_args.serving_model_dir, meaning_of(config))
    _write_json(fn_args.model_run_dir, "check.json", check)
    wait_for_all(strategy)
    state.remove(fitted.checkpoint_dir)


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
