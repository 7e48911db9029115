"""Training on two replicas is training on one: two logical CPUs stand in for two GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

_SCRIPT = """
import json, sys
import keras, numpy as np, tensorflow as tf
from components.classifier.model import build_classifier
from components.config import HeadConfig, TrainingConfig
from components.encoder.config import BertGeometry
from components.trainer.batches import Examples
from components.trainer.loop import Loop

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])  # a second one's reductions would meet those of this one

def examples(count, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 9, count).astype(np.int32)
    ids = rng.integers(0, 20, lengths.sum()).astype(np.int32)
    labels = rng.integers(0, 3, count).astype(np.int32)
    return Examples(ids, None, lengths, labels, np.arange(count))

def train(replicas, folder, dropout, options, batch_norm=False):
    strategy = mirrored if replicas == 2 else tf.distribute.get_strategy()
    geometry = BertGeometry(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                            intermediate_size=8, max_position_embeddings=8, hidden_dropout_prob=dropout,
                            attention_probs_dropout_prob=dropout)
    training = TrainingConfig(**{"batch_size": 8, "learning_rate": 0.01, "checkpoint_steps": 2} | options)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        head = HeadConfig(widths=(2,), filters=(4,), dropout=dropout, l2=0.01, batch_norm=batch_norm)
        model = build_classifier(geometry, head, "multiclass", 3, max_length=8)
    # 25 examples: the last batch holds one, and the second replica none
    splits = examples(25, 0), examples(10, 1)
    loop = Loop(model, *splits, "multiclass", training, None, strategy, folder + "/c", folder + "/l")
    progress = loop.run()
    traces = loop._train_step.compiled.experimental_get_tracing_count()
    assert traces == 1, traces  # every new batch has other shapes; they must not each be compiled
    if batch_norm:  # of each replica
        moved = [v.value for norm in model.head.norms for v in (norm.moving_mean, norm.moving_variance)]
        return [[one.numpy().tolist() for one in strategy.experimental_local_results(v)] for v in moved]
    return [e["loss"] for e in progress.history] + [v.numpy().tolist() for v in model.trainable_weights]

runs = json.loads(sys.argv[1])
print(json.dumps([train(n, f"{sys.argv[2]}/{number}", *run) for number, (n, *run) in enumerate(runs)]))
"""

STAGES = [{"layers": 0, "epochs": 1}, {"layers": "all", "epochs": 1}]
OPTIONS = [
    {"epochs": 1, "xla": True},
    {"stages": STAGES, "layer_decay": 0.5, "accumulate_steps": 2, "ema_decay": 0.5},
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By options, what one replica and what two came to; two with dropout; the moving statistics of one and of two.
    One process trains them all: logical devices must be made before TensorFlow's first computation.
    """
    runs = [(replicas, 0.0, options) for options in OPTIONS for replicas in (1, 2)] + [(2, 0.3, {"epochs": 2})]
    runs += [(replicas, 0.0, {"epochs": 3, "learning_rate": 1e-9}, True) for replicas in (1, 2)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", _SCRIPT, json.dumps(runs), str(tmp_path_factory.mktemp("replicas"))]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    *found, dropped, one, two = json.loads(done.stdout.splitlines()[-1])
    return [found[n : n + 2] for n in range(0, len(found), 2)], dropped, (one, two)


def flat(value):
    return [x for item in value for x in flat(item)] if isinstance(value, list) else [value]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(OPTIONS)), ids=["xla", "stages"])
def test_two_replicas_give_the_weights_of_one(trained, number):
    one, two = map(flat, trained[0][number])
    assert len(one) > 100
    assert two == pytest.approx(one, abs=1e-4)


@pytest.mark.slow
def test_dropout_works_on_two_replicas(trained):
    losses = trained[1][:2]
    assert all(0.5 < loss < 3 for loss in losses)


@pytest.mark.slow
def test_statistics_of_batch_normalisation_are_those_of_all_replicas(trained):
    alone, together = trained[2]
    assert [first for first, _ in together] == [second for _, second in together]
    (mean,), (shared, _) = alone[0], together[0]
    assert max(map(abs, mean)) > 0.05
    assert shared == pytest.approx(mean, abs=0.02)  # not to the bit: texts are not of equal lengths
