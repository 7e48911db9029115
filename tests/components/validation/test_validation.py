"""What is measured of texts, which schema follows, and which data is refused with which words."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_data_validation.statistics.stats_impl import generate_statistics_in_memory
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2
from tensorflow_serving.apis import prediction_log_pb2

from components.config import RESERVED_FEATURES, ValidationConfig
from components.errors import ConfigError
from components.schema.curated import read_schema
from components.schema.infer import example_schema, infer_schema
from components.statistics.derive import DERIVED_FEATURES, PAIR_FEATURES, TextMeasurer, replace_texts
from components.validation import checks
from components.validation.serving_logs import request_texts

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "trial", "play", "##ed", "##ing", ".", "a"]
LABELS = ["no", "yes"]


@pytest.fixture(scope="module")
def measurer(tmp_path_factory: pytest.TempPathFactory) -> TextMeasurer:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return TextMeasurer(str(path), lower_case=False)


def batch(texts: list[str], labels: list[str], pairs: list[str] | None = None) -> pa.RecordBatch:
    columns = {
        **({"text_pair": pa.array([[pair.encode()] for pair in pairs])} if pairs else {}),
        "text": pa.array([[text.encode()] for text in texts]),
        "id": pa.array([[b"patient 7"] for _ in texts]),
        "label": pa.array([[label.encode()] for label in labels]),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def statistics(
    measurer: TextMeasurer, texts: list[str], labels: list[str], pairs: list[str] | None = None
) -> statistics_pb2.DatasetFeatureStatisticsList:
    measured = replace_texts(batch(texts, labels, pairs), measurer, pairs is not None)
    frame = pa.Table.from_batches([measured]).to_pandas().map(lambda cell: cell[0])
    frame["label"] = frame["label"].str.decode("utf-8")
    return tfdv.generate_statistics_from_dataframe(frame)


def test_texts_are_measured_exactly(measurer: TextMeasurer) -> None:
    # Words: the | play ##ed | . — then an unknown word, then nothing at all.
    measured = measurer.measure([b"the played.", "the \u03b1".encode(), b"", b"trial trial"])
    assert measured["characters"].tolist() == [11, 5, 0, 11]
    assert measured["tokens"].tolist() == [4, 2, 0, 2]
    assert measured["unknown_tokens"].tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(measured["token_coverage"], [2 / 3, 1 / 2, 1.0, 1.0], rtol=1e-6)
    assert {name: values.dtype.name for name, values in measured.items()} == {
        "characters": "int64", "tokens": "int64", "unknown_tokens": "int64", "token_coverage": "float32",
    }  # fmt: skip


def test_word_at_the_end_of_a_text_is_not_continued_by_the_next_text(measurer: TextMeasurer) -> None:
    # "play" ends one text and "ed" is unknown on its own, so no piece of the second joins the first.
    assert measurer.measure([b"play", b"a"])["token_coverage"].tolist() == [1.0, 1.0]


def test_measured_batch_holds_no_text_and_no_id(measurer: TextMeasurer) -> None:
    measured = replace_texts(batch(["the trial", "a"], ["no", "yes"]), measurer)
    assert measured.schema.names == ["label", *DERIVED_FEATURES]
    assert measured.column(measured.schema.get_field_index("tokens")).to_pylist() == [[2], [1]]


def test_no_column_takes_the_name_of_a_measure() -> None:
    assert set(RESERVED_FEATURES) >= {*DERIVED_FEATURES, *PAIR_FEATURES}


def test_statistics_hold_no_text(measurer: TextMeasurer) -> None:
    found = statistics(measurer, ["the trial of patient Seven", "a"], ["no", "yes"])
    assert "Seven" not in text_format.MessageToString(found)
    assert checks.label_counts(found, "label") == {"no": 1, "yes": 1}


def test_inferred_schema_has_the_configured_labels_and_bounds(measurer: TextMeasurer) -> None:
    schema = infer_schema([statistics(measurer, ["the trial", "a"], ["no", "no"])], LABELS, "label")
    features = {feature.name: feature for feature in schema.feature}
    assert list(features["label"].string_domain.value) == LABELS
    assert features["tokens"].int_domain.min == 0
    assert (features["token_coverage"].float_domain.min, features["token_coverage"].float_domain.max) == (0.0, 1.0)
    assert features["tokens"].lifecycle_stage == schema_pb2.LifecycleStage.VALIDATION_DERIVED


def test_inferred_schema_is_the_same_in_whatever_order_the_statistics_come(measurer: TextMeasurer) -> None:
    found = statistics(measurer, ["the trial", "a"], ["no", "yes"])
    turned = type(found).FromString(found.SerializeToString())
    turned.datasets[0].features.reverse()
    schemas = [infer_schema([item], LABELS, "label").SerializeToString() for item in (found, turned)]
    assert schemas[0] == schemas[1]


def labelled(rows: list[list[bytes]]) -> statistics_pb2.DatasetFeatureStatisticsList:
    """The statistics of a multi-label task's labels."""
    return generate_statistics_in_memory(
        pa.RecordBatch.from_arrays([pa.array(rows, pa.list_(pa.binary()))], ["labels"])
    )


@pytest.mark.parametrize("later", [[[b"no"], []], [[b"no", b"yes"], [b"yes"]], [[], []]])
def test_rows_of_a_multilabel_task_may_have_none_or_more_whatever_the_first_data_had(later: list[list[bytes]]) -> None:
    schema = infer_schema([labelled([[b"no"], [b"yes"]])], LABELS, "labels", multilabel=True)
    assert not tfdv.validate_statistics(labelled(later), schema).anomaly_info
    unknown = tfdv.validate_statistics(labelled([[b"no"], [b"what"]]), schema)
    assert list(unknown.anomaly_info) == ["labels"]


def test_values_outside_the_schema_are_refused_by_feature(measurer: TextMeasurer) -> None:
    schema = infer_schema([statistics(measurer, ["the trial", "a"], ["no", "yes"])], LABELS, "label")
    bad = statistics(measurer, ["the trial", "a"], ["no", "perhaps"])
    problems = checks.schema_problems("eval", tfdv.validate_statistics(bad, schema))
    assert [problem.feature for problem in problems] == ["label"]
    assert all("change the curated schema" in problem.remedy for problem in problems)


@pytest.mark.parametrize(
    ("texts", "labels", "bounds", "feature", "reason"),
    [
        (["a"] * 3, ["no", "yes", "no"], {"min_examples": 4}, "(all)", "3 examples, fewer than"),
        (["a"] * 3, ["no"] * 3, {"min_examples": 1, "min_label_count": 1}, "label", "too few rows of: yes 0"),
        (["\u03b1 a"] * 3, ["no", "yes", "no"], {"min_examples": 1, "min_label_count": 1}, "unknown_tokens", "50.0%"),
        (
            ["played playing"] * 3,
            ["no", "yes", "no"],
            {"min_examples": 1, "min_label_count": 1},
            "token_coverage",
            "0.0% of the words",
        ),
    ],
)
def test_poor_data_is_refused_with_the_bound_named(
    measurer: TextMeasurer, texts: list[str], labels: list[str], bounds: dict, feature: str, reason: str
) -> None:
    found = checks.content_problems(
        "train", statistics(measurer, texts, labels), ValidationConfig(**bounds), "label", LABELS
    )
    assert feature in [problem.feature for problem in found]
    assert reason in next(str(problem) for problem in found if problem.feature == feature)


def test_good_data_has_no_problems(measurer: TextMeasurer) -> None:
    good = statistics(measurer, ["the trial."] * 6 + ["a trial"] * 6, ["no"] * 6 + ["yes"] * 6)
    assert checks.content_problems("train", good, ValidationConfig(), "label", LABELS) == []


@pytest.mark.parametrize(
    ("pairs", "feature", "reason"),
    [
        (["\u03b1 a"] * 12, "pair_unknown_tokens", "50.0%"),
        (["played playing"] * 12, "pair_token_coverage", "0.0% of the words"),
        ([""] * 12, "pair_tokens", "every row's second text is empty"),
    ],
)
def test_second_texts_are_looked_at_like_the_first(
    measurer: TextMeasurer, pairs: list[str], feature: str, reason: str
) -> None:
    def problems(second: list[str]) -> list[checks.Problem]:
        found = statistics(measurer, ["the trial."] * 12, LABELS * 6, second)
        return checks.content_problems("train", found, ValidationConfig(), "label", LABELS)

    assert problems(["a trial", ""] * 6) == []
    (problem,) = problems(pairs)
    assert problem.feature == feature
    assert reason in problem.reason


def test_inferred_schema_bounds_the_measures_of_second_texts(measurer: TextMeasurer) -> None:
    schema = infer_schema([statistics(measurer, ["a"] * 2, LABELS, ["the trial", ""])], LABELS, "label")
    features = {feature.name: feature for feature in schema.feature}
    assert set(PAIR_FEATURES) | set(DERIVED_FEATURES) | {"label"} == set(features)
    assert features["pair_tokens"].int_domain.min == 0
    assert features["pair_token_coverage"].float_domain.max == 1.0


def drift(measurer: TextMeasurer, before: list[str], now: list[str], **bounds: float) -> list[checks.Problem]:
    current = statistics(measurer, ["a trial"] * len(now), now)
    schema = checks.with_comparators(infer_schema([current], LABELS, "label"), ValidationConfig(**bounds), "label")
    return checks.comparison_problems(current, schema, statistics(measurer, ["a trial"] * len(before), before))


def test_label_drift_beyond_the_bound_is_refused(measurer: TextMeasurer) -> None:
    problems = drift(measurer, ["no", "yes"] * 10, ["no"] * 18 + ["yes"] * 2, label_drift=0.3)
    assert [(problem.feature, "drifted from the previous span" in problem.reason) for problem in problems] == [
        ("label", True)
    ]
    assert "0.4" in problems[0].reason


def test_label_drift_within_the_bound_and_without_one_passes(measurer: TextMeasurer) -> None:
    before, now = ["no", "yes"] * 10, ["no"] * 12 + ["yes"] * 8
    assert drift(measurer, before, now, label_drift=0.3) == []
    assert drift(measurer, ["no"] * 20, ["yes"] * 20) == []


def test_drift_of_lengths_beyond_the_bound_is_refused_of_either_text(measurer: TextMeasurer) -> None:
    def problems(texts: str, pairs: str, **bounds: float) -> list[str]:
        before = statistics(measurer, ["a trial"] * 20, LABELS * 10, ["a"] * 20)
        now = statistics(measurer, [texts] * 20, LABELS * 10, [pairs] * 20)
        schema = checks.with_comparators(infer_schema([before], LABELS, "label"), ValidationConfig(**bounds), "label")
        found = checks.comparison_problems(now, schema, before)
        assert all("drifted from the previous span" in problem.reason for problem in found)
        return [problem.feature for problem in found]

    assert problems("a trial", "a", length_drift=0.2) == []
    assert problems("a trial " * 20, "a", length_drift=0.2) == ["tokens"]
    assert problems("a trial", "the trial " * 20, length_drift=0.2) == ["pair_tokens"]
    assert problems("a trial " * 20, "the trial " * 20) == []


def test_skew_of_lengths_against_serving_is_refused(measurer: TextMeasurer) -> None:
    current = statistics(measurer, ["a trial"] * 20, LABELS * 10)
    schema = checks.with_comparators(
        infer_schema([current], LABELS, "label"), ValidationConfig(length_skew=0.2), "label"
    )
    served = statistics(measurer, ["a trial " * 20] * 20, LABELS * 10)
    problems = checks.comparison_problems(current, schema, serving=served)
    assert [problem.feature for problem in problems] == ["tokens"]
    assert "is skewed against the serving logs" in problems[0].reason
    assert checks.comparison_problems(current, schema, serving=current) == []


def test_texts_of_a_logged_request_are_read_from_tensors_of_any_form_and_from_examples() -> None:
    texts = tf.make_tensor_proto([b"one", b"two"])
    packed = tf.make_tensor_proto([b"one", b"two"])
    packed.ClearField("string_val")
    packed.tensor_content = b"\x03\x03onetwo"
    first_only, repeated = (tf.make_tensor_proto([b"one", b"two"]) for _ in range(2))
    first_only.tensor_shape.dim[0].size = 1
    repeated.tensor_shape.dim[0].size = 3
    one, none = tf.train.Example(), tf.train.Example()
    one.features.feature["text"].bytes_list.value.append(b"one")
    none.features.feature["Z"].int64_list.value.append(1)
    not_utf8 = none.SerializeToString().replace(b"Z", b"\xff")
    examples = tf.make_tensor_proto([one.SerializeToString(), none.SerializeToString(), not_utf8])
    for name, tensor, expected in (
        ("text", texts, [b"one", b"two"]), ("text", packed, [b"one", b"two"]), ("text", first_only, [b"one"]),
        ("text", repeated, [b"one", b"two", b"two"]), ("examples", examples, [b"one"]), ("other", texts, []),
    ):  # fmt: skip
        log = prediction_log_pb2.PredictionLog()
        log.predict_log.request.inputs[name].CopyFrom(tensor)
        assert request_texts(log.SerializeToString()) == expected
        assert request_texts(log.SerializeToString(), "text_pair") == []
        log.predict_log.request.inputs["text_pair"].CopyFrom(texts)
        assert request_texts(log.SerializeToString(), "text_pair") == [b"one", b"two"]
    for kind in ("classify_log", "regress_log", "multi_inference_log"):
        log = prediction_log_pb2.PredictionLog()
        getattr(log, kind).request.input.example_list.examples.extend([one, none, one])
        assert request_texts(log.SerializeToString()) == [b"one", b"one"]
    log = prediction_log_pb2.PredictionLog()
    with_context = log.classify_log.request.input.example_list_with_context
    with_context.context.CopyFrom(one)
    with_context.examples.add().CopyFrom(none)
    assert request_texts(log.SerializeToString()) == [b"one"]
    assert request_texts(b"") == []


def test_example_schema_lists_what_stands_in_an_example() -> None:
    schema = example_schema("labels", True, True, True, ["journal"])
    assert [feature.name for feature in schema.feature] == ["text", "text_pair", "id", "journal", "labels"]
    assert schema.feature[-1].value_count.min == 0
    assert not schema.feature[-1].HasField("shape")


def test_curated_schema_must_speak_of_the_configured_labels(measurer: TextMeasurer, tmp_path: Path) -> None:
    schema = infer_schema([statistics(measurer, ["a", "a"], ["no", "yes"])], LABELS, "label")
    path = tmp_path / "schema.pbtxt"
    path.write_text("# reviewed\n" + text_format.MessageToString(schema))
    assert read_schema(path, LABELS, "label") == schema
    with pytest.raises(ConfigError, match="make them equal"):
        read_schema(path, ["yes", "no"], "label")
    with pytest.raises(ConfigError, match="has no feature 'labels'"):
        read_schema(path, LABELS, "labels")
    path.write_text("feature {")
    with pytest.raises(ConfigError, match="is not a schema in text form"):
        read_schema(path, LABELS, "label")


def test_schema_of_the_first_run_is_kept_for_data_of_the_same_kind(measurer: TextMeasurer, tmp_path: Path) -> None:
    from tfx.types import standard_artifacts

    from components.schema.component import SCHEMA_FILE, Executor

    def run(number: int, texts: list[str], previous: list, **changes: object) -> tuple[object, str]:
        split = tmp_path / f"statistics{number}" / "Split-train"
        split.mkdir(parents=True)
        (split / "FeatureStats.pb").write_bytes(
            statistics(measurer, texts, ["no", "yes"] * (len(texts) // 2)).SerializeToString()
        )
        given, schema, example_schema = (
            standard_artifacts.ExampleStatistics(), standard_artifacts.Schema(), standard_artifacts.Schema(),
        )  # fmt: skip
        given.uri, given.split_names = str(split.parent), '["train"]'
        for artifact, name in ((schema, "schema"), (example_schema, "example")):
            artifact.uri = str(tmp_path / f"{name}{number}")
        config = {
            "task": "binary", "labels": ["no", "yes"], "has_pairs": False, "has_id": False, "slices": [],
            "curated": None, "curated_hash": "", "code": str(number), **changes,
        }  # fmt: skip
        Executor().Do(
            {"statistics": [given], "previous_schema": previous},
            {"schema": [schema], "example_schema": [example_schema]},
            {"custom_config": json.dumps(config)},
        )
        return schema, (Path(schema.uri) / SCHEMA_FILE).read_text()

    first, text = run(1, ["a b", "c d"], [])
    edited = text.replace('name: "label"', 'name: "label" annotation { comment: "as it was approved" }', 1)
    (Path(first.uri) / SCHEMA_FILE).write_text(edited)  # type: ignore[attr-defined]
    kept, again = run(2, ["e", "f"], [first])
    assert "as it was approved" in again
    assert "as it was approved" in run(3, ["e", "f"], [kept])[1], "and from run to run"
    assert "as it was approved" not in run(4, ["e", "f"], [kept], slices=["journal"])[1], "another kind of data"
