"""The model server as a process: `biobert-cnn serve --model_base_path=…`, or `python -m serving.server …`.

    flags ─▶ ServerCore (source ─▶ manager ◀─ loader) ◀─ InferenceService ◀─ gRPC, REST

As TensorFlow Serving does, it listens only once every model has loaded, and ends with an error if one cannot. It
then prints `listening on grpc HOST:PORT` (and `listening on rest HOST:PORT`) on standard output, for a parent process
to read. SIGTERM and SIGINT stop it gracefully: not ready any more, no new requests, those being answered are finished.

Exit status: 0 stopped by a signal, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from serving.errors import StartError, StatusError, where
from serving.flags import Flags, parse, usage

if TYPE_CHECKING:
    import grpc

    from serving.admission import Admission
    from serving.core import ServerCore
    from serving.http_server import HttpServer
    from serving.loader import Runner, SavedModelLoader
    from serving.metrics import Metrics
    from serving.request_log import RequestLog
    from serving.service import InferenceService
    from serving.tracing import OpenTelemetryTracer

_log = logging.getLogger(__name__)
_UNLOAD_S = 5.0  # for the models, where requests took all of the time to drain


class ModelServer:
    """One server. `start` returns when it listens; `stop` may be called from any thread.

    Attributes:
        grpc_port, rest_port: where it listens, 0 for nowhere.
    """

    def __init__(self, flags: Flags):
        self._flags = flags
        self.stopping = threading.Event()
        self.grpc_port = 0
        self.rest_port = 0
        self._core: ServerCore | None = None
        self._grpc: grpc.Server | None = None
        self._admission: Admission | None = None
        self._rest: HttpServer | None = None
        self._request_log: RequestLog | None = None
        self._tracer: OpenTelemetryTracer | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Loads the models, then listens.

        Raises:
            StartError: what is wrong with a flag, a file or a model.
        """
        # Imported here: with them comes TensorFlow, which a wrong flag need not wait for.
        from serving import config, inference, rpc
        from serving.admission import Admission
        from serving.core import ServerCore
        from serving.manager import LoadOptions, Manager, VersionStatus
        from serving.metrics import Metrics
        from serving.policy import State
        from serving.request_log import RequestLog
        from serving.service import InferenceService

        flags = self._flags
        metrics = Metrics()
        self._health, self._farewell = rpc.Health(), rpc.Farewell()
        model_config = config.model_config(flags)
        arguments = rpc.channel_arguments(flags.grpc_channel_arguments)
        tokens = _read_tokens(flags.bearer_tokens_file)
        prometheus_path = config.prometheus_path(flags)
        if flags.otlp_endpoint:
            from serving.tracing import otlp_tracer

            self._tracer = otlp_tracer(flags.otlp_endpoint)
        credentials = None
        if flags.ssl_config_file:
            from serving.protos import SSLConfig

            credentials = rpc.credentials(config.read_text_proto(flags.ssl_config_file, SSLConfig()))

        def on_state(name: str, status: VersionStatus) -> None:
            self._health.on_state(name, status)
            if status.state is State.READY:
                metrics.model_ready.set(1, name, str(status.version))
            else:
                metrics.model_ready.remove(name, str(status.version))

        manager = Manager(
            self._loader(metrics),
            LoadOptions(
                flags.max_num_load_retries,
                flags.load_retry_interval_micros / 1e6,
                flags.num_load_threads,
                flags.num_unload_threads,
            ),
            on_state,
        )
        self._core = core = ServerCore(
            manager, flags.file_system_poll_wait_seconds, flags.allow_version_labels_for_unavailable_models
        )
        self._request_log = RequestLog(metrics)
        core.on_config.append(self._request_log.configure)
        try:
            core.reload_config(model_config, stop=self.stopping)
        except StatusError as error:
            if self.stopping.is_set():
                return
            raise StartError(f"Failed to start server. Error: {error}") from error
        service = InferenceService(
            core,
            metrics,
            inference.Options(flags.enable_signature_method_name_check, flags.enable_serialization_as_tensor_content),
            {"GRPC": flags.grpc_max_threads},  # REST has its own threads, and bounds what waits for them
            self._request_log.log,
            self._tracer,
        )
        self._admission = Admission(flags.grpc_max_threads)
        self._grpc = rpc.make_server(
            service,
            self._health,
            self._farewell,
            self._admission,
            flags.max_message_bytes,
            flags.max_connections,
            arguments,
            tokens,
        )
        self._listen_grpc(credentials)
        if flags.rest_api_port:
            self._listen_rest(service, metrics, prometheus_path, tokens)
        self._watch(core, metrics, self._admission)

    def _loader(self, metrics: Metrics) -> SavedModelLoader:
        from serving import config, inference
        from serving.batching import Batcher
        from serving.batching_options import read_options
        from serving.loader import SavedModelLoader, SessionRunner
        from serving.token_counter import token_counter

        flags = self._flags
        batching = (
            read_options(flags.batching_parameters_file, flags.max_batch_tokens) if flags.enable_batching else None
        )

        def batch(session: SessionRunner, name: str, path: str) -> Runner:
            if batching is None:
                return session
            options = batching
            if flags.enable_per_model_batching_parameters:
                # As there: threads are the server's affair, all else is the model's; one without the file is not
                # batched.
                own = f"{path}/batching_params.pbtxt"
                if not config.exists(own):
                    return session
                options = replace(read_options(own, flags.max_batch_tokens), num_threads=batching.num_threads)
            counter = token_counter(session, dict(session.meta_graph.signature_def))
            return Batcher(session, options, counter, metrics, name)

        def on_warm_up(path: str, status: str, seconds: float, records: int) -> None:
            metrics.warmup_latency.observe(seconds * 1e6, path, status)
            metrics.warmup_records_read.add(path, status, by=records)

        return SavedModelLoader(
            tags=tuple(flags.saved_model_tags.split(",")),
            session_config=config.session_config(flags),
            warm_up=inference.replay if flags.enable_model_warmup else None,
            warm_up_iterations=max(1, flags.num_request_iterations_for_warmup),
            on_warm_up=on_warm_up,
            batch=batch,
        )

    def _listen_grpc(self, credentials: grpc.ServerCredentials | None) -> None:
        assert self._grpc is not None
        flags = self._flags
        addresses = []
        if flags.grpc_socket_path:
            addresses.append(f"unix:{flags.grpc_socket_path}")
        if flags.port or not flags.grpc_socket_path:
            addresses.append(f"{_bracketed(flags.host)}:{flags.port}")
        for address in addresses:
            try:
                if credentials is None:
                    port = self._grpc.add_insecure_port(address)
                else:
                    port = self._grpc.add_secure_port(address, credentials)
            except RuntimeError as error:
                raise StartError(f"Cannot listen for gRPC on {address}; is it in use? ({error})") from error
            if not address.startswith("unix:"):
                self.grpc_port = port
        self._grpc.start()
        if self.grpc_port:
            announce("grpc", f"{_bracketed(flags.host)}:{self.grpc_port}")
        if flags.grpc_socket_path:
            announce("grpc", f"unix:{flags.grpc_socket_path}")

    def _listen_rest(
        self, service: InferenceService, metrics: Metrics, prometheus_path: str | None, tokens: Sequence[str]
    ) -> None:
        from serving.http_server import HttpServer, Limits
        from serving.rest import RestApi
        from serving.rpc import token_accepted

        flags = self._flags
        encoded = [t.encode() for t in tokens]
        api = RestApi(
            service,
            flags.rest_api_timeout_in_ms / 1000 if flags.rest_api_timeout_in_ms > 0 else None,
            flags.rest_api_enable_cors_support,
            prometheus_path,
            (lambda header: token_accepted(header, encoded)) if encoded else (lambda header: True),
            flags.max_message_bytes,
        )
        limits = Limits(flags.rest_api_num_threads, flags.max_connections, flags.max_message_bytes)
        rest = HttpServer(api, flags.host, max(0, flags.rest_api_port), limits, metrics)
        rest.start()
        self._rest, self.rest_port = rest, rest.port
        announce("rest", f"{_bracketed(flags.host)}:{self.rest_port}")

    def _watch(self, core: ServerCore, metrics: Metrics, admission: Admission) -> None:
        """Keeps readiness up to date, ends calls that hang and, where asked to, rereads the configuration file."""
        from serving.config import model_config

        interval = self._flags.model_config_file_poll_wait_seconds

        def ready() -> None:
            while True:
                is_ready = core.is_ready()
                self._health.set_ready(is_ready)
                metrics.ready.set(int(is_ready))
                admission.end_overdue()
                if self.stopping.wait(0.5):
                    return

        def reread() -> None:
            while not self.stopping.wait(interval):
                try:
                    core.reload_config(model_config(self._flags), stop=self.stopping)
                except (StartError, StatusError) as error:
                    _log.error("the configuration file is not taken over: %s", error)
                except Exception as error:  # whatever it was, the next look may go well
                    _log.error("the configuration file is not taken over: %s", where(error))

        self._health.set_ready(core.is_ready())
        targets = [ready, reread] if self._flags.model_config_file and interval > 0 else [ready]
        for target in targets:
            self._threads.append(threading.Thread(target=target, name=target.__name__, daemon=True))
            self._threads[-1].start()

    def wait(self) -> None:
        """Blocks until `stopping` is set, then stops."""
        self.stopping.wait()
        self.stop()

    def stop(self) -> None:
        """Refuses new requests, finishes those begun within `--drain_seconds`, unloads the models."""
        self.stopping.set()
        end = time.monotonic() + self._flags.drain_seconds

        def left() -> float:
            return max(0.0, end - time.monotonic())

        if self._grpc is not None:
            self._health.stopping()
            self._farewell.say()
            stopped = self._grpc.stop(left())  # begins at once, and meanwhile REST does the same
            if self._rest is not None:
                self._rest.stop(left())
            stopped.wait()
        if self._admission is not None:
            self._admission.close()
        for thread in self._threads:
            thread.join()
        if self._core is not None:
            self._core.stop(max(_UNLOAD_S, left()))
        if self._request_log is not None:
            self._request_log.close()
        if self._tracer is not None:
            self._tracer.close()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _read_tokens(path: str) -> list[str]:
    if not path:
        return []
    try:
        with open(path, encoding="utf-8") as file:
            tokens = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise StartError(f"--bearer_tokens_file: cannot read {path}: {error.strerror}") from error
    if not tokens:
        raise StartError(f"--bearer_tokens_file: {path} holds no token")
    return tokens


def announce(what: str, address: str) -> None:
    """Tells a parent process, on standard output, where the server listens."""
    print(f"listening on {what} {address}", flush=True)


def _freeze_imports() -> None:
    """Imports TensorFlow and all, and takes it out of the garbage collector's rounds.

    Going over it again and again would take a twentieth of the processor's time, and milliseconds at once. Models are
    loaded later, and stay collectable.
    """
    gc.disable()
    # TensorFlow imports one of these with itself if it can. None is needed here, and each costs seconds and 100 MB.
    for name in ("keras", "tf_keras"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    import serving.rpc
    import serving.service  # noqa: F401

    gc.enable()
    gc.collect()
    gc.freeze()


def allow_open_files() -> None:
    """As many as the system lets this user have: every connection is one, and most shells start with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # beyond what the kernel takes for a process: it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(argv: Sequence[str]) -> int:
    """Runs the server until a signal ends it. `argv` excludes the program's name."""
    if any(a in ("--help", "-h") for a in argv):
        print(usage())
        return 0
    try:
        flags = parse(list(argv))
    except StartError as error:
        print(error, file=sys.stderr)
        return 2
    # Of TensorFlow's C++ log, errors: the warning of an op that fails holds what it was fed.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Of itself TensorFlow has oneDNN only where there is AVX-512; it is faster without that, too.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    server = ModelServer(flags)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: server.stopping.set())
    if flags.version:
        from importlib.metadata import version

        print(f"biobert-cnn model server: {version('biobert-cnn')}\nTensorFlow Library: {version('tensorflow')}")
        return 0
    allow_open_files()
    _freeze_imports()
    try:
        server.start()
    except StartError as error:
        print(error, file=sys.stderr)
        server.stop()
        return 1
    server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
