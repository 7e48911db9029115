"""One server's models behind every protocol: configuration in, handles and states out.

gRPC and REST adapters talk to this class only; it wires source → manager and keeps the version labels.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2
from tensorflow_serving.config import model_server_config_pb2 as config_pb

from serving import config as configs
from serving.errors import Code, StatusError, invalid, quotable
from serving.loader import Servable
from serving.manager import Manager
from serving.policy import State
from serving.source import FileSystemSource

_log = logging.getLogger(__name__)
_STATES = {
    State.NEW: get_model_status_pb2.ModelVersionStatus.START,
    State.LOADING: get_model_status_pb2.ModelVersionStatus.LOADING,
    State.READY: get_model_status_pb2.ModelVersionStatus.AVAILABLE,
    State.UNLOADING: get_model_status_pb2.ModelVersionStatus.UNLOADING,
    State.DISABLED: get_model_status_pb2.ModelVersionStatus.END,
    State.ERROR: get_model_status_pb2.ModelVersionStatus.END,
}


class ServerCore:
    """Thread-safe.

    Args:
        manager: loads and keeps versions.
        poll_s: seconds between two looks at the base paths; 0 looks once.
        labels_for_unavailable: a label that is new may point at a version that is not loaded.
    """

    def __init__(self, manager: Manager, poll_s: float, labels_for_unavailable: bool = False):
        self.manager = manager
        self._poll_s = poll_s
        self._source = FileSystemSource(manager.set_aspired, poll_s)
        self._labels_for_unavailable = labels_for_unavailable
        self._labels: dict[str, dict[str, int]] = {}
        self._config = config_pb.ModelServerConfig()
        self._names: frozenset[str] = frozenset()
        self._reload = threading.Lock()
        # Told of each new configuration before it is taken over; a StatusError refuses it.
        self.on_config: list[Callable[[config_pb.ModelServerConfig], None]] = []

    def model_names(self) -> list[str]:
        return [m.name for m in self._config.model_config_list.config]

    def has_model(self, name: str) -> bool:
        """Whether the configuration names the model."""
        return name in self._names

    def is_ready(self) -> bool:
        """True once every configured model has a version that answers."""
        names = self.model_names()
        return bool(names) and all(self.manager.is_available(n) for n in names)

    # === Configuration ===

    def reload_config(
        self, config: config_pb.ModelServerConfig, timeout_s: float | None = None, stop: threading.Event | None = None
    ) -> None:
        """Replaces the list of models and waits until the new ones answer.

        What cannot be accepted changes nothing. Models that are no longer named are unloaded. One reload at a time;
        `timeout_s` and `stop` bound the wait for that, too.

        Raises:
            StatusError: the configuration is not acceptable, or a new model did not become available.
        """
        stop = stop or threading.Event()
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        with self._turn(deadline, stop):
            kind, old_kind = config.WhichOneof("config"), self._config.WhichOneof("config")
            if kind is None:
                return
            if kind != "model_config_list":
                raise invalid(
                    "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
                    "currently supported"
                )
            configs.check_models(config)
            labels = self._new_labels(config)
            old_names = set(self.model_names())
            first = old_kind is None
            for listener in self.on_config:
                listener(config)  # may still refuse
            self._config = config_pb.ModelServerConfig.FromString(config.SerializeToString())
            self._names = frozenset(self.model_names())
            self._labels = labels
            models = config.model_config_list.config
            with self.manager.fast_load() if first else nullcontext():
                empty = self._source.set_targets([configs.target(m) for m in models])
                new = [m.name for m in models if m.name not in old_names]
                if empty and (not first or self._poll_s == 0):
                    missing = [m for m in models if m.name in empty and m.name in new]
                    if missing:
                        where = ", ".join(f"{m.name} at: {m.base_path}" for m in missing)
                        raise StatusError(
                            Code.NOT_FOUND, f"Unable to find a numerical version path for servable {where}"
                        )
                self._await(new, None if timeout_s is None else deadline - time.monotonic(), stop)

    @contextmanager
    def _turn(self, deadline: float, stop: threading.Event) -> Iterator[None]:
        """Waits for the reload that is under way to end."""
        while not self._reload.acquire(timeout=0.1):
            if stop.is_set() or time.monotonic() >= deadline:
                code = Code.CANCELLED if stop.is_set() else Code.DEADLINE_EXCEEDED
                raise StatusError(code, "Another reload of the configuration is still under way")
        try:
            yield
        finally:
            self._reload.release()

    def _await(self, names: list[str], timeout_s: float | None, stop: threading.Event) -> None:
        missing = self.manager.wait_settled(names, timeout_s, stop)
        if missing:
            parts = []
            for name in missing:
                for status in self.manager.statuses(name):
                    code = f" due to error: {status.code.name}: {status.message}" if status.code else ""
                    parts.append(f"{{name: {name} version: {status.version}{code}}}")
            raise StatusError(Code.UNKNOWN, f"{len(missing)} model(s) did not become available: {{{', '.join(parts)}}}")

    def _new_labels(self, config: config_pb.ModelServerConfig) -> dict[str, dict[str, int]]:
        labels: dict[str, dict[str, int]] = {}
        for model in config.model_config_list.config:
            ready = {s.version for s in self.manager.statuses(model.name) if s.state is State.READY}
            for label, version in model.version_labels.items():
                old = self._labels.get(model.name, {}).get(label, version)
                may_wait = self._labels_for_unavailable and old == version
                if version not in ready and not may_wait:
                    raise StatusError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {model.name}, which is not "
                        "currently available for inference",
                    )
                labels.setdefault(model.name, {})[label] = version
        return labels

    # === Models ===

    @contextmanager
    def acquire(self, spec: model_pb2.ModelSpec) -> Iterator[Servable]:
        """Lends the version that a request's ModelSpec names.

        Raises:
            StatusError: `INVALID_ARGUMENT` for an unknown label or no name, `NOT_FOUND` if it is not being served.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        version = None
        choice = spec.WhichOneof("version_choice")
        if choice == "version":
            version = spec.version.value
        elif choice == "version_label":
            version = self._labels.get(spec.name, {}).get(spec.version_label)
            if version is None:
                raise invalid(f"Unrecognized servable version label: {quotable(spec.version_label)}")
        with self.manager.acquire(spec.name, version) as servable:
            yield servable

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """States of one version or of all, the newest first. Raises `StatusError`: `NOT_FOUND`."""
        statuses = self.manager.statuses(spec.name)
        if spec.HasField("version"):  # a label does not narrow the answer, in TensorFlow Serving neither
            wanted = spec.version.value
            statuses = [s for s in statuses if s.version == wanted]
            if not statuses:
                raise StatusError(Code.NOT_FOUND, f"Could not find version {wanted} of model {quotable(spec.name)}")
        if not statuses:
            raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {quotable(spec.name)}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in statuses:
            entry = response.model_version_status.add(version=status.version, state=_STATES[status.state])
            entry.status.error_code = int(status.code)
            entry.status.error_message = status.message
        return response

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures of one version. Raises `StatusError`."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {quotable(name)} is not supported")
        with self.acquire(request.model_spec) as servable:
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in servable.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = servable.name
            response.model_spec.version.value = servable.version
            response.metadata["signature_def"].Pack(signatures)
            return response

    def stop(self, drain_s: float) -> None:
        """Ends polling, unloads everything."""
        self._source.stop()
        self.manager.stop(drain_s)
