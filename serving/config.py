"""Reads the server's text protos and turns them into values."""

from __future__ import annotations

import os
import posixpath
from typing import Any, TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message
from tensorflow.core.protobuf import config_pb2
from tensorflow.io import gfile
from tensorflow_serving.config import model_server_config_pb2 as pb

from serving.errors import StartError, invalid
from serving.flags import Flags
from serving.protos import MonitoringConfig
from serving.source import Target, VersionPolicy

_M = TypeVar("_M", bound=Message)


def read_text_proto(path: str, message: _M) -> _M:
    """Parses a text proto file into `message`.

    Raises:
        StartError: the file cannot be read, or does not parse; with line and column.
    """
    try:
        with gfile.GFile(path, "r") as file:
            text = file.read()
    except Exception as error:  # gfile raises whatever the file system behind it does
        raise StartError(f"Cannot read {path}: {getattr(error, 'message', error)}") from error
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        name = message.DESCRIPTOR.full_name
        raise StartError(f"Error parsing text-format {name}: {path}:{error}") from error


def model_config(flags: Flags) -> pb.ModelServerConfig:
    """The models that the command line asks for."""
    config = pb.ModelServerConfig()
    if flags.model_config_file:
        return read_text_proto(flags.model_config_file, config)
    # On the command line, unlike in a file, it is clear what a relative path is relative to.
    path = flags.model_base_path if "://" in flags.model_base_path else os.path.abspath(flags.model_base_path)
    config.model_config_list.config.add(name=flags.model_name, base_path=path, model_platform="tensorflow")
    return config


def check_models(config: pb.ModelServerConfig) -> None:
    """Raises `StatusError` (`INVALID_ARGUMENT`) if the list of models makes no sense."""
    seen: set[str] = set()
    for model in config.model_config_list.config:
        if model.name in seen:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        seen.add(model.name)
        platform(model)
        if "://" not in model.base_path and not posixpath.isabs(model.base_path):
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )


def platform(model: pb.ModelConfig) -> str:
    """The model's platform: `tensorflow`, the only one. Raises `StatusError` for any other."""
    if model.model_type and model.model_platform:
        raise invalid(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    if model.model_type:
        if model.model_type != pb.TENSORFLOW:
            raise invalid(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
        return "tensorflow"
    if not model.model_platform:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    if model.model_platform != "tensorflow":
        raise invalid(f"Model {model.name} requests unsupported platform {model.model_platform}")
    return model.model_platform


def target(model: pb.ModelConfig) -> Target:
    """What the source watches for one model; the default policy is the latest version."""
    choice = model.model_version_policy.WhichOneof("policy_choice") or "latest"
    return Target(
        model.name,
        model.base_path,
        VersionPolicy(
            kind=choice,
            latest=max(1, model.model_version_policy.latest.num_versions),
            specific=tuple(model.model_version_policy.specific.versions),
        ),
    )


def session_config(flags: Flags) -> config_pb2.ConfigProto:
    """Threads and GPU memory of the sessions; 0 leaves the choice to TensorFlow."""
    config = config_pb2.ConfigProto()
    if flags.tensorflow_session_config_file:
        read_text_proto(flags.tensorflow_session_config_file, config)
    if flags.per_process_gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = flags.per_process_gpu_memory_fraction
    both = flags.tensorflow_session_parallelism
    intra, inter = flags.tensorflow_intra_op_parallelism, flags.tensorflow_inter_op_parallelism
    if intra > 0 or inter > 0:
        config.intra_op_parallelism_threads, config.inter_op_parallelism_threads = intra, inter
    elif both > 0:
        config.intra_op_parallelism_threads = config.inter_op_parallelism_threads = both
    return config


def wrapped(message: Any, name: str, default: int) -> int:
    """The value of a wrapper field, or the default where the file does not set it."""
    return getattr(message, name).value if message.HasField(name) else default


def exists(path: str) -> bool:
    return gfile.exists(path)


def prometheus_path(flags: Flags) -> str | None:
    """The path of the Prometheus page, or None where `--monitoring_config_file` does not switch it on."""
    if not flags.monitoring_config_file:
        return None
    found = read_text_proto(flags.monitoring_config_file, MonitoringConfig()).prometheus_config
    return (found.path or "/monitoring/prometheus/metrics") if found.enable else None
