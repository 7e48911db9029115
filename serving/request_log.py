"""A sampled share of the requests as TFRecords of PredictionLog, for the pipeline's skew and drift checks.

Off unless a model's `logging_config` in `models.config` asks for it, TensorFlow Serving's own message:

    logging_config {
      log_collector_config { type: "file" filename_prefix: "/logs/biobert_cnn" }
      sampling_config { sampling_rate: 0.01 }
    }

The files hold the texts of the requests. A file that is being written ends in `.open`; finished ones in `.tfrecord`,
which is what a glob should name. Local files are readable by their owner alone, and those that a killed server left
are finished at the next start. Logging never delays or fails a request: what the disk cannot take is dropped and
counted in `:tensorflow:serving:request_log_count`.
"""

from __future__ import annotations

import fcntl
import glob
import itertools
import logging
import os
import queue
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2 as config_pb

from serving.errors import Code, StatusError, invalid, where
from serving.metrics import Metrics
from serving.tensors import to_array, to_proto

_log = logging.getLogger(__name__)
_FIELDS = {
    "Predict": "predict_log", "Classify": "classify_log", "Regress": "regress_log",
    "MultiInference": "multi_inference_log",
}  # fmt: skip
_QUEUED = 1000
_QUEUED_BYTES = 1 << 28
_OPEN, _FINISHED = ".open", ".tfrecord"
_FRAME = 16  # bytes of a TFRecord beside its content: length, and the check sums of both
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
            found[model.name] = LogOptions(collector.filename_prefix.removeprefix("file://"), rate)
    return found


def _make_folder(model: str, prefix: str) -> None:
    """Makes the folder of the files, for this user alone where it is a local one. Raises `StatusError`."""
    folder = os.path.dirname(prefix)
    try:
        if _is_local(prefix):
            os.makedirs(folder or ".", mode=0o700, exist_ok=True)
        else:
            tf.io.gfile.makedirs(folder)
    except tf.errors.OpError as error:
        raise StatusError(Code(error.error_code), f"model {model}: request log: {error.message}") from error
    except OSError as error:
        words = f"model {model}: request log: cannot make the folder {folder}: {error.strerror}"
        raise StatusError(Code.FAILED_PRECONDITION, words) from error


def _is_local(prefix: str) -> bool:
    return "://" not in prefix


def _cut_to_whole_records(path: str) -> int:
    """Cuts off a last record that was not written to its end; readers would fail on it. Returns the bytes left."""
    size = 0
    with suppress(tf.errors.DataLossError):
        for record in tf.compat.v1.io.tf_record_iterator(path):
            size += len(record) + _FRAME
    os.truncate(path, size)
    return size


class _Writer:
    """One model's log: a bounded queue and the thread that writes it. The folder must be there.

    A local file is locked while it is being written, so that one which a killed server left behind can be told.
    """

    def __init__(self, name: str, options: LogOptions, metrics: Metrics):
        self._name, self._options, self._metrics = name, options, metrics
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED)
        self._queued_bytes, self._counting = 0, threading.Lock()
        self._file: tf.io.TFRecordWriter | None = None
        self._lock: int | None = None  # file descriptor
        self._path = ""
        self._bytes, self._begun = 0, 0.0
        _log.warning(
            "model %s: %g of the requests are written to %s-*.tfrecord, texts included; keep them as you keep the data",
            name, options.rate, options.prefix,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, name=f"request-log-{name}", daemon=True)
        self._thread.start()

    def put(self, record: bytes) -> None:
        """Hands a record to the thread, or drops it where too much waits."""
        with self._counting:
            if not self._queued_bytes or self._queued_bytes + len(record) <= _QUEUED_BYTES:
                with suppress(queue.Full):
                    self._queue.put_nowait(record)
                    self._queued_bytes += len(record)
                    return
        self._metrics.request_log_count.add(self._name, "dropped")

    def _run(self) -> None:
        if _is_local(self._options.prefix):
            for path in glob.glob(glob.escape(self._options.prefix) + "-*" + _OPEN):
                self._finish_leftover(path)
        while True:
            try:
                record = self._queue.get(timeout=1.0)
            except queue.Empty:
                self._finish_if_due()
                continue
            if record is None:
                self._finish()
                return
            with self._counting:
                self._queued_bytes -= len(record)
            try:
                self._write(record)
                self._metrics.request_log_count.add(self._name, "OK")
            except (tf.errors.OpError, OSError) as error:
                self._metrics.request_log_count.add(self._name, "failed")
                self._failed(self._path, error)
                self._let_go()
            self._finish_if_due()

    def _write(self, record: bytes) -> None:
        if self._file is None:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            self._path = f"{self._options.prefix}-{stamp}-{os.getpid()}-{next(_number)}"
            if _is_local(self._path):
                self._lock = os.open(self._path + _OPEN, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._file = tf.io.TFRecordWriter(self._path + _OPEN)
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
        try:
            self._file.close()
            tf.io.gfile.rename(self._path + _OPEN, self._path + _FINISHED)
        except (tf.errors.OpError, OSError) as error:
            self._failed(self._path, error)
        self._let_go()

    def _let_go(self) -> None:
        self._file = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _failed(self, path: str, error: Exception) -> None:
        _log.error("model %s: request log %s: %s", self._name, path, type(error).__name__)

    def _finish_leftover(self, path: str) -> None:
        """Finishes a file that nobody is writing any more."""
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # An empty one may have been made this moment, and not be locked yet.
                if os.fstat(file.fileno()).st_size and _cut_to_whole_records(path):
                    os.rename(path, path.removesuffix(_OPEN) + _FINISHED)
        except BlockingIOError:
            return
        except (tf.errors.OpError, OSError) as error:
            self._failed(path, error)

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
        """Follows a new configuration. Raises `StatusError`, and then changes nothing: as `log_options` does,
        or if a folder cannot be made."""
        new, old = log_options(config), self._options
        writers = dict(self._writers)
        gone = [writers.pop(name) for name in list(writers) if new.get(name) != old.get(name)]
        begun = {name: options for name, options in new.items() if name not in writers}
        for name, options in begun.items():
            _make_folder(name, options.prefix)
        for name, options in begun.items():
            writers[name] = _Writer(name, options, self._metrics)
        self._writers, self._options = writers, new
        for writer in gone:
            writer.close()

    def log(self, model: str, api: str, request: Message, response: Message) -> None:
        """Logs one answered request, or leaves it, as chance has it."""
        writer, options = self._writers.get(model), self._options.get(model)
        if writer is None or options is None or random.random() >= options.rate:
            return
        try:
            record = _serialized(api, request, response, options.rate)
        except Exception as error:  # over two gigabytes, say: the answer is not to fail for it
            self._metrics.request_log_count.add(model, "failed")
            _log.error("model %s: a request cannot be logged: %s", model, where(error))
            return
        writer.put(record)

    def close(self) -> None:
        """Writes what waits and finishes the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


def _serialized(api: str, request: Message, response: Message, rate: float) -> bytes:
    """A `PredictionLog`."""
    record = prediction_log_pb2.PredictionLog()
    entry = getattr(record, _FIELDS[api])
    entry.request.CopyFrom(request)
    entry.response.CopyFrom(response)
    record.log_metadata.model_spec.CopyFrom(
        response.results[0].model_spec if api == "MultiInference" else response.model_spec  # type: ignore[attr-defined]
    )
    record.log_metadata.sampling_config.sampling_rate = rate
    record.log_metadata.timestamp_secs = int(time.time())
    if api == "Predict":
        for tensor in entry.request.inputs.values():
            if tensor.dtype == types_pb2.DT_STRING and tensor.tensor_content:
                # Readers in Python know strings in typed fields only.
                array = to_array(tensor)
                tensor.Clear()
                to_proto(array, types_pb2.DT_STRING, tensor)
    return record.SerializeToString()
