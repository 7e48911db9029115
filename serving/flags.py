"""The command line of the server: `tensorflow_model_server`'s flags, names and defaults, and a few of our own.

As there, a flag is `--name=value`, a boolean also plain `--name`. Unlike there, an unknown flag is an error.
Source: tensorflow_serving/model_servers/main.cc and server.h, 2.20.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

from serving.errors import StartError

CPUS = len(os.sched_getaffinity(0))  # those that this process may run on


def _flag(default: Any, text: str, ours: bool = False, inert: str = "") -> Any:
    return field(default=default, metadata={"text": text, "ours": ours, "inert": inert})


@dataclass(frozen=True)
class Flags:
    """Every flag with its value. `inert` in a flag's metadata says why another value is refused or has no effect."""

    # === Where it listens ===
    port: int = _flag(8500, "gRPC port; 0 without --grpc_socket_path: any free port, printed at start")
    grpc_socket_path: str = _flag("", "also listen for gRPC on this UNIX socket")
    rest_api_port: int = _flag(0, "REST port; 0: no REST; -1: any free port, printed at start")
    rest_api_num_threads: int = _flag(4 * CPUS, "REST requests worked on at once")
    rest_api_timeout_in_ms: int = _flag(30000, "deadline of a REST request; 0: none")
    rest_api_enable_cors_support: bool = _flag(False, "CORS headers in REST responses")
    host: str = _flag("127.0.0.1", "address to listen on; 0.0.0.0 for all, as in a container", ours=True)
    ssl_config_file: str = _flag("", "SSLConfig text proto: TLS, or mutual TLS, for gRPC")
    grpc_channel_arguments: str = _flag("", "comma-separated key=value arguments of the gRPC server")
    grpc_max_threads: int = _flag(4 * CPUS, "inference requests over gRPC worked on or queued at once")
    enable_grpc_healthcheck_service: bool = _flag(False, "gRPC health service", inert="on whatever the value")
    max_message_bytes: int = _flag(2**31 - 1, "largest request, gRPC or REST", ours=True)
    max_connections: int = _flag(
        1024, "open connections, of gRPC and of REST each; more are closed at once (REST: with an answer)", ours=True
    )
    bearer_tokens_file: str = _flag("", "file of accepted bearer tokens, one a line; empty: none", ours=True)
    drain_seconds: float = _flag(30.0, "after SIGTERM, time for requests that are being answered", ours=True)

    # === What it serves ===
    model_name: str = _flag("default", "name of the model (without --model_config_file)")
    model_base_path: str = _flag("", "folder of version folders (without --model_config_file)")
    model_config_file: str = _flag("", "ModelServerConfig text proto: several models, policies, labels")
    model_config_file_poll_wait_seconds: int = _flag(0, "reread the file this often; 0: never")
    file_system_poll_wait_seconds: int = _flag(1, "look for new versions this often; 0: once")
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "new labels may point at versions that are not loaded yet"
    )
    max_num_load_retries: int = _flag(5, "further tries to load a version")
    load_retry_interval_micros: int = _flag(60_000_000, "pause between tries")
    num_load_threads: int = _flag(0, "versions loaded at once, after the start; 0: one")
    num_unload_threads: int = _flag(0, "versions unloaded at once; 0: one")
    saved_model_tags: str = _flag("serve", "comma-separated tags of the meta graph")
    enable_model_warmup: bool = _flag(True, "replay assets.extra/tf_serving_warmup_requests before serving")
    num_request_iterations_for_warmup: int = _flag(0, "how often each is replayed, if over 0")
    enable_signature_method_name_check: bool = _flag(False, "check method_name of signatures")
    enable_serialization_as_tensor_content: bool = _flag(False, "answer Predict in tensor_content")

    # === How it computes ===
    enable_batching: bool = _flag(False, "batch across requests")
    batching_parameters_file: str = _flag("", "BatchingParameters text proto")
    enable_per_model_batching_parameters: bool = _flag(
        False, "batch by batching_params.pbtxt in the SavedModel folder, and a model without it not at all"
    )
    max_batch_tokens: int = _flag(
        0, "for models with a `tokens` signature: most padded tokens in a batch; 0: 128 a row of the largest batch",
        ours=True,
    )  # fmt: skip
    tensorflow_session_parallelism: int = _flag(0, "threads between and within ops")
    tensorflow_intra_op_parallelism: int = _flag(0, "threads within an op")
    tensorflow_inter_op_parallelism: int = _flag(0, "threads between ops")
    tensorflow_session_config_file: str = _flag("", "ConfigProto text proto")
    per_process_gpu_memory_fraction: float = _flag(0.0, "share of the GPU's memory")

    # === What it tells ===
    monitoring_config_file: str = _flag("", "MonitoringConfig text proto: Prometheus on the REST port")
    otlp_endpoint: str = _flag("", "OpenTelemetry collector for traces, such as http://localhost:4317", ours=True)
    version: bool = _flag(False, "print versions and exit")

    # === Known, and of no effect or refused here ===
    flush_filesystem_caches: bool = _flag(True, "", inert="left to the operating system")
    remove_unused_fields_from_bundle_metagraph: bool = _flag(True, "", inert="the graph is not kept")
    enable_profiler: bool = _flag(True, "", inert="this server has no profiler service")
    skip_initialize_tpu: bool = _flag(False, "", inert="there is no TPU")
    num_tflite_pools: int = _flag(CPUS, "", inert="there is no TF Lite")
    num_tflite_interpreters_per_pool: int = _flag(1, "", inert="there is no TF Lite")
    xla_cpu_compilation_enabled: bool = _flag(False, "", inert="TensorFlow's default holds")
    xla_gpu_compilation_enabled: bool = _flag(False, "", inert="TensorFlow's default holds")
    use_alts_credentials: bool = _flag(False, "refused")
    platform_config_file: str = _flag("", "refused")
    prefer_tflite_model: bool = _flag(False, "refused")
    thread_pool_factory_config_file: str = _flag("", "refused")
    mixed_precision: str = _flag("", "refused")


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _parse_value(name: str, kind: str, text: str) -> Any:
    try:
        if kind == "bool":
            return _BOOLEANS[text.lower()]
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except (KeyError, ValueError):
        raise StartError(f"--{name}={text}: expected a value of type {kind}") from None
    return text


def parse(argv: list[str]) -> Flags:
    """Reads the command line.

    Raises:
        StartError: an unknown flag, a value of the wrong type, or a combination that cannot work.
    """
    known = {f.name: f for f in fields(Flags)}
    given: dict[str, Any] = {}
    for argument in argv:
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in known:
            raise StartError(f"unknown argument: {argument.partition('=')[0]} (--help lists all flags)")
        kind = str(known[name].type)
        if not equals:
            if kind != "bool":
                raise StartError(f"--{name} needs a value: --{name}=…")
            text = "true"
        given[name] = _parse_value(name, kind, text)
    flags = Flags(**given)
    _check(flags, known)
    return flags


def _check(flags: Flags, known: dict[str, Any]) -> None:
    for name, f in known.items():
        if f.metadata["text"] == "refused" and getattr(flags, name) != f.default:
            raise StartError(f"--{name} is not supported by this server; use stock TensorFlow Serving for it")
    if flags.version:
        return
    if not flags.model_base_path and not flags.model_config_file:
        raise StartError("Both --model_base_path and --model_config_file are empty: there is nothing to serve")
    if flags.batching_parameters_file and not flags.enable_batching:
        raise StartError("--batching_parameters_file is set without --enable_batching")
    if flags.file_system_poll_wait_seconds < 0:
        raise StartError("--file_system_poll_wait_seconds must be 0 (look once) or a number of seconds")
    if flags.rest_api_port > 0 and flags.rest_api_port == flags.port:
        raise StartError("--rest_api_port cannot be the same as --port")
    if flags.tensorflow_session_parallelism > 0 and (
        flags.tensorflow_intra_op_parallelism > 0 and flags.tensorflow_inter_op_parallelism > 0
    ):
        raise StartError(
            "Either configure --tensorflow_session_parallelism or --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism, not all"
        )
    for name in ("port", "max_num_load_retries", "max_message_bytes", "drain_seconds"):
        if getattr(flags, name) < 0:
            raise StartError(f"--{name}={getattr(flags, name)} must not be negative")
    for name in ("grpc_max_threads", "rest_api_num_threads", "max_connections"):
        if getattr(flags, name) < 1:
            raise StartError(f"--{name} must be 1 or more")


def usage() -> str:
    """One line a flag, with its default; this server's own flags are marked."""
    lines = ["usage: biobert-cnn serve --model_base_path=FOLDER [--flag=value …]", ""]
    for f in fields(Flags):
        mark = " [not in TensorFlow Serving]" if f.metadata["ours"] else ""
        text = f.metadata["text"] or "accepted"
        if f.metadata["inert"]:
            text = f"{text}: no effect, {f.metadata['inert']}"
        default = str(f.default).lower() if f.type == "bool" else f.default
        lines.append(f"  --{f.name}={default}\n      {text}{mark}")
    return "\n".join(lines)
