"""What is measured of the live version; TFDV's and the model's own parts are marked slow."""

import datetime as dt
import random
from threading import Event

import pytest

from components.errors import PipelineError
from components.examples.rows import Row
from pipeline.config import load_config
from pipeline.retraining import measure, measure_process, observe
from pipeline.retraining.decision import Span

YES, NO = ("yes",), ("no",)


@pytest.mark.parametrize(
    ("name", "truth", "predicted", "value"),
    [
        ("accuracy", [YES, NO, YES, YES], [YES, NO, NO, YES], 0.75),
        ("micro_f1", [YES, NO, YES, YES], [YES, NO, NO, YES], 0.75),
        ("macro_f1", [YES, NO, YES, YES], [YES, NO, NO, YES], (2 / 3 + 4 / 5) / 2),
        ("weighted_f1", [YES, NO, YES, YES], [YES, NO, NO, YES], (2 / 3 + 3 * 4 / 5) / 4),
        ("accuracy", [("yes", "no"), ()], [("no", "yes"), YES], 0.5),
        ("macro_f1", [YES, YES], [YES, YES], 0.5),
    ],
)
def test_metric(name, truth, predicted, value) -> None:
    assert measure.metric(name, ["no", "yes"], truth, predicted) == pytest.approx(value)


def row(number: int, text: bytes = b"a", label: bytes = b"yes") -> Row:
    return Row(number, text, None, (label,), None, ())


def test_sample_is_the_same_each_time_and_reaches_over_all_rows() -> None:
    rows = [row(number) for number in range(1000)]
    kept = measure.sample(iter(rows), 100)
    assert kept == measure.sample(iter(rows), 100)
    assert len({item.line for item in kept}) == 100
    assert 350 < sum(item.line for item in kept) / 100 < 650
    assert measure.sample(iter(rows[:7]), 100) == rows[:7]


@pytest.mark.slow
def test_rows_that_the_live_version_has_learned_from_are_not_fresh(project) -> None:
    assert [item.text for item in measure.fresh_rows(project.config, 0, seen=False)] == [b"a 0 1 train", b"a 0 1 dev"]
    assert [item.text for item in measure.fresh_rows(project.config, 0, seen=True)] == [b"a 0 1 dev"]


@pytest.mark.slow
def test_of_rows_that_are_split_by_hash_those_of_the_evaluated_split_are_fresh(make_project) -> None:
    from components.examples.ingest import split_of

    project = make_project('data.splits={ all = "span-{SPAN}/v{VERSION}/train.csv" }')
    texts = [f"text {number}" for number in range(100)]
    path = project.folder / "rows" / "span-0" / "v1" / "train.csv"
    path.write_text("text,label\n" + "".join(f"{text},yes\n" for text in texts))
    shares = (("train", 8), ("eval", 1), ("test", 1))
    evaluated = [text.encode() for text in texts if split_of(text.encode(), shares) == "eval"]
    assert 0 < len(evaluated) < 50
    assert [item.text for item in measure.fresh_rows(project.config, 0, seen=True)] == evaluated
    assert len(list(measure.fresh_rows(project.config, 0, seen=False))) == 100


def test_rule_that_cannot_be_measured_leaves_the_others_and_no_text(make_project, monkeypatch, caplog) -> None:
    project = make_project("schedule.drift=0.2", "schedule.min_score=0.3")
    text = " ".join(["a", "patient"])

    def broken(*arguments):
        raise ValueError(text)

    monkeypatch.setattr(measure, "labelled_rows", lambda *arguments: iter(()))
    monkeypatch.setattr(measure, "score", broken)
    monkeypatch.setattr(measure, "training_statistics", lambda *arguments: None)
    monkeypatch.setattr(measure, "drift", lambda *arguments: {"label": 0.1})
    found = measure.measure(project.config, 7, 0, "d")
    drift = {"rule": "drift", "live": 7, "evidence": "d", "value": 0.1, "what": "label"}
    assert found == {"measurements": [drift], "errors": {"score": "ValueError; see the log of the measuring"}}
    assert "in broken" in caplog.text
    assert text not in caplog.text

    def gone(*arguments):
        raise PipelineError("the statistics are gone")

    monkeypatch.setattr(measure, "score", lambda *arguments: 0.5)
    monkeypatch.setattr(measure, "training_statistics", gone)
    found = measure.measure(project.config, 7, 0, "d")
    assert [(item["rule"], item["value"]) for item in found["measurements"]] == [("score", 0.5)]
    assert found["errors"] == {"drift": "the statistics are gone"}


@pytest.mark.parametrize(
    ("printed", "rules", "said"),
    [
        ({"measurements": [{"rule": "score", "live": 7, "evidence": "d", "value": 0.5, "what": "macro_f1"}],
          "errors": {"drift": "the statistics are gone"}}, ["score"], "not measured: drift: the statistics are gone"),
        ({"status": "failed", "error": "took longer than 9 s"}, [],
         "not measured: drift and score: took longer than 9 s"),
    ],
)  # fmt: skip
def test_process_has_its_time_and_what_it_did_not_measure_is_said(
    tmp_path, monkeypatch, caplog, printed, rules, said
) -> None:
    def run_json(command, log, stop, timeout_s=None):
        assert (command[-1], timeout_s) == ("--digest=d", 9.0)
        return printed

    monkeypatch.setattr(measure_process, "run_json", run_json)
    process = measure_process.MeasureProcess(tmp_path / "c.toml", (), tmp_path / "log", 9.0)
    span = Span(1, None, "d", dt.datetime(2026, 11, 1, tzinfo=dt.UTC))
    assert [item.rule for item in process(7, (span,), Event())] == rules
    assert said in caplog.text


def test_statistics_that_are_gone_are_named(project) -> None:
    with pytest.raises(PipelineError, match="statistics of the live version's training data are not in"):
        measure.training_statistics(project.config, {})


def test_score_without_rows_is_named(project) -> None:
    with pytest.raises(PipelineError, match="no good row to score on"):
        measure.score(project.config, 1, [])


def test_serving_drift_needs_a_log(project) -> None:
    from components.errors import ConfigError

    with pytest.raises(ConfigError, match=r"name the server's request log in validation\.serving_logs"):
        load_config(project.folder / "c.toml", ["schedule.serving_drift=0.1"])


@pytest.mark.slow
def test_drift_is_tfdvs_distance_of_labels_and_lengths(project) -> None:
    dice = random.Random(1)

    def rows(yes: float, words: int) -> list[Row]:
        return [
            row(n, b" ".join([b"aspirin"] * dice.randint(1, words)), b"yes" if dice.random() < yes else b"no")
            for n in range(2000)
        ]

    training = measure._statistics(project.config, rows(0.5, 10))
    same = measure.drift(project.config, training, rows(0.5, 10))
    shifted = measure.drift(project.config, training, rows(0.8, 10))
    longer = measure.drift(project.config, training, rows(0.5, 40))
    assert set(same) == {"label", "tokens"}
    assert same["label"] < 0.05
    assert same["tokens"] < 0.05
    assert shifted["label"] == pytest.approx(0.3, abs=0.05)
    assert longer["tokens"] > 0.2
    assert longer["label"] < 0.05


@pytest.mark.slow
def test_serving_drift_is_of_the_logged_texts(project) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    def write_log(words: int) -> None:
        with tf.io.TFRecordWriter(str(project.folder / "requests.tfrecord")) as writer:
            for number in range(500):
                log = prediction_log_pb2.PredictionLog()
                text = " ".join(["aspirin"] * (1 + number % words))
                log.predict_log.request.inputs["text"].CopyFrom(tf.make_tensor_proto([text], tf.string))
                writer.write(log.SerializeToString())

    write_log(10)
    config = load_config(
        project.folder / "c.toml",
        [f"validation.serving_logs={project.folder}/requests.tfrecord", "schedule.serving_drift=0.1"],
    )
    rows = [row(n, b" ".join([b"aspirin"] * (1 + n % 10))) for n in range(500)]
    training = measure._statistics(config, rows)
    same, before = measure.serving_drift(config, training), observe.logs_digest(config)
    write_log(40)
    longer, after = measure.serving_drift(config, training), observe.logs_digest(config)
    assert set(same) == set(longer) == {"tokens"}
    assert same["tokens"] < 0.05
    assert longer["tokens"] > 0.2
    assert before != after
