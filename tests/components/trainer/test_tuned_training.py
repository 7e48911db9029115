"""TFX's own Tuner on real transformed data: killed in the middle, called again, and its result in the trainer."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tfx.components.tuner.executor import Executor
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.types import standard_artifacts
from tfx.utils import json_utils

from components import progress
from components.config import TunerConfig
from components.trainer import fit
from components.trainer.hyperparameters import decoded
from components.trainer.run_fn import run_fn
from components.tuner.search import Search

ROOT = Path(__file__).parents[3]
SPACE = {
    "head": {"kind": ["cls", "multi_width"]},
    "training": {"learning_rate": {"min": 0.001, "max": 0.1, "sampling": "log"}},
}
_KILLED = """
import glob, os, pickle, signal, sys
from components import progress
from components.trainer import loop
from tfx.components.tuner.executor import Executor

loop._REPORT_SECONDS = 0.0
context, inputs, outputs, properties, kept = pickle.load(open(sys.argv[1], "rb"))

def kill(event, values):
    if event == "train" and values["step"] == 5 and glob.glob(kept + "/*/*.json"):
        os.kill(os.getpid(), signal.SIGKILL)

with progress.listening(kill):
    Executor(context).Do(inputs, outputs, properties)
"""


def artifact(kind, folder):
    made = kind()
    made.uri = str(folder)
    return made


def test_a_trial_that_diverges_in_its_last_step_does_not_end_the_search(tiny_loop, tmp_path):
    def train(values, folder):
        rate = values["training.learning_rate"]
        one_step = {"batch_size": 64, "epochs": 1, "warmup_share": 0.0, "learning_rate": rate}
        return tiny_loop(Path(folder), layers=0, **one_step).run().best

    config = TunerConfig(space={"training": {"learning_rate": [1e38, 0.01]}}, algorithm="grid", max_trials=2)
    search = Search(config, "macro_f1", train, str(tmp_path / "search"), str(tmp_path / "kept"))
    search.search()
    assert decoded(search.get_best_hyperparameters()[0].values) == {"training.learning_rate": 0.01}
    results = [json.loads(file.read_text()) for file in (tmp_path / "kept").glob("*.json")]
    assert [result["values"]["training.learning_rate"] for result in results if result["score"] is None] == [1e38]


@pytest.mark.slow
def test_a_killed_search_goes_on_and_its_best_trial_is_what_is_trained(fn_args, weights_alone, tmp_path, monkeypatch):
    args = fn_args()
    examples = artifact(standard_artifacts.Examples, args.transform_output)
    examples.split_names = '["train", "eval"]'
    settings = {key: value for key, value in args.custom_config.items() if key != "checkpoint_dir"}
    settings |= {"tuner": TunerConfig(space=SPACE, max_trials=3, seed=4).model_dump(mode="json")}
    kept = tmp_path / "kept"
    inputs = {"examples": [examples], "transform_graph": [artifact(standard_artifacts.TransformGraph, examples.uri)]}
    outputs = {
        "best_hyperparameters": [artifact(standard_artifacts.HyperParameters, tmp_path / "best")],
        "tuner_results": [artifact(standard_artifacts.TunerResults, tmp_path / "results")],
    }
    properties = {
        "tuner_fn": "components.tuner.tuner_fn.tuner_fn", "train_args": "{}", "eval_args": "{}",
        "custom_config": json_utils.dumps(settings | {"tuner_dir": str(kept)}),
    }  # fmt: skip

    def context(name):
        return BaseExecutor.Context(tmp_dir=str(tmp_path / name), unique_id="1")

    (tmp_path / "args").write_bytes(pickle.dumps((context("first"), inputs, outputs, properties, str(kept))))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "args")]
    killed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    finished = {file.name: file.read_bytes() for file in kept.glob("*/*.json")}
    assert len(finished) == 1

    trained, told = [], []
    original = fit.fit

    def counted(config, *rest, **more):
        trained.append(config)
        return original(config, *rest, **more)

    monkeypatch.setattr(fit, "fit", counted)
    with progress.listening(lambda event, values: told.append((event, values))):
        Executor(context("second")).Do(inputs, outputs, properties)
    assert len(trained) == 2  # the one that was cut off and the third; the finished one not again
    assert [values["trial"] for event, values in told if event == "tune"] == [1, 2, 3]
    assert next(values["step"] for event, values in told if event == "train") > 4  # from its checkpoint
    results = {file.name: file.read_bytes() for file in kept.glob("*/*.json")}
    assert len(results) == 3
    assert finished.items() <= results.items()

    scores = [json.loads(result) for result in results.values()]
    best = max(scores, key=lambda result: result["score"])
    found = json.loads((tmp_path / "best" / "best_hyperparameters.txt").read_text())
    rows = json.loads((tmp_path / "results" / "tuner_results.json").read_text())
    assert sorted(row["score"] for row in rows) == sorted(result["score"] for result in scores)

    args.hyperparameters = found
    run_fn(args)
    summary = json.loads((Path(args.model_run_dir) / "summary.json").read_text())
    assert summary["hyperparameters"] == best["values"]
    assert summary["best"] == best["score"]  # the same seed, the same training
