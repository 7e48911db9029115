"""From a SavedModel folder to something that answers: a Session, its signatures, and its warm-up.

Every model runs through the Session API, as in TensorFlow Serving: it takes TF1 exports with reference variables,
which `tf.saved_model.load` refuses, and loads a TF2 export without tracing its functions in Python, so that a load
hardly disturbs the requests that are being answered meanwhile (19 ms against 150 ms for a toy model).
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.client import pywrap_tf_session as tf_session
from tensorflow_serving.apis import prediction_log_pb2

from serving.errors import Code, StatusError, invalid

_log = logging.getLogger(__name__)
tf.get_logger().setLevel("ERROR")  # loading through the Session API warns that it is not TF2's way

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
MAX_WARMUP_RECORDS = 1000
# Messages of TensorFlow ops may quote the request. These name only parts of the signature.
_SAFE_MESSAGE = re.compile(
    r"Feature: \S+ \(data type: \w+\) is required but could not be found\."
    r"|Can't parse serialized Example\."
    r"|Feature: \S+\.? +Data types don't match\. "
    r"|Expects arg\[\d+\] to be \w+ but \w+ is provided"
)

Feeds = Mapping[str, np.ndarray]  # tensor name → value


def _register_text_ops() -> None:
    """Loads TF Text's op libraries, all that a text model's graph needs of it; the package itself imports Keras."""
    spec = importlib.util.find_spec("tensorflow_text")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("tensorflow_text is not installed; the server needs its ops")
    libraries = sorted(Path(spec.submodule_search_locations[0]).glob("python/*/_*.so"))
    if not libraries:
        raise ImportError(f"{spec.submodule_search_locations[0]}: TF Text's op libraries are not where they were")
    for library in libraries:
        tf.load_op_library(str(library))


_register_text_ops()


class Runner(Protocol):
    """What runs a graph: a session, or a batcher in front of one."""

    def run(self, feeds: Feeds, fetches: Sequence[str], call: Call) -> list[np.ndarray]: ...

    def close(self) -> None: ...


@dataclass
class Call:
    """What a request's computation must know of the call behind it, and reports back.

    Attributes:
        remaining_s: seconds until the deadline, or None for none; called, not read, because time passes.
        alive: False once the client has gone.
        model_s: seconds spent in the model, filled in by the runner.
        carrier: metadata or headers of the call, in lower case; a trace goes on from them.
        on_end: what to do when nobody waits any more; set by who queues the call.
        ended: nobody waits for the answer any more.
    """

    remaining_s: Callable[[], float | None] = lambda: None
    alive: Callable[[], bool] = lambda: True
    model_s: float = 0.0
    carrier: Mapping[str, str] = field(default_factory=dict)
    on_end: Callable[[], None] = lambda: None
    ended: bool = False

    def end(self) -> None:
        """Tells that the call is over, answered or not; from any thread."""
        self.ended = True
        self.on_end()

    def check(self) -> None:
        """Raises `DEADLINE_EXCEEDED` or `CANCELLED` when computing would be for nobody."""
        left = self.remaining_s()
        if left is not None and left <= 0:
            raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded before the request was computed")
        if self.ended or not self.alive():
            raise StatusError(Code.CANCELLED, "The client went away before the request was computed")


NO_CALL = Call()


class SessionRunner:
    """Runs the graph of one loaded SavedModel. Thread-safe.

    Args:
        path: the SavedModel folder.
        tags: which meta graph.
        config: session options.

    Raises:
        StatusError: with TensorFlow's code, if the folder cannot be loaded.
    """

    def __init__(self, path: str, tags: Sequence[str], config: config_pb2.ConfigProto):
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        try:
            with self._graph.as_default():
                self.meta_graph: meta_graph_pb2.MetaGraphDef = tf.compat.v1.saved_model.load(
                    self._session, list(tags), path
                )
        except Exception as error:
            self._session.close()
            raise _load_error(path, error) from error
        self._outputs: dict[str, Any] = {}

    def run(self, feeds: Feeds, fetches: Sequence[str], call: Call = NO_CALL) -> list[np.ndarray]:
        """Computes `fetches`; both sides are named by tensor.

        Raises:
            StatusError: with TensorFlow's code; its message is withheld where it could quote a text.
        """
        call.check()
        left = call.remaining_s()
        options = None
        if left is not None:
            # A timeout of 0 would mean none.
            options = config_pb2.RunOptions(timeout_in_ms=max(1, min(int(left * 1000), 2**31 - 1)))
            options = tf_session.TF_NewBufferFromString(options.SerializeToString())
        started = time.perf_counter()
        try:
            # Session.run() would also check each shape against the graph, which TensorFlow Serving does not do, and
            # rewrite TensorFlow's error messages; what it calls in the end is this.
            return self._session._call_tf_sessionrun(
                options,
                {self._output(k, "FeedInputs: unable to find feed output {}"): v for k, v in feeds.items()},
                [self._output(k, "FetchOutputs node {}: not found") for k in fetches],
                [],
                None,
            )
        except tf.errors.OpError as error:
            raise _run_error(error, feeds) from error
        finally:
            call.model_s += time.perf_counter() - started
            if options is not None:
                tf_session.TF_DeleteBuffer(options)

    def _output(self, name: str, missing: str) -> Any:
        output = self._outputs.get(name)
        if output is None:
            try:
                output = self._outputs[name] = self._graph.get_tensor_by_name(name)._as_tf_output()
            except (KeyError, ValueError):
                hint = "" if name else " (a sparse or ragged value is not one tensor)"
                raise StatusError(Code.NOT_FOUND, missing.format(name) + hint) from None
        return output

    def close(self) -> None:
        """Frees the session's variables and tables. The caller makes sure that nothing runs any more."""
        self._session.close()
        self._outputs.clear()
        del self._graph, self._session
        gc.collect()  # graphs are cycles; memory goes back now and not some time later
        _release_memory()


def _release_memory() -> None:
    """Gives what the C library holds free back to the system, as TensorFlow Serving does when it unloads a model."""
    with suppress(AttributeError):  # glibc has it; others give memory back by themselves, or never
        ctypes.CDLL(None).malloc_trim(0)


def _load_error(path: str, error: Exception) -> StatusError:
    code = Code(error.error_code) if isinstance(error, tf.errors.OpError) else Code.INVALID_ARGUMENT
    if isinstance(error, OSError):
        code = Code.NOT_FOUND
    elif isinstance(error, MemoryError):
        code = Code.RESOURCE_EXHAUSTED
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return StatusError(code, f"Could not load SavedModel at {path}: {text}")


def _run_error(error: tf.errors.OpError, feeds: Feeds) -> StatusError:
    code = Code(error.error_code)
    if code is Code.DEADLINE_EXCEEDED:
        return StatusError(code, "Deadline exceeded while the model computed")
    if not any(value.dtype == object for value in feeds.values()):
        return StatusError(code, error.message)
    safe = _SAFE_MESSAGE.search(error.message)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
    detail = safe.group(0) if safe else f"the message is withheld because it may quote the request; fed: {shapes}"
    return StatusError(code, f"The model's graph failed: {detail}")


@dataclass
class Servable:
    """One loaded version of a model.

    Attributes:
        name, version, path: which.
        signatures: signature name → SignatureDef.
        runner: what computes.
    """

    name: str
    version: int
    path: str
    signatures: Mapping[str, meta_graph_pb2.SignatureDef]
    runner: Runner

    def close(self) -> None:
        self.runner.close()


@dataclass(frozen=True)
class SavedModelLoader:
    """Makes servables.

    Attributes:
        tags: tags of the meta graph.
        session_config: threads and devices.
        warm_up: replays one recorded request on a servable; None skips the warm-up.
        warm_up_iterations: how often each record is replayed.
        on_warm_up: told of each warm-up: path of the model, status code's name, seconds, records.
        batch: puts a batcher before the session, or returns it as it is.
    """

    tags: tuple[str, ...] = ("serve",)
    session_config: config_pb2.ConfigProto = field(default_factory=config_pb2.ConfigProto)
    warm_up: Callable[[Servable, prediction_log_pb2.PredictionLog], None] | None = None
    warm_up_iterations: int = 1
    on_warm_up: Callable[[str, str, float, int], None] = lambda path, status, seconds, records: None
    batch: Callable[[SessionRunner, str, str], Runner] = lambda runner, name, path: runner

    def load(self, name: str, version: int, path: str) -> Servable:
        """Loads and warms one version; nothing is left behind when it fails.

        Raises:
            StatusError: why the version cannot serve.
        """
        session = SessionRunner(path, self.tags, self.session_config)
        servable = Servable(name, version, path, dict(session.meta_graph.signature_def), session)
        try:
            if self.warm_up is not None:
                self._replay(servable)
            servable.runner = self.batch(session, name, path)
        except BaseException:
            session.close()
            raise
        return servable

    def _replay(self, servable: Servable) -> None:
        assert self.warm_up is not None
        path = f"{servable.path}/{WARMUP_FILE}"
        if not tf.io.gfile.exists(path):
            return
        started, status, number = time.perf_counter(), Code.INVALID_ARGUMENT.name, 0
        try:
            for number, record in enumerate(tf.compat.v1.io.tf_record_iterator(path), 1):
                if number > MAX_WARMUP_RECORDS:
                    raise invalid(f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}) at {path}")
                log = prediction_log_pb2.PredictionLog.FromString(record)
                for _ in range(self.warm_up_iterations):
                    self.warm_up(servable, log)
            status = Code.OK.name
        except DecodeError as error:
            raise invalid(f"Failed to parse warmup record {number} from {path}") from error
        except tf.errors.OpError as error:
            raise StatusError(Code(error.error_code), f"{path}: {error.message}") from error
        except StatusError as error:
            raise StatusError(error.code, f"Warm-up failed: {error.message}") from error
        finally:
            self.on_warm_up(servable.path, status, time.perf_counter() - started, number)
        _log.info("model %s version %d: warmed with %s", servable.name, servable.version, path)
