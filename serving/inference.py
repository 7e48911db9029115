"""Predict, Classify, Regress and MultiInference on one servable: messages in, messages out, no state.

Status codes and wording follow TensorFlow Serving (servables/tensorflow/predict_util.cc, classifier.cc, regressor.cc,
multi_inference.cc), on which clients and their tests depend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)

from serving.errors import Code, StatusError, invalid, quotable
from serving.loader import NO_CALL, Call, Servable
from serving.tensors import base_dtype, to_array, to_proto

DEFAULT_SIGNATURE = "serving_default"
PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


@dataclass(frozen=True)
class Options:
    """Server flags that change answers: `--enable_signature_method_name_check` and
    `--enable_serialization_as_tensor_content`."""

    check_method_name: bool = False
    tensor_content: bool = False


DEFAULTS = Options()


def _fill_spec(out: model_pb2.ModelSpec, servable: Servable, signature_name: str) -> None:
    out.name = servable.name
    out.signature_name = signature_name or DEFAULT_SIGNATURE
    out.version.value = servable.version


def _braces(names: Iterable[str]) -> str:
    return "{" + ",".join(quotable(n) for n in sorted(names)) + "}"


# === Predict ===


def predict(
    servable: Servable,
    request: predict_pb2.PredictRequest,
    call: Call = NO_CALL,
    options: Options = DEFAULTS,
) -> predict_pb2.PredictResponse:
    """Runs a signature on named tensors.

    Raises:
        StatusError: `FAILED_PRECONDITION` for an unknown signature, `INVALID_ARGUMENT` for inputs or an output filter
            that do not fit it, and what the graph itself reports.
    """
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{quotable(name)}" not found.')
    if options.check_method_name and signature.method_name not in (PREDICT, CLASSIFY, REGRESS):
        raise StatusError(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{PREDICT}, {CLASSIFY}, {REGRESS}}}. "
            f"Was: {signature.method_name}",
        )
    feeds = _predict_feeds(signature, request)
    aliases = _output_aliases(signature, request.output_filter)
    values = servable.runner.run(feeds, [signature.outputs[a].name for a in aliases], call)
    response = predict_pb2.PredictResponse()
    _fill_spec(response.model_spec, servable, name)
    for alias, value in zip(aliases, values, strict=True):
        to_proto(value, signature.outputs[alias].dtype, response.outputs[alias], options.tensor_content)
    return response


def _predict_feeds(
    signature: meta_graph_pb2.SignatureDef, request: predict_pb2.PredictRequest
) -> dict[str, np.ndarray]:
    sent, wanted = set(request.inputs), set(signature.inputs)
    if len(sent) > len(wanted) or (len(sent) < len(wanted) and not signature.defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({_braces(sent)}) != "
            f"len({_braces(wanted)}). Sent extra: {_braces(sent - wanted)}. "
            f"Missing but required: {_braces(wanted - sent)}."
        )
    feeds = {}
    for alias in sorted(wanted):
        name = signature.inputs[alias].name
        if alias not in sent and alias not in signature.defaults:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {name}) not found in request and no default value "
                f"provided. Inputs expected to be in the request {_braces(sent)}, or default input alias set: "
                f"{','.join(sorted(signature.defaults))}"
            )
        try:
            # Type and shape are left to the graph, as in TensorFlow Serving, which takes [3] for [-1, 1].
            feeds[name] = to_array(request.inputs[alias] if alias in sent else signature.defaults[alias])
        except StatusError as error:
            raise invalid(f"tensor parsing error: {alias}: {error.message}") from None
    if not sent <= wanted:
        used, all_sent = (_braces(names)[1:-1] for names in (sent & wanted, sent))
        raise invalid(f"Inputs contains invalid name. Used request inputs: {used}, request input: {all_sent}")
    return feeds


def _output_aliases(signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]) -> list[str]:
    seen: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {quotable(alias)} Outputs expected to be in the set "
                f"{_braces(list(signature.outputs))}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {quotable(alias)}")
        seen.append(alias)
    return seen or sorted(signature.outputs)


# === Classify, Regress, MultiInference: a list of tf.Example in ===


def serialized_examples(request_input: input_pb2.Input) -> list[bytes]:
    """The examples; a context is merged into each by concatenation, as protobuf defines it."""
    kind = request_input.WhichOneof("kind")
    if kind == "example_list_with_context":
        context = request_input.example_list_with_context.context.SerializeToString()
        return [context + e.SerializeToString() for e in request_input.example_list_with_context.examples]
    return [e.SerializeToString() for e in request_input.example_list.examples]


def _examples(request_input: input_pb2.Input) -> np.ndarray:
    """Serialised examples, [n] of bytes. Raises `StatusError`: there is none."""
    found = serialized_examples(request_input)
    if not found:
        raise invalid("Input is empty.")
    values = np.empty(len(found), object)
    values[:] = found
    return values


def _signature(servable: Servable, spec: model_pb2.ModelSpec, prefix: str) -> meta_graph_pb2.SignatureDef:
    name = spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise invalid(f"{prefix}: {quotable(name)}")
    return signature


def _check_method(signature: meta_graph_pb2.SignatureDef, kind: str, method: str, options: Options) -> None:
    if options.check_method_name and signature.method_name != method:
        raise invalid(f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}")
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")


def _classify_names(signature: meta_graph_pb2.SignatureDef, options: Options) -> tuple[str, list[str]]:
    _check_method(signature, "classification", CLASSIFY, options)
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {sorted(signature.inputs)}")
    names = [signature.outputs[a].name for a in ("classes", "scores") if a in signature.outputs]
    if not names:
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature outputs were: {sorted(signature.outputs)}"
        )
    return signature.inputs["inputs"].name, names


def _regress_names(signature: meta_graph_pb2.SignatureDef, options: Options) -> tuple[str, list[str]]:
    _check_method(signature, "regression", REGRESS, options)
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    for side, alias in ((signature.inputs, "inputs"), (signature.outputs, "outputs")):
        if alias not in side:
            raise invalid(f"No regression {alias} found in SignatureDef: {sorted(side)}")
    return signature.inputs["inputs"].name, [signature.outputs["outputs"].name]


def _fill_classification(
    signature: meta_graph_pb2.SignatureDef,
    count: int,
    by_name: dict[str, np.ndarray],
    out: classification_pb2.ClassificationResult,
) -> None:
    found: dict[str, np.ndarray] = {}
    for alias, dtype, type_name in (
        ("classes", types_pb2.DT_STRING, "DT_STRING"),
        ("scores", types_pb2.DT_FLOAT, "DT_FLOAT"),
    ):
        if alias not in signature.outputs:
            continue
        info = signature.outputs[alias]
        value = by_name[info.name]
        if value.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {list(value.shape)}")
        if base_dtype(info.dtype) != dtype:
            raise invalid(f"Expected {alias} Tensor of {type_name}. Got: {types_pb2.DataType.Name(info.dtype)}")
        if value.shape[0] != count:
            raise invalid(f"Expected {alias} output batch size of {count}. Got: {value.shape[0]}")
        found[alias] = value
    classes, scores = found.get("classes"), found.get("scores")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    width = next(iter(found.values())).shape[1]
    labels = None if classes is None else classes.tolist()
    numbers = None if scores is None else scores.tolist()
    for i in range(count):
        row = out.classifications.add()
        for c in range(width):
            entry = row.classes.add()
            if labels is not None:
                try:
                    entry.label = labels[i][c].decode()
                except UnicodeDecodeError as error:  # a proto string must be UTF-8
                    raise invalid("A class label of the model is not valid UTF-8") from error
            if numbers is not None:
                entry.score = numbers[i][c]


def _fill_regression(
    signature: meta_graph_pb2.SignatureDef,
    count: int,
    by_name: dict[str, np.ndarray],
    out: regression_pb2.RegressionResult,
) -> None:
    info = signature.outputs["outputs"]
    value = by_name[info.name]
    if not (value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {list(value.shape)}"
        )
    if value.shape[0] != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {value.shape[0]}")
    if base_dtype(info.dtype) != types_pb2.DT_FLOAT:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {types_pb2.DataType.Name(info.dtype)}")
    for number in value.ravel().tolist():
        out.regressions.add().value = number


def classify(
    servable: Servable,
    request: classification_pb2.ClassificationRequest,
    call: Call = NO_CALL,
    options: Options = DEFAULTS,
) -> classification_pb2.ClassificationResponse:
    """Runs a classification signature on examples. Raises `StatusError` as `predict` does."""
    signature = _signature(servable, request.model_spec, "No signature was found with the name")
    feed, fetches = _classify_names(signature, options)
    examples = _examples(request.input)
    values = servable.runner.run({feed: examples}, fetches, call)
    response = classification_pb2.ClassificationResponse()
    _fill_spec(response.model_spec, servable, request.model_spec.signature_name)
    by_name = dict(zip(fetches, values, strict=True))
    response.result.SetInParent()
    _fill_classification(signature, len(examples), by_name, response.result)
    return response


def regress(
    servable: Servable,
    request: regression_pb2.RegressionRequest,
    call: Call = NO_CALL,
    options: Options = DEFAULTS,
) -> regression_pb2.RegressionResponse:
    """Runs a regression signature on examples. Raises `StatusError` as `predict` does."""
    signature = _signature(servable, request.model_spec, "No signature was found with the name")
    feed, fetches = _regress_names(signature, options)
    examples = _examples(request.input)
    values = servable.runner.run({feed: examples}, fetches, call)
    response = regression_pb2.RegressionResponse()
    _fill_spec(response.model_spec, servable, request.model_spec.signature_name)
    by_name = dict(zip(fetches, values, strict=True))
    response.result.SetInParent()
    _fill_regression(signature, len(examples), by_name, response.result)
    return response


def multi_inference(
    servable: Servable,
    request: inference_pb2.MultiInferenceRequest,
    call: Call = NO_CALL,
    options: Options = DEFAULTS,
) -> inference_pb2.MultiInferenceResponse:
    """Runs several signatures of one model on the same examples in one pass. Raises `StatusError`."""
    feeds: set[str] = set()
    fetches: list[str] = []
    seen: set[str] = set()
    plan = []
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in seen:
            raise invalid(f"Duplicate evaluation of signature: {quotable(name)}")
        seen.add(name)
        signature = _signature(servable, task.model_spec, "Requested signature not found in model graph")
        if task.method_name == CLASSIFY:
            feed, outputs = _classify_names(signature, options)
        elif task.method_name == REGRESS:
            feed, outputs = _regress_names(signature, options)
        else:
            raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {quotable(task.method_name)}")
        feeds.add(feed)
        fetches += [o for o in outputs if o not in fetches]
        plan.append((task, signature))
    examples = _examples(request.input)
    values = servable.runner.run(dict.fromkeys(sorted(feeds), examples), fetches, call)
    by_name = dict(zip(fetches, values, strict=True))
    response = inference_pb2.MultiInferenceResponse()
    for task, signature in plan:
        result = response.results.add()
        _fill_spec(result.model_spec, servable, task.model_spec.signature_name)
        if task.method_name == CLASSIFY:
            result.classification_result.SetInParent()
            _fill_classification(signature, len(examples), by_name, result.classification_result)
        else:
            result.regression_result.SetInParent()
            _fill_regression(signature, len(examples), by_name, result.regression_result)
    return response


def replay(servable: Servable, log: prediction_log_pb2.PredictionLog) -> None:
    """Runs one recorded request, as a warm-up does; the answer is thrown away. Raises `StatusError`."""
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        predict(servable, log.predict_log.request)
    elif kind == "classify_log":
        classify(servable, log.classify_log.request)
    elif kind == "regress_log":
        regress(servable, log.regress_log.request)
    elif kind == "multi_inference_log":
        multi_inference(servable, log.multi_inference_log.request)
    elif kind is not None:
        raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
