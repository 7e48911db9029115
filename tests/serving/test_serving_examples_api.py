"""Classify, Regress and MultiInference over gRPC, as tensorflow_model_server_test.py asks them."""

from __future__ import annotations

import grpc
import pytest
from tensorflow_serving.apis import classification_pb2, inference_pb2, prediction_service_pb2_grpc, regression_pb2


def stub(running):
    return prediction_service_pb2_grpc.PredictionServiceStub(running.channel)


def with_example(request, signature: str, x: float = 2.0):
    request.model_spec.name, request.model_spec.signature_name = "default", signature
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(x)
    return request


def two_tasks(first: str = "regress_x_to_y", second: str = "classify_x_to_y"):
    request = inference_pb2.MultiInferenceRequest()
    for name, method in ((first, "regress"), (second, "classify")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "default", name
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)
    return request


def status_of(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


@pytest.fixture(params=["half_plus_two", "half_plus_two_tf2"])
def running(request, serve, toys):
    return serve(getattr(toys, request.param))


def test_classify(running):
    result = stub(running).Classify(with_example(classification_pb2.ClassificationRequest(), "classify_x_to_y"), 20)
    assert [[c.score for c in row.classes] for row in result.result.classifications] == [[3.0]]
    spec = result.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("default", "classify_x_to_y", 123)


def test_regress(running):
    result = stub(running).Regress(with_example(regression_pb2.RegressionRequest(), "regress_x_to_y"), 20)
    assert [r.value for r in result.result.regressions] == [3.0]
    spec = result.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("default", "regress_x_to_y", 123)


def test_multi_inference(running):
    results = stub(running).MultiInference(two_tasks(), 20).results
    assert len(results) == 2
    assert results[0].regression_result.regressions[0].value == 3.0
    assert results[1].classification_result.classifications[0].classes[0].score == 3.0
    assert [r.model_spec.signature_name for r in results] == ["regress_x_to_y", "classify_x_to_y"]
    assert {r.model_spec.version.value for r in results} == {123}


def test_classify_of_the_project_s_signature_returns_labels_with_scores(serve, toys):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "default", "classify"
    request.input.example_list.examples.add().features.feature["text"].bytes_list.value.append(b"a" * 10)
    result = stub(serve(toys.text)).Classify(request, 20)
    assert [(c.label, c.score) for c in result.result.classifications[0].classes] == [("short", 0.5), ("long", 0.5)]


def test_requests_that_do_not_fit_are_refused_in_tensorflow_serving_s_words(serve, toys):
    client = stub(serve(toys.half_plus_two))
    bad = grpc.StatusCode.INVALID_ARGUMENT
    empty = classification_pb2.ClassificationRequest()
    empty.model_spec.name, empty.model_spec.signature_name = "default", "classify_x_to_y"
    assert status_of(lambda: client.Classify(empty, 20)) == (bad, "Input is empty.")
    request = with_example(classification_pb2.ClassificationRequest(), "nope")
    assert status_of(lambda: client.Classify(request, 20)) == (bad, "No signature was found with the name: nope")
    request = with_example(regression_pb2.RegressionRequest(), "serving_default")
    assert status_of(lambda: client.Regress(request, 20))[1].startswith("No regression inputs found in SignatureDef")
    twice = two_tasks("regress_x_to_y", "regress_x_to_y")
    assert status_of(lambda: client.MultiInference(twice, 20)) == (
        bad, "Duplicate evaluation of signature: regress_x_to_y",
    )  # fmt: skip
    other = two_tasks()
    other.tasks[1].model_spec.name = "other"
    assert status_of(lambda: client.MultiInference(other, 20))[1].startswith("All ModelSpecs in a MultiInference")
    odd = two_tasks()
    odd.tasks[0].method_name = "tensorflow/serving/predict"
    assert status_of(lambda: client.MultiInference(odd, 20))[0] is grpc.StatusCode.UNIMPLEMENTED
    for number, words in enumerate(["ModelSpec has no name specified.", "Found ModelSpec with an empty model name."]):
        unnamed = two_tasks()
        unnamed.tasks[number].model_spec.name = ""
        assert status_of(lambda unnamed=unnamed: client.MultiInference(unnamed, 20)) == (bad, words)
    no_tasks = inference_pb2.MultiInferenceRequest()
    assert status_of(lambda: client.MultiInference(no_tasks, 20)) == (bad, "ModelSpec has no name specified.")
    for call, no_spec in (
        (client.Classify, classification_pb2.ClassificationRequest()),
        (client.Regress, regression_pb2.RegressionRequest()),
    ):
        assert status_of(lambda call=call, no_spec=no_spec: call(no_spec, 20)) == (bad, "Missing ModelSpec")


def test_the_method_name_is_checked_where_the_flag_asks_for_it(serve, toys):
    request = with_example(regression_pb2.RegressionRequest(), "regress_x_to_y")
    checked = stub(serve(toys.half_plus_two_tf2, enable_signature_method_name_check=True))
    assert status_of(lambda: checked.Regress(request, 20))[1] == (
        "Expected regression signature method_name to be tensorflow/serving/regress. Was: tensorflow/serving/predict"
    )
    stub(serve(toys.half_plus_two, enable_signature_method_name_check=True)).Regress(request, 20)


def test_a_failure_in_the_graph_names_the_feature_and_quotes_no_value(serve, toys):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "default", "classify_x_to_y"
    request.input.example_list.examples.add().features.feature["y"].bytes_list.value.append(b"secret")
    code, words = status_of(lambda: stub(serve(toys.half_plus_two)).Classify(request, 20))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words == ("The model's graph failed: Feature: x (data type: float) is required but could not be found.")
