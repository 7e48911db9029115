"""Training in several processes, by TF_CONFIG: two of them on loopback give what one gives, and one export."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from components.errors import ConfigError
from components.trainer.hardware import workers_in_cluster
from components.trainer.run_fn import run_fn

ROOT = Path(__file__).parents[3]
_WORKER = """
import os, pickle, random, sys
from components.trainer import loop
from components.trainer.run_fn import run_fn

if '"index": 1' in os.environ["TF_CONFIG"]:  # a host on which other scores come out
    scores = loop.scores
    loop.scores = lambda *arguments: {name: random.random() for name in scores(*arguments)}
run_fn(pickle.load(open(sys.argv[1], "rb")))
"""


STAGES = [{"layers": 0, "epochs": 4}, {"layers": "all", "epochs": 2}]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def weights_of(folder):
    reader = tf.train.load_checkpoint(f"{folder}/variables/variables")
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith("weights/")]
    values = {name: reader.get_tensor(name) for name in names}
    return {name: value for name, value in values.items() if value.dtype.kind == "f"}  # without random generators


@pytest.mark.slow
def test_two_workers_train_what_one_does_and_the_chief_alone_exports(fn_args, weights_alone, tmp_path):
    options = {
        "encoder": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "head": {"dropout": 0.0},
        "training": {"accumulate_steps": 2, "ema_decay": 0.5, "batch_size": 8, "epochs": 5, "stages": STAGES},
    }
    alone, together = fn_args(folder=tmp_path / "alone", **options), fn_args(folder=tmp_path / "together", **options)
    (tmp_path / "args").write_bytes(pickle.dumps(together))
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    workers = []
    for number in range(2):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": number}})
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": config}
        with (tmp_path / f"{number}.log").open("w") as log:
            command = [sys.executable, "-c", _WORKER, str(tmp_path / "args")]
            workers.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log))
    try:
        run_fn(alone)
        for number, worker in enumerate(workers):
            assert worker.wait(timeout=300) == 0, (tmp_path / f"{number}.log").read_text()[-3000:]
    finally:
        for worker in workers:
            worker.kill()
    one, two = weights_of(alone.serving_model_dir), weights_of(together.serving_model_dir)
    assert one.keys() == two.keys()
    assert len(one) > 10
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=0, atol=1e-3)
    first, second = (json.loads((Path(args.model_run_dir) / "history.json").read_text()) for args in (alone, together))
    assert [e["loss"] for e in second] == pytest.approx([e["loss"] for e in first], abs=1e-4)
    summary = json.loads((Path(together.model_run_dir) / "summary.json").read_text())
    assert summary["replicas"] == 2
    assert os.listdir(together.custom_config["checkpoint_dir"]) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 1),
        ("{}", 1),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}', 1),
        ('{"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"], "evaluator": ["d:1"]}}', 3),
    ],
)
def test_workers_are_counted_as_tf_config_names_them(monkeypatch, text, count):
    monkeypatch.setenv("TF_CONFIG", text)
    assert workers_in_cluster() == count


@pytest.mark.parametrize("text", ["worker", "[1]", '{"cluster": 3}', '{"cluster": {"worker": 3}}'])
def test_a_damaged_tf_config_is_named(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigError, match="TF_CONFIG: is not a JSON object with cluster and task"):
        workers_in_cluster()
