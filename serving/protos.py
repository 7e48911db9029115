"""Messages of TensorFlow Serving's protocol, without TensorFlow.

Two needs meet here. The client must import in a fraction of a second and install without TensorFlow, while the
generated modules of `tensorflow-serving-api` import all of it. And the messages of three configuration files
(`ssl.config`, `batching_parameters.txt`, `monitoring.config`) are in no package at all. So the messages are
described here, field by field as in TensorFlow Serving 2.20's .proto files, in a descriptor pool of their own, where
they do not collide with TensorFlow's. Names, numbers and types are the protocol's; `tests/serving` compares them with
the installed package, and where there is none with a table of those files.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    wrappers_pb2,
)

_F = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "double": _F.TYPE_DOUBLE,
    "float": _F.TYPE_FLOAT,
    "int64": _F.TYPE_INT64,
    "uint64": _F.TYPE_UINT64,
    "int32": _F.TYPE_INT32,
    "uint32": _F.TYPE_UINT32,
    "bool": _F.TYPE_BOOL,
    "string": _F.TYPE_STRING,
    "bytes": _F.TYPE_BYTES,
}

# file → (package, files it needs, {message: fields}); one field a line, as a .proto file writes it.
# `enum X` stands for an enum that is carried as its number: on the wire an enum is an int32.
_FILES: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "tensor.proto": (
        "tensorflow",
        [],
        {
            "TensorShapeProto.Dim": "int64 size = 1; string name = 2",
            "TensorShapeProto": "repeated .tensorflow.TensorShapeProto.Dim dim = 2; bool unknown_rank = 3",
            "TensorProto": """
                int32 dtype = 1; .tensorflow.TensorShapeProto tensor_shape = 2; int32 version_number = 3;
                bytes tensor_content = 4; repeated float float_val = 5; repeated double double_val = 6;
                repeated int32 int_val = 7; repeated bytes string_val = 8; repeated float scomplex_val = 9;
                repeated int64 int64_val = 10; repeated bool bool_val = 11; repeated double dcomplex_val = 12;
                repeated int32 half_val = 13; repeated uint32 uint32_val = 16; repeated uint64 uint64_val = 17""",
        },
    ),
    "apis.proto": (
        "tensorflow.serving",
        ["tensor.proto", "google/protobuf/wrappers.proto", "google/protobuf/any.proto"],
        {
            "ModelSpec": """
                string name = 1; oneof version_choice .google.protobuf.Int64Value version = 2;
                oneof version_choice string version_label = 4; string signature_name = 3""",
            "PredictRequest": """
                .tensorflow.serving.ModelSpec model_spec = 1; map .tensorflow.TensorProto inputs = 2;
                repeated string output_filter = 3""",
            "PredictResponse": """
                .tensorflow.serving.ModelSpec model_spec = 2; map .tensorflow.TensorProto outputs = 1""",
            "StatusProto": "int32 error_code = 1; string error_message = 2",
            "GetModelStatusRequest": ".tensorflow.serving.ModelSpec model_spec = 1",
            "ModelVersionStatus": """
                int64 version = 1; int32 state = 2; .tensorflow.serving.StatusProto status = 3""",
            "GetModelStatusResponse": """
                repeated .tensorflow.serving.ModelVersionStatus model_version_status = 1""",
        },
    ),
    "config.proto": (
        "tensorflow.serving",
        ["google/protobuf/wrappers.proto"],
        {
            "SSLConfig": """
                string server_key = 1; string server_cert = 2; string custom_ca = 3; bool client_verify = 4""",
            "PrometheusConfig": "bool enable = 1; string path = 2",
            "MonitoringConfig": ".tensorflow.serving.PrometheusConfig prometheus_config = 1",
            "BatchingParameters": """
                .google.protobuf.Int64Value max_batch_size = 1;
                .google.protobuf.Int64Value batch_timeout_micros = 2;
                .google.protobuf.Int64Value max_enqueued_batches = 3;
                .google.protobuf.Int64Value num_batch_threads = 4;
                .google.protobuf.StringValue thread_pool_name = 5;
                repeated int64 allowed_batch_sizes = 6; bool pad_variable_length_inputs = 7;
                .google.protobuf.BoolValue enable_large_batch_splitting = 8;
                .google.protobuf.Int64Value max_execution_batch_size = 9""",
        },
    ),
}


def _add_field(message: descriptor_pb2.DescriptorProto, text: str, full_name: str) -> None:
    *words, name, _, number = text.split()
    field = message.field.add(name=name, number=int(number), label=_F.LABEL_OPTIONAL)
    if words[0] == "repeated":
        field.label = _F.LABEL_REPEATED
        words = words[1:]
    elif words[0] == "oneof":
        if words[1] not in [o.name for o in message.oneof_decl]:
            message.oneof_decl.add(name=words[1])
        field.oneof_index = len(message.oneof_decl) - 1
        words = words[2:]
    elif words[0] == "map":  # map<string, …>: a repeated nested entry, as the language defines it
        entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        entry = message.nested_type.add(name=entry_name)
        entry.options.map_entry = True
        _add_field(entry, "string key = 1", full_name)
        _add_field(entry, f"{words[1]} value = 2", full_name)
        field.label, words = _F.LABEL_REPEATED, [f".{full_name}.{entry_name}"]
    if words[0] in _SCALARS:
        field.type = _SCALARS[words[0]]
    else:
        field.type, field.type_name = _F.TYPE_MESSAGE, words[0]


def _build_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for module in (wrappers_pb2, any_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    for file_name, (package, needs, messages) in _FILES.items():
        file = descriptor_pb2.FileDescriptorProto(name=file_name, package=package, dependency=needs, syntax="proto3")
        made: dict[str, descriptor_pb2.DescriptorProto] = {}
        for name in sorted(messages):  # a parent sorts before what is nested in it
            parent, _, short = name.rpartition(".")
            made[name] = (made[parent].nested_type if parent else file.message_type).add(name=short)
            for text in messages[name].split(";"):
                _add_field(made[name], text, f"{package}.{name}")
        pool.Add(file)
    return pool


_POOL = _build_pool()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


TensorProto = _message("tensorflow.TensorProto")
ModelSpec = _message("tensorflow.serving.ModelSpec")
PredictRequest = _message("tensorflow.serving.PredictRequest")
PredictResponse = _message("tensorflow.serving.PredictResponse")
GetModelStatusRequest = _message("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = _message("tensorflow.serving.GetModelStatusResponse")
SSLConfig = _message("tensorflow.serving.SSLConfig")
MonitoringConfig = _message("tensorflow.serving.MonitoringConfig")
BatchingParameters = _message("tensorflow.serving.BatchingParameters")

# DataType numbers that a client of a text classifier meets (tensorflow/core/framework/types.proto).
DT_FLOAT, DT_INT32, DT_STRING, DT_INT64, DT_BOOL = 1, 3, 7, 9, 10
