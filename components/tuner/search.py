"""A search by KerasTuner whose finished trials are never trained again, however often it is killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import keras_tuner
from keras_tuner import errors

from components.config import TunerConfig
from components.errors import ConfigError, DivergenceError, PipelineError
from components.progress import report
from components.trainer.hyperparameters import decoded
from components.tuner.space import hyperparameters

Train = Callable[[dict[str, Any], str], float]


class Search(keras_tuner.engine.base_tuner.BaseTuner):
    """KerasTuner's oracle proposes, `train` answers, and what a trial came to is kept by its values.

    KerasTuner's own state is not written to survive a kill in the middle of a write, so a search always starts anew:
    the oracle, being a function of its seed and of the scores so far, proposes the same trials, and those that are
    known are answered from their file. A trial that was under way goes on from its checkpoint.

    Args:
      config: algorithm, number of trials, space.
      metric: the objective, the greater the better.
      train: from a trial's values and a folder of its own to the metric.
      directory: for KerasTuner's state of this search; a new folder.
      kept: for the trials' results and checkpoints; they stay there.
    """

    def __init__(self, config: TunerConfig, metric: str, train: Train, directory: str, kept: str) -> None:
        oracle_class = {
            "random": keras_tuner.oracles.RandomSearchOracle,
            "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
            "grid": keras_tuner.oracles.GridSearchOracle,
        }[config.algorithm]
        oracle = oracle_class(
            objective=keras_tuner.Objective(metric, "max"),
            max_trials=config.max_trials,
            seed=config.seed,
            hyperparameters=hyperparameters(config.space),
            # A search ends for want of trials, not of luck: that none at all succeeded is told at its end.
            max_consecutive_failed_trials=config.max_trials + 1,
        )
        oracle.verbose = 0
        super().__init__(oracle, directory=directory, project_name="search")
        self._metric = metric
        self._train = train
        self._kept = kept
        self._best: float | None = None
        self._errors: dict[str, None] = {}

    def run_trial(self, trial: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Trains with a trial's values, unless that was done; the metric by its name."""
        values = decoded(trial.hyperparameters.values)
        known = f"{self._kept}/{_digest(values)}"
        result = _read(f"{known}.json")
        if result is None:
            result = {"values": values} | self._result(values, known)
            _write(f"{known}.json", result)
        shutil.rmtree(known, ignore_errors=True)
        score = result["score"]
        if score is not None:
            self._best = score if self._best is None else max(self._best, score)
        else:
            self._errors[result["error"]] = None
        told = {} if score is None else {"metric": score, "best": self._best or 0.0}
        report("tune", trial=int(trial.trial_id) + 1, trials=self.oracle.max_trials, **told)
        if score is None:
            raise errors.FailedTrialError(result["error"])
        return {self._metric: score}

    def _result(self, values: dict[str, Any], folder: str) -> dict[str, Any]:
        """What training with these values comes to. Values that do not work are a result; whatever else fails ends the
        search, which KerasTuner would otherwise go on with."""
        try:
            return {"score": self._train(values, folder), "error": None}
        except (ConfigError, DivergenceError) as error:
            return {"score": None, "error": str(error)}
        except Exception as error:
            raise errors.FatalError(f"a trial failed: {type(error).__name__}") from error

    def on_search_end(self) -> None:
        """Raises PipelineError where no trial came to a score."""
        if self._best is None:
            raise PipelineError(
                f"Tuner: none of {len(self.oracle.trials)} trials could be trained; change tuner.space. "
                f"The first ended with: {next(iter(self._errors), 'nothing')}"
            )


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: str) -> dict[str, Any] | None:
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _write(path: str, result: dict[str, Any]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    os.replace(f"{path}.partial", path)
