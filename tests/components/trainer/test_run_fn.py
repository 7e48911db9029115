"""run_fn on real transformed data and a tiny model: what it writes, and that runs are the same to the bit."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from components import progress
from components.errors import CheckpointError, ConfigError
from components.export.paths import float32_dir
from components.trainer import export, fit, loop
from components.trainer.run_fn import run_fn
from components.transform.keys import text_key
from components.transform.vocab_file import read_tokens
from pipeline.predict import Predictor

ROOT = Path(__file__).parents[3]
EPOCHS = {"epochs": 6, "patience": 6}  # of the run that several tests look at


def read_json(folder, name):
    return json.loads((Path(folder) / name).read_text())


def weights_of(folder):
    reader = tf.train.load_checkpoint(str(Path(folder) / "variables" / "variables"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "VALUE" in name}


def assert_same_weights(first, second):
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys()
    assert len(first) > 10
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def raw_example(**features):
    lists = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
        for name, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString()


@pytest.fixture(scope="module")
def ran(make_fn_args, tmp_path_factory):
    """One finished run: its FnArgs and its progress reports."""
    args = make_fn_args(folder=tmp_path_factory.mktemp("ran"), training=EPOCHS)
    reports = []
    with pytest.MonkeyPatch.context() as patch, progress.listening(lambda *report: reports.append(report)):
        patch.setattr(export, "_CHUNK_TOKENS", 20)  # so that a few texts already make several chunks
        run_fn(args)
    return args, reports


@pytest.fixture(scope="module")
def predictor(ran):
    """That run's export, loaded."""
    args, _ = ran
    return Predictor(Path(args.serving_model_dir))


@pytest.fixture(scope="module")
def signatures(predictor):
    """Of that export."""
    return predictor._model.signatures


def test_a_run_learns_writes_its_account_and_removes_its_checkpoint(ran):
    args, reports = ran
    history = read_json(args.model_run_dir, "history.json")
    summary = read_json(args.model_run_dir, "summary.json")
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < history[0]["loss"]
    assert summary["best"] == pytest.approx(max(entry["macro_f1"] for entry in history))
    assert summary["best"] > 0.8
    assert (summary["train_examples"], summary["eval_examples"], summary["replicas"]) == (90, 45, 1)
    # Texts have n % 11 words of two tokens, and two tokens of their own; the longest length is 16.
    assert summary["truncated"] == {"train": 24, "eval": 13}
    told = {values["step"]: values.get("metric") for _, values in reports}  # the last report of each step
    assert [told[6 * epoch] for epoch in range(1, 7)] == [entry["macro_f1"] for entry in history]
    assert os.listdir(args.custom_config["checkpoint_dir"]) == []
    assert {event for event, _ in reports} == {"train"}
    assert reports[-1][1]["step"] == reports[-1][1]["steps"] == 6 * 6
    assert set(reports[-1][1]) == {
        "epoch", "epochs", "step", "steps", "loss", "metric", "texts_per_s", "seconds_left",
    }  # fmt: skip


def events_of(args):
    """By tag, the steps and values of the events that are kept with the model run."""
    found = {}
    for file in Path(args.model_run_dir, "logs").glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                found.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
    return found


def test_tensorboard_shows_the_losses_rates_and_metrics_of_the_run(ran):
    args, _ = ran
    found = events_of(args)
    history = read_json(args.model_run_dir, "history.json")
    timing = {"epoch", "texts_per_s", "seconds"}
    assert set(found) == {"train/loss", "train/learning_rate"} | {f"epoch/{key}" for key in set(history[0]) - timing}
    for key in ("loss", "macro_f1", "accuracy"):
        assert found[f"epoch/{key}"] == [(n, pytest.approx(e[key], rel=1e-6)) for n, e in enumerate(history, 1)]
    steps = [step for step, _ in found["train/loss"]]
    assert (steps == sorted(set(steps)), steps[-1]) == (True, 6 * 6)
    rates = [rate for _, rate in found["train/learning_rate"]]
    assert rates[-1] == pytest.approx(0.01 / 36, rel=0.2), "the last step's, after a linear decay"
    assert max(rates) <= 0.01


@pytest.fixture(scope="module")
def calibrated(make_fn_args, tmp_path_factory):
    """A run on pairs whose probabilities are calibrated: its FnArgs, and the signatures of its export."""
    training = {"calibration": "temperature", "epochs": 5, "learning_rate": 0.05}
    args = make_fn_args(tmp_path_factory.mktemp("calibrated"), pairs=True, training=training)
    run_fn(args)
    return args, tf.saved_model.load(args.serving_model_dir).signatures


@pytest.mark.parametrize(
    ("task", "pairs"),
    [
        ("multiclass", True),
        pytest.param("multilabel", False, marks=pytest.mark.slow),
        pytest.param("binary", True, marks=pytest.mark.slow),
    ],
)
def test_the_export_answers_raw_strings_as_the_trained_model_did(request, fn_args, task, pairs):
    if task == "multiclass":
        args, signatures = request.getfixturevalue("calibrated")
    else:  # the task is in what comes after the encoder
        args = fn_args(task, pairs, encoder={"num_hidden_layers": 0}, training={"epochs": 1})
        run_fn(args)
        signatures = tf.saved_model.load(args.serving_model_dir).signatures
    assert set(signatures) == {
        "serving_default", "serialized_examples", "classify", "tokens", "explain", "transform_features",
    }  # fmt: skip
    labels = args.custom_config["labels"]
    texts = ["a d ad", "", "b" * 300 + " c" * 900, "h", "[SEP] \x00 a"]
    columns = {"text": texts} | ({"text_pair": ["", "c", "b b", "", "a"]} if pairs else {})
    answer = signatures["serving_default"](**{name: tf.constant(values) for name, values in columns.items()})
    assert answer["probabilities"].shape == (5, len(labels))
    assert answer["classes"].numpy().tolist() == [[label.encode() for label in labels]] * 5
    if task == "multilabel":
        bounds = np.array(read_json(args.model_run_dir, "summary.json")["thresholds"], np.float32)
        assert answer["labels"].numpy().tolist() == (answer["probabilities"].numpy() >= bounds).astype(int).tolist()
    else:
        np.testing.assert_allclose(answer["probabilities"].numpy().sum(1), 1, atol=1e-6)
        decided = [labels[n].encode() for n in answer["probabilities"].numpy().argmax(1)]
        assert answer["label"].numpy().tolist() == decided

    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    examples = tf.constant([raw_example(**row) for row in rows])
    parsed = signatures["serialized_examples"](examples=examples)
    np.testing.assert_allclose(parsed["probabilities"], answer["probabilities"], atol=1e-6)
    classified = signatures["classify"](inputs=examples)
    np.testing.assert_allclose(classified["scores"], answer["probabilities"], atol=1e-6)
    assert classified["classes"].numpy().tolist() == answer["classes"].numpy().tolist()
    none = tf.train.Example()
    none.features.feature["text"].bytes_list.SetInParent()
    absent = tf.train.Example()
    empty = signatures["serialized_examples"](examples=tf.constant([e.SerializeToString() for e in (none, absent)]))
    np.testing.assert_allclose(empty["probabilities"][0], empty["probabilities"][1], atol=1e-6)
    two = tf.train.Example()
    two.features.feature["text"].bytes_list.value.extend([b"secret", b"secret"])
    with pytest.raises(tf.errors.InvalidArgumentError, match="text: more than one value in an example") as caught:
        signatures["serialized_examples"](examples=tf.constant([two.SerializeToString()]))
    assert "secret" not in str(caught.value)
    tokens = signatures["tokens"](**{name: tf.constant(values) for name, values in columns.items()})
    lengths = tokens["row_lengths"].numpy()
    assert lengths[2] == 16
    assert lengths.sum() == len(tokens["input_ids"])
    assert tokens["input_ids"].numpy()[[0, lengths[0] - 1]].tolist() == [2, 3]
    explained = signatures["explain"](**{name: tf.constant(values) for name, values in columns.items()})
    assert set(explained) == {*answer, "parts", "starts", "ends"}
    np.testing.assert_allclose(explained["probabilities"], answer["probabilities"], atol=1e-6)
    for name in set(answer) - {"probabilities"}:
        assert explained[name].numpy().tolist() == answer[name].numpy().tolist()
    assert {explained[name].shape for name in ("parts", "starts", "ends")} == {(5, len(labels), 5)}
    assert np.all(explained["ends"].numpy() < lengths[:, None, None])
    none = signatures["explain"](**{name: tf.constant([], tf.string) for name in columns})
    assert none["parts"].shape == (0, len(labels), 5)


def test_the_export_is_calibrated_as_the_summary_says(calibrated, eval_rows):
    args, signatures = calibrated
    found = read_json(args.model_run_dir, "summary.json")["calibration"]
    assert found["temperature"] != 1
    assert found["loss_after"] < found["loss_before"]
    rows = eval_rows(pairs=True)
    columns = {name: tf.constant([row[name][0] for row in rows]) for name in ("text", "text_pair")}
    answer = signatures["serving_default"](**columns)
    true = answer["classes"].numpy() == np.array([row["label"] for row in rows])
    assert -np.log(answer["probabilities"].numpy()[true]).mean() == pytest.approx(found["loss_after"], abs=1e-5)


def test_check_json_holds_the_trained_models_own_answers(ran, signatures):
    args, _ = ran
    check = read_json(args.model_run_dir, "check.json")
    assert set(check) == {"split", "keys", "probabilities"}
    assert check["split"] == "eval"
    assert not os.path.exists(float32_dir(args.serving_model_dir))  # nothing else was exported
    assert len(set(check["keys"])) == len(check["keys"]) > 20
    by_key = dict(zip(check["keys"], check["probabilities"], strict=True))
    files = tf.io.gfile.glob(args.eval_files[0])
    spec = {"key": tf.io.FixedLenFeature([], tf.int64), "length": tf.io.FixedLenFeature([], tf.int64)}
    keys = {
        int(tf.io.parse_single_example(record, spec)["key"])
        for record in tf.data.TFRecordDataset(files, compression_type="GZIP")
    }
    assert set(by_key) <= keys
    # the empty text is among the evaluated ones, and the export must give it the same answer
    text = "b" + "e"
    texts = ["", *[" ".join([text] * n) for n in range(1, 11)]]
    shared = [t for t in texts if int(text_key(tf.constant([t]), None)[0]) in by_key]
    assert shared
    found = signatures["serving_default"](text=tf.constant(shared))["probabilities"].numpy()
    expected = [by_key[int(text_key(tf.constant([t]), None)[0])] for t in shared]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_an_explanation_is_of_the_texts_own_words_by_label(ran, predictor, signatures):
    args, _ = ran
    carried = [token.decode() for token in predictor._model.vocabulary().numpy()]
    assert carried == read_tokens(args.custom_config["vocab_file"])
    texts = ["h ae h", "", "bd bd ce"]
    told = predictor.ngrams(texts)
    explain = signatures["explain"]
    together = explain(text=tf.constant(texts))
    for row, text in enumerate(texts):
        alone = explain(text=tf.constant([text]))
        np.testing.assert_allclose(together["parts"][row], alone["parts"][0], rtol=0, atol=1e-5)
        for name in ("starts", "ends", "label"):
            np.testing.assert_array_equal(together[name][row], alone[name][0])
    for text, ngrams in zip(texts, told, strict=True):
        assert list(ngrams) == ["LOW", "MIDDLE", "HIGH"]
        for ranked in ngrams.values():
            assert [part for _, part in ranked] == sorted((part for _, part in ranked), reverse=True)
            assert bool(ranked) is bool(text)
            for ngram, _ in ranked:  # put together from word pieces; one may begin within a word
                assert ngram.removeprefix("##") in text


def test_the_encoder_stands_in_the_graph_once(ran):
    args, _ = ran
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((Path(args.serving_model_dir) / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    operations = [node.op for function in functions for node in function.node_def]
    assert operations.count("FusedBatchNormV3") == 3  # the norms of the embeddings and of one layer, of several texts


def test_transform_features_gives_labels_and_lengths_for_evaluation(signatures):
    features = signatures["transform_features"]
    found = features(examples=tf.constant([raw_example(text="a b", label="HIGH"), raw_example(text="", label="LOW")]))
    assert {name: value.numpy().tolist() for name, value in found.items()} == {
        "label": [2, 0],
        "length": [4, 2],
        "truncated": [0, 0],
    }


def test_classify_has_tensorflow_servings_method_name(ran):
    args, _ = ran
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((Path(args.serving_model_dir) / "saved_model.pb").read_bytes())
    (graph,) = saved.meta_graphs
    assert graph.signature_def["classify"].method_name == "tensorflow/serving/classify"
    assert graph.signature_def["serving_default"].method_name == "tensorflow/serving/predict"
    operations = {node.op for node in graph.graph_def.node}
    operations |= {node.op for function in graph.graph_def.library.function for node in function.node_def}
    assert not operations & {"PyFunc", "EagerPyFunc", "PyFuncStateless"}


def test_long_and_short_texts_together_are_answered_in_chunks_alike(signatures):
    serve = signatures["serving_default"]
    texts = ["a", "", "c " * 40, "b c", "d " * 9, "h " * 12, "a b c"]
    together = serve(text=tf.constant(texts))["probabilities"].numpy()
    alone = np.concatenate([serve(text=tf.constant([text]))["probabilities"].numpy() for text in texts])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    assert serve(text=tf.constant([], tf.string))["probabilities"].shape == (0, 3)


def test_two_runs_with_one_seed_are_the_same_to_the_bit(ran, fn_args, weights_alone, tmp_path):
    run_fn(fn_args(training=EPOCHS))
    assert_same_weights(ran[0].serving_model_dir, tmp_path / "export")


@pytest.mark.slow
def test_another_seed_gives_another_model(ran, fn_args, weights_alone, tmp_path):
    run_fn(fn_args(training={**EPOCHS, "seed": 2}))
    with pytest.raises(AssertionError):
        assert_same_weights(ran[0].serving_model_dir, tmp_path / "export")


_KILLED = """
import json, os, pickle, signal, sys
from components import progress
from components.trainer import loop
from components.trainer.run_fn import run_fn

loop._REPORT_SECONDS = 0.0
args = pickle.load(open(sys.argv[1], "rb"))

def train_until(step):
    steps = []

    def kill(event, values):
        steps.append(values["step"])
        if values["step"] == step:
            print(steps[0], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    with progress.listening(kill):
        run_fn(args)

for step in json.loads(sys.argv[2]):  # each in a fork, so that TensorFlow is imported once; it has not started yet
    pid = os.fork()
    if pid == 0:
        train_until(step)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
"""


@pytest.mark.slow
def test_a_run_killed_twice_goes_on_to_the_same_bits(ran, fn_args, weights_alone, every_step, tmp_path):
    whole, _ = ran
    args = fn_args(folder=tmp_path / "killed", training=EPOCHS)
    (tmp_path / "args.pickle").write_bytes(pickle.dumps(args))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    # Inside the first epoch and inside the second; each goes on from the checkpoint before, not from the start.
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "args.pickle"), "[5, 8]"]
    killed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == 0, killed.stderr.decode()[-2000:]
    assert killed.stdout.split() == [b"1", b"5"]
    steps = []
    args.model_run_dir = str(tmp_path / "another run")  # as TFX gives each execution its own
    with progress.listening(lambda event, values: steps.append(values["step"])):
        run_fn(args)
    assert min(steps) == 7
    first, second = ({tag: set(points) for tag, points in events_of(a).items()} for a in (whole, args))
    assert first == second, "with what the killed tries had written"
    assert_same_weights(whole.serving_model_dir, tmp_path / "killed" / "export")
    first, second = (read_json(a.model_run_dir, "history.json") for a in (whole, args))
    timing = {"seconds", "texts_per_s"}
    assert [{k: v for k, v in e.items() if k not in timing} for e in first] == [
        {k: v for k, v in e.items() if k not in timing} for e in second
    ]


class Stop(Exception):
    """In the place of a kill."""


@pytest.fixture(scope="module")
def checkpoints(make_fn_args, tmp_path_factory):
    """The folder of checkpoints of a run that was stopped at its third step."""

    def stop(event, values):
        if values["step"] == 3:
            raise Stop

    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_REPORT_SECONDS", 0.0)
        with pytest.raises(Stop), progress.listening(stop):
            run_fn(make_fn_args(folder))
    return folder / "checkpoints"


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(checkpoints, fn_args, every_step, tmp_path):
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    steps = []

    def stop(event, values):
        steps.append(values["step"])
        raise Stop

    for rate in (0.01, 0.02):
        with pytest.raises(Stop), progress.listening(stop):
            run_fn(fn_args(training={"learning_rate": rate}))
    assert steps == [3, 1]


def test_training_stops_when_the_metric_no_longer_rises_and_keeps_the_best(fn_args, weights_alone):
    args = fn_args(training={"epochs": 9, "patience": 2, "learning_rate": 1e-12})
    run_fn(args)
    summary = read_json(args.model_run_dir, "summary.json")
    assert (summary["best_epoch"], summary["epochs"]) == (1, 3)


def test_what_trained_in_mixed_precision_is_exported_in_float32(fn_args, weights_alone, monkeypatch):
    loops, plain = [], []

    class Kept(loop.Loop):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            loops.append(self)

    def copy(*arguments):
        plain.append(original(*arguments))
        return plain[0]

    original = fit._plain_copy
    monkeypatch.setattr(fit, "Loop", Kept)
    monkeypatch.setattr(fit, "_plain_copy", copy)
    monkeypatch.setattr(fit, "has_bfloat16", lambda: True)
    args = fn_args(training={"mixed_precision": True, "epochs": 1})
    run_fn(args)
    assert read_json(args.model_run_dir, "summary.json")["mixed_precision"] is True
    trained, copied = loops[0].model, plain[0]
    assert (trained.encoder.compute_dtype, copied.encoder.compute_dtype) == ("bfloat16", "float32")
    assert {layer.compute_dtype for layer in copied._flatten_layers()} == {"float32"}
    for own, value in zip(trained.weights, copied.weights, strict=True):
        np.testing.assert_array_equal(own.numpy(), value.numpy())
    exported = [value for value in weights_of(args.serving_model_dir).values() if value.dtype.kind == "f"]
    assert {value.dtype for value in exported} == {np.dtype(np.float32)}
    assert len(exported) == len(copied.weights)


def test_a_text_longer_than_the_encoders_positions_is_refused_beforehand(fn_args):
    args = fn_args(encoder={"max_position_embeddings": 15})
    with pytest.raises(ConfigError, match="16 tokens, but the encoder has positions for 15"):
        run_fn(args)


def test_a_damaged_checkpoint_is_named(checkpoints, fn_args, tmp_path):
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/checkpoint.npz")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz"):
        run_fn(fn_args())
