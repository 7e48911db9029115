"""The questions put to a running model server, and what its answers must be like."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from components.errors import ServingError
from components.serving_check.samples import HOSTILE, Sample, examples_request, predict_request
from components.serving_check.server_process import OVERLOADED

_AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE
_LATENCY_ROUNDS = 3  # the best of them counts: a machine that was busy for a moment is no fault of the model
_SUM_TOLERANCE = 1e-3


class NotBlessed(Exception):
    """The model does not serve as it must; the message says in what, and holds no text."""


class Client:
    """Plain gRPC to one model; an error in place of an answer is a NotBlessed, one that never comes a ServingError."""

    def __init__(self, address: str, model_name: str, timeout_s: float) -> None:
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.enable_http_proxy", 0),  # loopback, whatever the environment says
            ],
        )
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(self._channel).Predict
        self._status = model_service_pb2_grpc.ModelServiceStub(self._channel).GetModelStatus
        self._model_name, self._timeout_s = model_name, timeout_s

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def wait_until_available(self) -> None:
        """Asks GetModelStatus until the one version is AVAILABLE."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._model_name
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                versions = self._status(request, timeout=self._timeout_s, wait_for_ready=True).model_version_status
            except grpc.RpcError as error:
                raise self._verdict("GetModelStatus", error) from None
            if any(version.state == _AVAILABLE for version in versions):
                return
            failed = [version.status.error_code for version in versions if version.status.error_code]
            if failed:
                raise NotBlessed(f"the version did not become available (error code {failed[0]}); server.log says why")
            if time.monotonic() > deadline:
                raise ServingError(f"the version was not available after {self._timeout_s:g} s: {OVERLOADED}")
            time.sleep(0.05)

    def probabilities(self, texts: Sequence[bytes], pairs: Sequence[bytes] | None, what: str) -> np.ndarray:
        """Predict on `serving_default`: float64 [n, classes]. `what` names the request where it fails."""
        return self._ask(predict_request(self._model_name, texts, pairs), len(texts), what)

    def probabilities_of_examples(self, texts: Sequence[bytes], pairs: Sequence[bytes] | None) -> np.ndarray:
        """Predict on `serialized_examples`: float64 [n, classes]."""
        return self._ask(examples_request(self._model_name, texts, pairs), len(texts), "a batch of tf.Examples")

    def _ask(self, request: predict_pb2.PredictRequest, rows: int, what: str) -> np.ndarray:
        try:
            outputs = self._predict(request, timeout=self._timeout_s).outputs
        except grpc.RpcError as error:
            raise self._verdict(what, error) from None
        if "probabilities" not in outputs:
            raise NotBlessed(f"{what} was answered without probabilities (there are: {', '.join(sorted(outputs))})")
        found = np.asarray(tf.make_ndarray(outputs["probabilities"]), np.float64)
        if found.ndim != 2 or found.shape[0] != rows:
            raise NotBlessed(f"{what} was answered with probabilities of shape {list(found.shape)} for {rows} texts")
        return found

    def _verdict(self, what: str, error: grpc.RpcError) -> Exception:
        # Not the details: an op's message may quote the text.
        code = error.code().name if isinstance(error, grpc.Call) else type(error).__name__
        if code == grpc.StatusCode.DEADLINE_EXCEEDED.name:
            return ServingError(f"{what} was not answered within {self._timeout_s:g} s: {OVERLOADED}")
        return NotBlessed(f"{what} was answered with {code}")


def check_answers(client: Client, sample: Sample, tolerance: float, examples_too: bool) -> dict[str, Any]:
    """Every answer equals the trainer's: in one batch, one by one, and by way of tf.Examples.

    Returns:
      `examples`, `greatest_difference`.
    """
    texts, pairs = sample.texts, sample.pairs
    answers = {
        "in one batch": client.probabilities(texts, pairs, f"a batch of {len(texts)} texts"),
        "one by one": np.concatenate([client.probabilities(*one, "a single text") for one in _singly(sample)]),
    }
    if examples_too:
        answers["as tf.Examples"] = client.probabilities_of_examples(texts, pairs)
    greatest = 0.0
    for how, answer in answers.items():
        if answer.shape != sample.probabilities.shape:
            raise NotBlessed(
                f"the server gives {answer.shape[1]} probabilities a text, the trainer {sample.probabilities.shape[1]}"
            )
        differences = np.abs(answer - sample.probabilities).max(axis=1)
        wrong = int(np.count_nonzero(~(differences <= tolerance)))  # this way round, so that NaN is wrong
        if wrong:
            section = "serving" if sample.tolerance is None else "export"
            raise NotBlessed(
                f"{wrong} of {len(texts)} texts, sent {how}, differ from the trainer's probabilities by more than "
                f"{tolerance:g} ({section}.tolerance); the greatest difference is {np.max(differences):.3g}"
            )
        greatest = max(greatest, float(np.max(differences)))
    return {"examples": len(texts), "greatest_difference": greatest, "tolerance": tolerance}


def check_hostile(client: Client, pairs: bool, sums_to_one: bool) -> list[str]:
    """Texts that a server meets one day get an answer that is a probability. Returns what was tried."""
    for name, text in HOSTILE.items():
        answer = client.probabilities([text], [text] if pairs else None, name)
        sound = np.isfinite(answer).all() and (answer >= 0).all() and (answer <= 1 + _SUM_TOLERANCE).all()
        if sound and sums_to_one:
            sound = abs(float(answer.sum()) - 1.0) <= _SUM_TOLERANCE
        if not sound:
            raise NotBlessed(f"{name} was answered with numbers that are no probabilities")
    return list(HOSTILE)


def check_latency(client: Client, sample: Sample, bound_ms: float) -> dict[str, float]:
    """The median time of single-text requests is within the bound. Returns milliseconds."""
    best: list[float] = []
    for _ in range(_LATENCY_ROUNDS):
        times = []
        for texts, pairs in _singly(sample):
            began = time.perf_counter()
            client.probabilities(texts, pairs, "a single text")
            times.append((time.perf_counter() - began) * 1000.0)
        if not best or statistics.median(times) < statistics.median(best):
            best = times
        if statistics.median(best) <= bound_ms:
            break
    median = statistics.median(best)
    if median > bound_ms:
        raise NotBlessed(
            f"the median latency of a single text is {median:.1f} ms, above {bound_ms:g} ms (serving.max_latency_ms)"
        )
    return {"median": round(median, 3), "worst": round(max(best), 3), "bound": bound_ms}


def _singly(sample: Sample) -> list[tuple[list[bytes], list[bytes] | None]]:
    pairs = sample.pairs
    return [([text], None if pairs is None else [pairs[row]]) for row, text in enumerate(sample.texts)]
