"""The whole step on toy models: figures against scikit-learn, slices, gates, blessing, and what must not leak."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    multilabel_confusion_matrix,
    precision_recall_fscore_support,
)

from components.config import EvaluationConfig, Gate
from components.errors import DataError, ServingError
from components.evaluation import executor, extract
from components.evaluation.eval_config import length_slice, make_eval_config

FOUR = ("A", "B", "C", "never")
AVERAGES = ("macro", "micro", "weighted")


def texts(count):
    """Distinct texts of 1 to 40 characters, which the toy model counts as tokens."""
    return [f"{i:03d}" + "x" * (i % 38) for i in range(count)]


def of_rows(labels, decided, names):
    return {"labels": list(range(len(names))), "zero_division": 0}, np.asarray(labels), np.asarray(decided)


def assert_figures(metrics, labels, decided, names):
    options, labels, decided = of_rows(labels, decided, names)
    model = metrics["model"]
    assert model["accuracy"]["value"] == pytest.approx(accuracy_score(labels, decided), abs=1e-8)
    for average in AVERAGES:
        expected = f1_score(labels, decided, average=average, **options)
        assert model[f"{average}_f1"]["value"] == pytest.approx(expected, abs=1e-8)
    by_label = np.array(precision_recall_fscore_support(labels, decided, **options))
    for i, name in enumerate(names):
        found = [metrics["per_label"][name][measure] for measure in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx(by_label[:, i].tolist(), abs=1e-8)


@pytest.fixture(scope="module")
def multiclass(workshop, probabilities):
    """90 rows of three labels, a fourth that never occurs; a candidate, and a better blessed model."""
    names = texts(90)
    labels = np.random.default_rng(0).integers(0, 3, 90)
    weak, strong = probabilities(1, 90, 4), probabilities(2, 90, 4)
    strong[np.arange(90), labels] += 1.0
    strong /= strong.sum(1, keepdims=True)
    rows = [
        {"text": text, "label": FOUR[label], "journal": "J" + str(i % 2), "year": [] if i < 50 else "1999"}
        for i, (text, label) in enumerate(zip(names, labels, strict=True))
    ]
    train = [{"text": f"word{label} filler", "label": FOUR[label]} for label in (0, 1, 2)] * 3
    examples = workshop.examples({"train": train, "eval": train[:3], "test": rows})
    model = workshop.model(dict(zip(names, weak.tolist(), strict=True)), FOUR)
    blessed = workshop.model(dict(zip(names, strong.tolist(), strict=True)), FOUR)
    config = EvaluationConfig(
        length_bounds=(10, 20),
        bootstrap_samples=50,
        paired_samples=100,
        gates=(
            Gate(min=0.99),
            Gate(metric="calibration_error", max=0.001),
            Gate(metric="accuracy", min_gain_over_baseline=0.9),
            Gate(min_gain_over_blessed=0.0),
            Gate(label="B", measure="recall", min=0.0),
        ),
    )
    run = lambda: workshop.evaluate(  # noqa: E731
        examples, model, "multiclass", FOUR, config, blessed=blessed, slices=("journal", "year")
    )
    return SimpleNamespace(
        labels=labels, weak=weak, strong=strong, rows=rows, run=run, result=run(), names=names, model=model,
        blessed=blessed,
    )  # fmt: skip


def test_multiclass_figures_are_those_of_the_most_probable_label(multiclass):
    metrics = multiclass.result.metrics
    decided = multiclass.weak.argmax(1)
    assert metrics["examples"] == 90
    assert metrics["split"] == "test"
    assert_figures(metrics, multiclass.labels, decided, FOUR)
    assert metrics["confusion"] == confusion_matrix(multiclass.labels, decided, labels=[0, 1, 2, 3]).tolist()
    assert metrics["per_label"]["never"]["pr_auc"] is None
    assert metrics["blessed"]["macro_f1"] == pytest.approx(
        f1_score(multiclass.labels, multiclass.strong.argmax(1), average="macro", labels=[0, 1, 2, 3]), abs=1e-8
    )
    confidence, right = multiclass.weak.max(1), decided == multiclass.labels
    bins = (confidence.astype(float) * 15).astype(int)
    expected = sum(abs((confidence - right)[bins == b].sum()) for b in range(15)) / 90
    assert metrics["model"]["calibration_error"]["value"] == pytest.approx(expected, abs=1e-6)
    assert sum(part["count"] for part in metrics["calibration"]) == 90


def test_intervals_hold_the_figures(multiclass):
    for figure in multiclass.result.metrics["model"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    paired = multiclass.result.metrics["paired"]
    model, baseline = multiclass.result.metrics["model"], multiclass.result.metrics["baseline"]
    for metric in ("macro_f1", "accuracy"):
        assert paired[metric]["difference"] == pytest.approx(model[metric]["value"] - baseline[metric], abs=1e-8)
        assert paired[metric]["low"] <= paired[metric]["difference"] <= paired[metric]["high"]


def test_slices_are_by_label_length_and_column(multiclass):
    slices = {part["slice"]: part for part in multiclass.result.metrics["slices"]}
    decided, labels = multiclass.weak.argmax(1), multiclass.labels
    lengths = np.array([len(text) for text in multiclass.names])
    assert multiclass.result.metrics["truncated"] == (lengths > 20).sum() > 0  # so says the model of these tests
    index = np.arange(90)
    members = {
        "label=A": labels == 0,
        "label=B": labels == 1,
        "label=C": labels == 2,
        "length=1-10": lengths <= 10,
        "length=11-20": (lengths > 10) & (lengths <= 20),
        "length=21+": lengths > 20,
        "journal=J0": index % 2 == 0,
        "journal=J1": index % 2 == 1,
        "year=1999": index >= 50,
    }
    assert list(slices) == [*list(members)[:6], "journal=J0", "journal=J1", "year=1999"]
    for name, member in members.items():
        metrics = slices[name]["metrics"]
        assert slices[name]["examples"] == member.sum()
        assert (sorted(metrics) == ["accuracy", "calibration_error"]) is name.startswith("label=")
        assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(labels[member], decided[member]), abs=1e-8)
        if name.startswith("label="):
            continue
        expected = f1_score(labels[member], decided[member], average="macro", labels=[0, 1, 2, 3], zero_division=0)
        assert metrics["macro_f1"]["value"] == pytest.approx(expected, abs=1e-8)
        assert metrics["macro_f1"]["low"] <= metrics["macro_f1"]["value"] <= metrics["macro_f1"]["high"]


def test_a_model_below_its_bounds_is_not_blessed_and_the_gates_say_why(multiclass):
    result = multiclass.result
    assert result.files == ["NOT_BLESSED"]
    assert result.blessing.get_int_custom_property("blessed") == 0
    assert result.blessing.get_string_custom_property("current_model") == multiclass.model.uri
    assert result.blessing.get_string_custom_property("baseline_model") == multiclass.blessed.uri
    assert result.gates["blessed"] is False
    found = [(gate["kind"], gate["metric"], gate["label"], gate["passed"]) for gate in result.gates["gates"]]
    assert found == [
        ("min", "macro_f1", None, False),
        ("max", "calibration_error", None, False),
        ("baseline", "accuracy", None, False),
        ("blessed", "macro_f1", None, False),
        ("min", "recall", "B", True),
    ]
    message = result.blessing.get_string_custom_property("blessing_message")
    assert message.split("; ") == [gate["message"] for gate in result.gates["gates"] if not gate["passed"]]
    assert message.startswith("macro_f1 0.")
    assert "is below its bound 0.990" in message


def test_the_same_inputs_give_the_same_numbers(multiclass):
    again = multiclass.run()
    assert again.metrics == multiclass.result.metrics
    assert again.gates == multiclass.result.gates


def test_predictions_are_kept_without_texts(multiclass):
    (file,) = multiclass.result.folder.glob("predictions-*.parquet")
    table = pq.read_table(file)
    assert table.column_names == [
        "row", "truncated", "truth", "slices", "candidate.probabilities", "candidate.decision",
        "baseline.probabilities", "baseline.decision",
    ]  # fmt: skip
    assert table.num_rows == 90
    found = {tuple(np.float32(p)) for p in table["candidate.probabilities"].to_pylist()}
    assert found == {tuple(p) for p in multiclass.weak}


def test_tfma_reads_its_own_results(multiclass):
    result = tfma.load_eval_result(str(multiclass.result.folder), model_name="candidate")
    assert ((("label", "B"),)) in result.get_slice_names()
    overall = result.get_metrics_for_slice()
    assert overall["macro_f1"]["doubleValue"] == pytest.approx(multiclass.result.metrics["model"]["macro_f1"]["value"])
    entries = overall["confusion_matrix"]["multiClassConfusionMatrixAtThresholds"]["matrices"][0]["entries"]
    assert sum(entry["numWeightedExamples"] for entry in entries) == 90


def test_a_binary_model_that_holds_its_gates_is_blessed(workshop, probabilities):
    names, labels = texts(60), np.random.default_rng(5).integers(0, 2, 60)
    said = probabilities(6, 60, 2, 1.0)
    said[np.arange(60), labels] += 0.5
    said /= said.sum(1, keepdims=True)
    rows = [{"text": t, "text_pair": "p", "label": ("no", "yes")[y]} for t, y in zip(names, labels, strict=True)]
    examples = workshop.examples({"train": rows[:40], "eval": rows})
    model = workshop.model(dict(zip(names, said.tolist(), strict=True)), ("no", "yes"))
    gates = (
        Gate(min=0.5, min_gain_over_baseline=-1.0, min_gain_over_blessed=0.0),
        Gate(metric="pr_auc", min=0.5),
    )
    config = EvaluationConfig(split="eval", gates=gates, bootstrap_samples=0, length_bounds=(), paired_samples=10)
    result = workshop.evaluate(examples, model, "binary", ("no", "yes"), config, pairs=True)
    assert result.files == ["BLESSED"]
    assert result.blessing.get_int_custom_property("blessed") == 1
    assert result.blessing.get_string_custom_property("blessing_message") == "every gate holds"
    assert result.gates["blessed"] is True
    notes = [gate["message"] for gate in result.gates["gates"] if gate["kind"] == "blessed"]
    assert [note.partition(": ")[2] for note in notes] == ["there is no blessed model to compare with yet"]
    assert_figures(result.metrics, labels, said.argmax(1), ("no", "yes"))
    assert result.metrics["model"]["pr_auc"]["value"] == result.metrics["per_label"]["yes"]["pr_auc"]
    assert result.metrics["model"]["macro_f1"]["low"] is None
    assert result.metrics["blessed"] is None
    assert result.metrics["baseline_rows"] == {"train": 40, "used": 40}
    assert [part["slice"] for part in result.metrics["slices"]] == ["label=no", "label=yes"]


def test_rows_with_several_labels_are_scored_on_the_models_own_mask(workshop, probabilities):
    names = ("a", "b", "c")
    generator = np.random.default_rng(8)
    said, truth = generator.random((50, 3)).astype(np.float32), generator.random((50, 3)) < 0.4
    thresholds = (0.2, 0.5, 0.8)
    rows = [
        {"text": text, "id": text[:2], "labels": [name for name, true in zip(names, row, strict=True) if true]}
        for text, row in zip(texts(50), truth, strict=True)
    ]
    examples = workshop.examples({"train": rows[:5], "eval": rows[:5], "test": rows})
    model = workshop.model(dict(zip(texts(50), said.tolist(), strict=True)), names, thresholds)
    config = EvaluationConfig(baseline=False, gates=(), bootstrap_samples=20)
    result = workshop.evaluate(examples, model, "multilabel", names, config)
    decided = said >= np.array(thresholds, np.float32)
    assert_figures_of_masks(result.metrics, truth, decided, names)
    assert result.files == ["BLESSED"]
    assert [result.metrics[name] for name in ("baseline", "paired", "blessed")] == [None] * 3
    assert result.metrics["confusion"] == multilabel_confusion_matrix(truth, decided).tolist()
    by_document = [mask.reshape(5, 10, 3).any(1) for mask in (truth, decided)]
    mean = [(by_document[0] & by_document[1]).sum(1) / mask.sum(1) for mask in by_document]
    recall, precision = np.mean(mean, axis=1)
    figure = result.metrics["documents"]["model"]
    assert figure["value"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-8)
    assert figure["low"] <= figure["value"] <= figure["high"]
    slices = {part["slice"]: part["examples"] for part in result.metrics["slices"]}
    assert [slices[f"label={name}"] for name in names] == truth.sum(0).tolist()


def assert_figures_of_masks(metrics, truth, decided, names):
    assert metrics["model"]["accuracy"]["value"] == pytest.approx(accuracy_score(truth, decided), abs=1e-8)
    for average in AVERAGES:
        expected = f1_score(truth, decided, average=average, zero_division=0)
        assert metrics["model"][f"{average}_f1"]["value"] == pytest.approx(expected, abs=1e-8)
    f1 = f1_score(truth, decided, average=None, zero_division=0)
    assert [metrics["per_label"][name]["f1"] for name in names] == pytest.approx(f1.tolist(), abs=1e-8)


@pytest.fixture(scope="module")
def window(workshop):
    """Spans 2, 9, 10 and 11: the model is wrong on all of span 2 (10 rows) and on half of span 9 (40 rows)."""
    names = ("A", "B", "C")
    tests, answers = {}, {}
    for span, rows in ((2, 10), (9, 40), (10, 40), (11, 40)):
        tests[span] = [
            {"text": f"{span} {i}", "label": "C" if span == 11 and i < 5 else "AB"[i % 2]} for i in range(rows)
        ]
        for i, row in enumerate(tests[span]):
            right = not (span == 2 or (span == 9 and i < 20))
            decided = row["label"] if right else "B" if row["label"] == "A" else "A"
            answers[row["text"]] = [0.8 if name == decided else 0.1 for name in names]
    truth = {row["text"]: [0.8 if name == row["label"] else 0.1 for name in names] for r in tests.values() for row in r}
    examples = workshop.window([{"text": f"word{i % 3}", "label": names[i % 3]} for i in range(9)], tests)
    model, blessed = workshop.model(answers, names), workshop.model(truth, names)
    gates = (
        Gate(metric="accuracy", min=0.6, min_gain_over_blessed=-0.4, min_gain_over_baseline=-1.0),
        Gate(label="C", measure="recall", min=1.0),
    )
    config = EvaluationConfig(gates=gates, bootstrap_samples=0, paired_samples=10, min_span_rows=20)
    analyse, paths = executor.Executor._analyse, []

    def once(self, files, models, eval_config, scoring, path):  # nothing in it is of the guard
        if paths:
            shutil.copytree(paths[0], path, dirs_exist_ok=True)
        else:
            analyse(self, files, models, eval_config, scoring, path)
            paths.append(path)

    def evaluate(guard):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executor.Executor, "_analyse", once)
            return workshop.evaluate(examples, model, "multiclass", names, config, blessed=blessed, guard=guard)

    return evaluate


def test_gates_hold_on_the_old_spans_too_where_they_are_guarded(window):
    result = window(True)
    assert result.files == ["NOT_BLESSED"]
    found = {gate["gate"]: (round(gate["value"], 3), gate["passed"]) for gate in result.gates["gates"]}
    bounds = ("accuracy >= 0.6", "accuracy >= baseline - 1", "accuracy >= blessed - 0.4")
    assert found == {
        **dict.fromkeys(bounds, (0.769, True)),
        "recall of C >= 1": (1.0, True),  # there is none in the old spans, where it is not judged
        **{f"{bound} on the old spans": (0.667, True) for bound in bounds},
        "accuracy >= 0.6 on span 9": (0.5, False),
        "accuracy >= baseline - 1 on span 9": (0.5, True),
        "accuracy >= blessed - 0.4 on span 9": (0.5, False),
        **{f"{bound} on span 10": (1.0, True) for bound in bounds},
    }
    message = result.blessing.get_string_custom_property("blessing_message")
    assert message.startswith("on span 9, accuracy 0.500 is below its bound 0.600; on span 9, accuracy 0.500 is below")


def test_figures_of_every_span_of_a_window_are_reported(window):
    result = window(False)
    assert result.files == ["BLESSED"]
    assert len(result.gates["gates"]) == 4
    slices = {part["slice"]: part for part in result.metrics["slices"] if part["slice"].startswith("span=")}
    found = {name: (part["examples"], round(part["metrics"]["accuracy"]["value"], 3)) for name, part in slices.items()}
    assert list(found.items()) == [
        ("span=old", (90, 0.667)), ("span=2", (10, 0.0)), ("span=9", (40, 0.5)), ("span=10", (40, 1.0)),
        ("span=11", (40, 1.0)),
    ]  # fmt: skip


def test_no_text_is_in_the_error_or_the_log_when_an_example_cannot_be_read(workshop, multiclass, caplog, capfd):
    secret = "Mrs Secret of Nowhere Street"
    row = {"text": "Mr Secret", "label": "A"}
    examples = workshop.examples(
        {"train": [row], "eval": [row], "test": [row, b"\n\x7f" + secret.encode()]}
    )  # cut short
    config = EvaluationConfig(baseline=False, gates=())
    with caplog.at_level(logging.INFO), pytest.raises(Exception, match="failed on 2 rows") as caught:
        workshop.evaluate(examples, multiclass.model, "multiclass", FOUR, config)
    said, error = [caplog.text, *capfd.readouterr()], caught.value
    while error is not None:
        said.append(repr(error))
        error = error.__cause__ or error.__context__
    assert not [text for text in said if "Secret" in text]


def loaded(model):
    return tf.saved_model.load(model.uri + "/Format-Serving")


def scoring(task="multiclass", labels=FOUR):
    config = make_eval_config(EvaluationConfig(), task, labels, ())
    return extract.Scoring(task, labels, (), (), {"": config.model_specs[0]})


def record(**row):
    found = tf.train.Example()
    for name, value in row.items():
        found.features.feature[name].bytes_list.value.append(value.encode())
    return found.SerializeToString()


def test_an_answer_that_is_not_a_number_is_an_error(workshop):
    model = loaded(workshop.model({"x": [0.5, float("nan"), 0.2, 0.3], "y": [0.1, 0.2, 0.3, 0.4]}, FOUR))
    with pytest.raises(ServingError, match="not numbers in 1 of 2 rows"):
        extract.ask(model, scoring(), "", [record(text="x"), record(text="y")])


def test_a_model_of_other_labels_is_an_error(workshop):
    model = loaded(workshop.model({"x": [0.5, 0.5]}, ("A", "B")))
    with pytest.raises(ServingError, match="2 probabilities a row; there are 4 labels"):
        extract.ask(model, scoring(), "", [record(text="x")])
    model = loaded(workshop.model({"x": [0.1, 0.2, 0.3, 0.4]}, ("A", "B", "C", "D")))
    with pytest.raises(ServingError, match="decides for labels that the configuration does not have"):
        extract.ask(model, scoring(), "", [record(text="x")])
    with pytest.raises(ServingError, match="Transform gives labels that the configuration does not have"):
        extract.features(model, scoring(), "", [record(text="x", label="E")])


def test_a_missing_signature_is_named(workshop):
    module = tf.Module()
    path = workshop.folder()
    tf.saved_model.save(module, path, signatures={})
    with pytest.raises(ServingError, match="no signature serialized_examples"):
        extract.ask(tf.saved_model.load(path), scoring(), "", [record(text="x")])


def test_a_blessed_model_of_other_labels_is_not_compared_with(workshop, multiclass):
    other = workshop.model({"x": [0.5, 0.5]}, ("A", "B"))
    found = executor._find_blessed([other], None, scoring(), record(text="x"))
    assert (found.path, found.problem) == (None, None)
    assert found.note == "the latest blessed model has other labels, so there is nothing to compare with"
    found = executor._find_blessed([multiclass.blessed], None, scoring(), record(text=multiclass.names[0]))
    assert found.path == multiclass.blessed.uri + "/Format-Serving"


def test_a_live_version_of_another_pipeline_root_is_compared_with(workshop, multiclass, tmp_path: Path):
    def find():
        return executor._find_blessed([], str(tmp_path), scoring(), record(text=multiclass.names[0]))

    assert find() == executor._Blessed()
    shutil.copytree(multiclass.model.uri + "/Format-Serving", tmp_path / "3")
    assert find() == executor._Blessed(), "not pushed by a pipeline"
    (tmp_path / "3" / "assets.extra").mkdir()
    (tmp_path / "3" / "assets.extra" / "lineage.json").write_text("{}")
    assert find() == executor._Blessed(path=str(tmp_path / "3"))


def test_a_blessed_model_that_does_not_load_or_answer_is_a_problem(workshop):
    empty = workshop.model({"x": [0.25] * 4}, FOUR)
    problem = executor._find_blessed([empty], None, scoring(), b"\xff").problem
    assert problem.startswith("the latest blessed model's signature serialized_examples failed on 1 rows")
    empty.uri = workshop.folder()
    assert "cannot be loaded" in executor._find_blessed([empty], None, scoring(), record(text="x")).problem


def test_a_split_that_is_missing_or_empty_is_named(workshop, multiclass):
    row = multiclass.rows[0]
    for splits, message in (
        ({"train": [row], "eval": [row]}, "no split 'test'"),
        ({"train": [row], "test": []}, "'test' is empty"),
    ):
        with pytest.raises(DataError, match=message):
            workshop.evaluate(workshop.examples(splits), multiclass.model, "multiclass", FOUR, EvaluationConfig())


def test_lengths_fall_into_buckets_that_end_at_the_bounds():
    found = [length_slice(length, (16, 32)) for length in (1, 16, 17, 32, 33, 500)]
    assert found == ["1-16", "1-16", "17-32", "17-32", "33+", "33+"]


def test_the_eval_config_names_signatures_keys_and_slices():
    config = make_eval_config(EvaluationConfig(length_bounds=(8,)), "multilabel", ("a", "b"), ("journal",))
    (spec,) = config.model_specs
    assert (spec.signature_name, spec.prediction_key, spec.label_key) == (
        "serialized_examples", "probabilities", "labels"
    )  # fmt: skip
    assert list(spec.preprocessing_function_names) == ["transform_features"]
    assert [list(s.feature_keys) for s in config.slicing_specs] == [[], ["label"], ["length"], ["journal"]]
    assert [m.class_name for m in config.metrics_specs[0].metrics] == ["ExampleCount", "TextClassification"]


def test_the_component_is_an_evaluator_with_its_settings_as_json():
    from tfx.components.evaluator.component import Evaluator
    from tfx.types import channel_utils, standard_artifacts

    from components.evaluation.component import TextEvaluator

    config = EvaluationConfig(split="eval")
    node = TextEvaluator(
        examples=channel_utils.as_channel([standard_artifacts.Examples()]),
        model=channel_utils.as_channel([standard_artifacts.Model()]),
        baseline_model=channel_utils.as_channel([standard_artifacts.Model()]),
        task="binary",
        labels=("no", "yes"),
        evaluation=config,
        slices=("journal",),
        pairs=True,
        neighbours=True,
        code="0a1b",
    )
    assert isinstance(node, Evaluator)
    assert sorted(node.outputs) == ["blessing", "evaluation"]
    assert sorted(node.inputs) == ["baseline_model", "examples", "model"]
    assert json.loads(node.exec_properties["custom_config"]) == {
        "task": "binary",
        "labels": ["no", "yes"],
        "evaluation": config.model_dump(mode="json"),
        "slices": ["journal"],
        "pairs": True,
        "neighbours": True,
        "code": "0a1b",
    }
    without = TextEvaluator(
        examples=channel_utils.as_channel([standard_artifacts.Examples()]),
        model=channel_utils.as_channel([standard_artifacts.Model()]),
        task="binary",
        labels=("no", "yes"),
        evaluation=config,
    )
    assert sorted(without.inputs) == ["examples", "model"]
