"""Steps compiled by XLA: batches of few shapes, and the very gradients that batches without padding give."""

import itertools

import numpy as np
import pytest

from components.config import EncoderConfig, HeadConfig, TrainingConfig
from components.encoder.config import BertGeometry
from components.errors import ConfigError
from components.trainer import fit as fit_module
from components.trainer.batches import plan_epoch
from components.trainer.options import check_options
from components.trainer.static_shapes import StaticShapes
from components.trainer.steps import halved

LENGTHS = np.array([2, 3, 5, 6, 7, 12, 12, 4, 9, 2, 11], np.int32)


def packed(lengths):
    return {"ids": np.arange(1, sum(lengths) + 1, dtype=np.int32), "row_lengths": np.array(lengths, np.int32)}


def test_padding_texts_come_first_and_count_nothing():
    shapes = StaticShapes.of(TrainingConfig(batch_size=3, buckets=(6, 8, 64)), LENGTHS, 1)
    assert shapes.bounds == (6, 8, 12)
    batch, labels, shares = shapes.padded(packed([5, 2]), np.array([1, 2], np.int32), np.float32(0.5))
    assert batch["row_lengths"].tolist() == [0, 0, 5, 6, 5, 2]  # 3 texts of 6, of which 11 tokens are missing
    assert batch["ids"].tolist() == [0] * 11 + [1, 2, 3, 4, 5, 6, 7]
    assert batch["steps"].tolist() == [0, 1, 2, 3, 4, 5]
    assert labels.tolist() == [0, 0, 0, 0, 1, 2]
    assert shares.tolist() == [0, 0, 0, 0, 0.5, 0.5]


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"batch_tokens": 24}])
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_batch_of_a_bucket_has_the_same_shape(options, replicas):
    shapes = StaticShapes.of(TrainingConfig(buckets=(6, 8), **options), LENGTHS, replicas)
    found = {}
    for lengths in ([2], [6], [5, 3], [7], [8, 8], [9], [12, 2]):
        part = lengths if replicas == 1 else lengths[:1]
        batch, labels, shares = shapes.padded(packed(part), np.zeros((len(part), 3), np.float32), np.float32(1))
        assert batch["row_lengths"].sum() == len(batch["ids"])
        assert batch["row_lengths"].max() <= len(batch["steps"])
        assert len(batch["row_lengths"]) == len(labels) == len(shares)
        found.setdefault(len(batch["steps"]), set()).add((len(batch["ids"]), *labels.shape))
    texts = {6: 4, 8: 3 if "batch_tokens" in options else 4, 12: 2 if "batch_tokens" in options else 4}
    rows = {bound: -(-count // replicas) for bound, count in texts.items()}
    assert found == {bound: {(count * bound, 2 * count, 3)} for bound, count in rows.items()}


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_last_step_of_an_epoch_has_the_shapes_of_the_others(replicas):
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(8, 17, 300), rng.integers(300, 513, 30)]).astype(np.int32)
    training = TrainingConfig(batch_tokens=4096, buckets=(16, 512), xla=True)
    shapes = StaticShapes.of(training, lengths, replicas)
    seen = set()
    for epoch, count in itertools.product(range(5), (2, 3, 4)):
        batches = plan_epoch(shapes.bound(lengths), 32, 0, epoch, training.buckets, 4096)
        for rows in halved(batches[len(batches) // count * count :] or batches[:1], count):
            for part in filter(len, np.array_split(rows, replicas)):
                batch = {"ids": np.zeros(lengths[part].sum(), np.int32), "row_lengths": lengths[part]}
                found, *_ = shapes.padded(batch, np.zeros(len(part), np.int32), np.float32(1))
                seen.add((len(found["steps"]), len(found["ids"])))
    longest = int(lengths.max())
    assert seen == {(16, 4096 // replicas), (longest, 8 // replicas * longest)}


@pytest.mark.parametrize(
    "kind", ["multi_width", *(pytest.param(k, marks=pytest.mark.slow) for k in ("attention", "flatten", "cls"))]
)
def test_gradients_are_those_of_the_step_without_padding(tiny_loop, tmp_path, kind):
    options = {"layers": 1, "dropout": 0.0, "head": {"kind": kind, "l2": 0.1}, "clip_norm": 100.0}
    options |= {"batch_tokens": 60, "batch_size": 32}
    found = []
    for xla in (False, True):
        loop = tiny_loop(tmp_path / str(xla), xla=xla, **options)
        loop._begin_stage({})
        rows = np.array([3, 0, 39, 7])
        loss = float(loop._train_step(loop._train_step.inputs([rows]), 0.01))
        found.append((loss, [m.numpy() for m in loop.optimizer.state[1 : 1 + len(loop.optimizer.targets)]]))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    assert sum(np.abs(g).max() > 1e-4 for g in found[0][1]) > 10
    for plain, compiled in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate_steps", [1, 2])  # 1: XLA has the whole step, the average of weights too
def test_a_run_meets_as_many_shapes_as_there_are_buckets(tiny_loop, tmp_path, monkeypatch, accumulate_steps):
    shapes = []
    original = StaticShapes.padded

    def padded(self, batch, labels, share):
        found = original(self, batch, labels, share)
        shapes.append((len(found[0]["ids"]), len(found[1]), len(found[0]["steps"])))
        return found

    monkeypatch.setattr(StaticShapes, "padded", padded)
    options = {"layers": 1, "epochs": 3, "stages": [], "accumulate_steps": accumulate_steps, "ema_decay": 0.5}
    loop = tiny_loop(tmp_path, xla=True, **options)
    done = loop.run()
    assert len(shapes) > 12
    assert len(set(shapes)) == 2  # buckets of 6 and 12
    assert done.history[-1]["loss"] < done.history[0]["loss"]


@pytest.mark.parametrize(
    ("head", "windows", "message"),
    [
        ({"kind": "stacked"}, False, "training.xla: its padding would count in head.batch_norm's statistics"),
        ({"batch_norm": True}, False, "training.xla: its padding would count in head.batch_norm's statistics"),
        ({}, True, "training.xla: needs shapes that are known"),
    ],
)
def test_what_has_no_few_shapes_is_refused(head, windows, message):
    geometry = BertGeometry(vocab_size=20, num_hidden_layers=2)
    training, config = TrainingConfig(xla=True), HeadConfig(**head)
    with pytest.raises(ConfigError, match=message):
        check_options(training, EncoderConfig(), geometry, 128, config, windows)
    check_options(training, EncoderConfig(), geometry, 128, HeadConfig(), False)
    check_options(TrainingConfig(), EncoderConfig(), geometry, 128, config, windows)


def test_without_a_gpu_nothing_is_compiled_by_xla(fn_args, monkeypatch, caplog):
    seen = []

    class Stop(Exception):
        pass

    def loop(*arguments, **_):
        seen.append(arguments[4])
        raise Stop

    monkeypatch.setattr(fit_module, "Loop", loop)
    monkeypatch.setattr(fit_module.tf.config, "list_physical_devices", lambda kind=None: [])
    from components.trainer.run_fn import run_fn

    with pytest.raises(Stop):
        run_fn(fn_args(training={"xla": True}))
    assert [training.xla for training in seen] == [False]
    assert "training.xla: this machine has no GPU" in caplog.text
