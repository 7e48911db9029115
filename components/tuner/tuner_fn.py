"""What TFX's Tuner calls. TFX reloads this module, so it defines no classes and registers nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import Any

import tensorflow_transform as tft
from tfx.components.tuner.component import TunerFnResult

from components.config import TrainingConfig, TunerConfig
from components.errors import ConfigError
from components.trainer.batches import read_examples
from components.trainer.fit import fit
from components.trainer.hardware import choose_strategy, workers_in_cluster
from components.trainer.hyperparameters import with_values
from components.tuner.search import Search


def tuner_fn(fn_args: Any) -> TunerFnResult:
    """A search over the configured space; each trial trains as the Trainer would, without an export.

    Args:
      fn_args: TFX's FnArgs: `train_files`, `eval_files`, `transform_graph_path`, `working_dir`, and `custom_config`
        with what `components.trainer.run_fn` takes but `checkpoint_dir`, `tuner`, the section, and `tuner_dir`, where
        trials are kept; those of other data, or of another configuration or code, are deleted there.

    Raises:
      ConfigError: TF_CONFIG names several workers.
    """
    if workers_in_cluster() > 1:
        raise ConfigError("tuner: a search runs in one process, but TF_CONFIG names several workers; unset it there")
    config = fn_args.custom_config
    tuner = TunerConfig.model_validate(config["tuner"])
    training = TrainingConfig.model_validate(config["training"])
    multilabel = config["task"] == "multilabel"
    spec = tft.TFTransformOutput(fn_args.transform_graph_path).transformed_feature_spec()
    train = read_examples(fn_args.train_files, spec, multilabel, config["pairs"])
    evaluation = read_examples(fn_args.eval_files, spec, multilabel, config["pairs"])

    settings = {key: value for key, value in config.items() if key not in ("tuner", "tuner_dir")}
    # Where the weights are does not change what comes out; their files are in `file_hashes`.
    decisive = {key: value for key, value in settings.items() if key != "encoder_weights"}
    content = [json.dumps(decisive, sort_keys=True), train.digest(), evaluation.digest()]
    name = hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]
    os.makedirs(config["tuner_dir"], exist_ok=True)
    for other in os.listdir(config["tuner_dir"]):
        if other != name:
            shutil.rmtree(os.path.join(config["tuner_dir"], other))

    strategy = choose_strategy()

    def score(values: dict[str, Any], folder: str) -> float:
        own = with_values(settings, values) | {"checkpoint_dir": folder}
        return fit(own, train, evaluation, os.path.join(folder, "logs"), strategy).progress.best

    kept = os.path.join(config["tuner_dir"], name)
    search = Search(tuner, training.metric, score, os.path.join(fn_args.working_dir, "keras_tuner"), kept)
    return TunerFnResult(tuner=search, fit_kwargs={})
