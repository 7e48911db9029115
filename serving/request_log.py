"""A sampled share of the requests as TFRecords of PredictionLog, for the pipeline's skew and drift checks.

Off unless a model's `logging_config` in `models.config` asks for it, TensorFlow Serving's own message:

    logging_config {
      log_collector_config { type: "file" filename_prefix: "/logs/biobert_cnn" }
      sampling_config { sampling_rate: 0.01 }
    }

The files hold the texts of the requests. A file that is being written ends in `.open`; finished ones in `.tfrecord`,
which is what a glob should name. Logging never delays or fails a request: what the disk cannot take is dropped and
counted in `:tensorflow:serving:request_log_count`.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import random
import threading
import time
from dataclasses import dataclass

import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2 as config_pb

from serving.errors import invalid
from serving.metrics import Metrics
from serving.tensors import to_array, to_proto

_log = logging.getLogger(__name__)
_FIELDS = {
    "Predict": "predict_log", "Classify": "classify_log", "Regress": "regress_log",
    "MultiInference": "multi_inference_log",
}  # fmt: skip
_QUEUED = 1000
_number = itertools.count()


@dataclass(frozen=True)
class LogOptions:
    """Where and how much to log of one model.

    Attributes:
        prefix: of the files' paths.
        rate: share of the requests, 0 … 1.
        max_bytes, max_s: a file is finished when it is as large or as old.
    """

    prefix: str
    rate: float
    max_bytes: int = 64 << 20
    max_s: float = 300.0


def log_options(config: config_pb.ModelServerConfig) -> dict[str, LogOptions]:
    """What the configuration asks to log, by model.

    Raises:
        StatusError: `INVALID_ARGUMENT` for a collector other than `file`, no prefix, or a rate outside 0 … 1.
    """
    found = {}
    for model in config.model_config_list.config:
        if not model.HasField("logging_config"):
            continue
        collector = model.logging_config.log_collector_config
        rate = model.logging_config.sampling_config.sampling_rate
        if collector.type != "file" or not collector.filename_prefix:
            raise invalid(
                f'model {model.name}: logging_config must have log_collector_config with type: "file" and a '
                f"filename_prefix; got type {collector.type!r}"
            )
        if not 0 <= rate <= 1:
            raise invalid(f"model {model.name}: sampling_rate {rate} is not between 0 and 1")
        if rate > 0:
            found[model.name] = LogOptions(collector.filename_prefix, rate)
    return found


class _Writer:
    """One model's log: a bounded queue and the thread that writes it."""

    def __init__(self, name: str, options: LogOptions, metrics: Metrics):
        self._name, self._options, self._metrics = name, options, metrics
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED)
        self._file: tf.io.TFRecordWriter | None = None
        self._path = ""
        self._bytes, self._begun = 0, 0.0
        folder = os.path.dirname(options.prefix)
        if folder:
            tf.io.gfile.makedirs(folder)
        _log.warning(
            "model %s: %g of the requests are written to %s-*.tfrecord, texts included; keep them as you keep the data",
            name, options.rate, options.prefix,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, name=f"request-log-{name}", daemon=True)
        self._thread.start()

    def put(self, record: bytes) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._metrics.request_log_count.add(self._name, "dropped")

    def _run(self) -> None:
        while True:
            try:
                record = self._queue.get(timeout=1.0)
            except queue.Empty:
                self._finish_if_due()
                continue
            if record is None:
                self._finish()
                return
            try:
                self._write(record)
                self._metrics.request_log_count.add(self._name, "OK")
            except (tf.errors.OpError, OSError) as error:
                self._metrics.request_log_count.add(self._name, "failed")
                _log.error("model %s: request log %s: %s", self._name, self._path, type(error).__name__)
                self._file = None
            self._finish_if_due()

    def _write(self, record: bytes) -> None:
        if self._file is None:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            self._path = f"{self._options.prefix}-{stamp}-{os.getpid()}-{next(_number)}"
            self._file = tf.io.TFRecordWriter(self._path + ".open")
            self._bytes, self._begun = 0, time.monotonic()
        self._file.write(record)
        self._bytes += len(record)

    def _finish_if_due(self) -> None:
        old = time.monotonic() - self._begun >= self._options.max_s
        if self._file is not None and (old or self._bytes >= self._options.max_bytes):
            self._finish()

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        tf.io.gfile.rename(self._path + ".open", self._path + ".tfrecord")

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()


class RequestLog:
    """The logs of all models. Thread-safe. `configure` may be called again at any time.

    Args:
        metrics: counts what is logged.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._options: dict[str, LogOptions] = {}
        self._writers: dict[str, _Writer] = {}

    def configure(self, config: config_pb.ModelServerConfig) -> None:
        """Follows a new configuration. Raises `StatusError` as `log_options` does, and then changes nothing."""
        new = log_options(config)
        old, self._options = self._options, new
        writers = dict(self._writers)
        gone = [writers.pop(name) for name in list(writers) if new.get(name) != old.get(name)]
        for name, options in new.items():
            if name not in writers:
                writers[name] = _Writer(name, options, self._metrics)
        self._writers = writers
        for writer in gone:
            writer.close()

    def log(self, model: str, api: str, request: Message, response: Message) -> None:
        """Logs one answered request, or leaves it, as chance has it."""
        writer, options = self._writers.get(model), self._options.get(model)
        if writer is None or options is None or random.random() >= options.rate:
            return
        record = prediction_log_pb2.PredictionLog()
        entry = getattr(record, _FIELDS[api])
        entry.request.CopyFrom(request)
        entry.response.CopyFrom(response)
        record.log_metadata.model_spec.CopyFrom(
            response.results[0].model_spec if api == "MultiInference" else response.model_spec  # type: ignore[attr-defined]
        )
        record.log_metadata.sampling_config.sampling_rate = options.rate
        record.log_metadata.timestamp_secs = int(time.time())
        if api == "Predict":
            for tensor in entry.request.inputs.values():
                if tensor.dtype == types_pb2.DT_STRING and tensor.tensor_content:
                    # Readers in Python know strings in typed fields only.
                    array = to_array(tensor)
                    tensor.Clear()
                    to_proto(array, types_pb2.DT_STRING, tensor)
        writer.put(record.SerializeToString())

    def close(self) -> None:
        """Writes what waits and finishes the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
