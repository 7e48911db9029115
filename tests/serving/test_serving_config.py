"""Several models, policies, labels and reloads; flags; what a server listens on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from serving.errors import StartError
from serving.flags import Flags, parse

MAKE_SSL_CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "serving" / "make_ssl_config.sh"


def ask(channel, name="default", x=2.0, version=None, label=None) -> tuple[float, int]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([[x]], np.float32)))
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, 20)
    return response.outputs["y"].float_val[0], response.model_spec.version.value


def entry(name, path, extra="") -> str:
    return f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {extra} }}'


def config(*entries: str) -> str:
    return "model_config_list {" + "\n".join(entries) + "}"


def available(channel, name) -> list[int]:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    try:
        found = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, 20).model_version_status
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return []
        raise
    return [s.version for s in found if s.state == s.AVAILABLE]


def reload(channel, text: str, metric: str | None = None):
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(text, request.config)
    if metric:
        request.metric_names.append(metric)
    return model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, 60)


def code_of(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


@pytest.fixture
def versions(tmp_path, toys):
    """Versions 1, 2 (half plus two) and 3 (half plus three)."""
    base = tmp_path / "versions"
    for number, source in ((1, toys.half_plus_two), (2, toys.half_plus_two), (3, toys.half_plus_three)):
        shutil.copytree(source / "123", base / str(number))
    return base


# === Several models, version policies, labels ===


def test_a_config_file_serves_several_models(serve, toys, tmp_path):
    path = tmp_path / "models.config"
    path.write_text(config(entry("two", toys.half_plus_two), entry("three", toys.half_plus_three)))
    running = serve(model_config_file=path)
    assert ask(running.channel, "two") == (3.0, 123)
    assert ask(running.channel, "three") == (4.0, 123)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", [3]), ("model_version_policy { latest {} }", [3]),
        ("model_version_policy { latest { num_versions: 2 } }", [3, 2]),
        ("model_version_policy { all {} }", [3, 2, 1]),
        ("model_version_policy { specific { versions: 1 versions: 3 } }", [3, 1]),
    ],
)  # fmt: skip
def test_version_policies(serve, versions, tmp_path, policy, expected, eventually):
    path = tmp_path / "models.config"
    path.write_text(config(entry("m", versions, policy)))
    running = serve(model_config_file=path)
    eventually(lambda: available(running.channel, "m") == expected)
    for version in (1, 2, 3):
        if version in expected:
            assert ask(running.channel, "m", version=version) == (4.0 if version == 3 else 3.0, version)
        else:
            assert code_of(lambda v=version: ask(running.channel, "m", version=v))[0] is grpc.StatusCode.NOT_FOUND


def test_labels_name_versions_and_move_by_reload(serve, versions, tmp_path, eventually):
    both = "model_version_policy { specific { versions: 2 versions: 3 } }"
    path = tmp_path / "models.config"
    path.write_text(config(entry("m", versions, both)))
    running = serve(model_config_file=path, rest_api_port=-1)
    eventually(lambda: available(running.channel, "m") == [3, 2])
    labels = 'version_labels { key: "stable" value: 2 } version_labels { key: "canary" value: 3 }'
    assert reload(running.channel, config(entry("m", versions, both + labels))).status.error_code == 0
    assert ask(running.channel, "m", label="stable") == (3.0, 2)
    assert ask(running.channel, "m", label="canary") == (4.0, 3)
    url = running.rest + "/v1/models/m/labels/canary:predict"
    with urllib.request.urlopen(url, b'{"instances": [[2.0]]}', timeout=30) as response:
        assert json.loads(response.read()) == {"predictions": [[4.0]]}
    assert code_of(lambda: ask(running.channel, "m", label="nope")) == (
        grpc.StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: nope",
    )  # fmt: skip
    reload(running.channel, config(entry("m", versions, both + 'version_labels { key: "stable" value: 3 }')))
    assert ask(running.channel, "m", label="stable") == (4.0, 3)


def test_a_label_must_point_at_an_available_version(serve, versions, tmp_path):
    labels = 'version_labels { key: "stable" value: 3 }'
    path = tmp_path / "models.config"
    path.write_text(config(entry("m", versions, labels)))
    with pytest.raises(StartError, match="not currently available for inference"):
        serve(model_config_file=path)
    running = serve(model_config_file=path, allow_version_labels_for_unavailable_models=True)
    assert ask(running.channel, "m", label="stable") == (4.0, 3)
    wrong = config(entry("m", versions, 'version_labels { key: "stable" value: 7 }'))
    assert code_of(lambda: reload(running.channel, wrong))[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert ask(running.channel, "m", label="stable") == (4.0, 3)


# === Reload ===


def test_reload_by_rpc_adds_and_removes_models(serve, toys, tmp_path, eventually):
    running = serve(toys.half_plus_two, model_name="two")
    two, three = entry("two", toys.half_plus_two), entry("three", tmp_path / "three")
    shutil.copytree(toys.half_plus_three, tmp_path / "three")
    (tmp_path / "three/123/assets.extra").mkdir()
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    with tf.io.TFRecordWriter(str(tmp_path / "three/123/assets.extra/tf_serving_warmup_requests")) as writer:
        for _ in range(3):
            writer.write(log.SerializeToString())
    response = reload(running.channel, config(two, three), "/tensorflow/serving/model_warmup_records_read")
    assert (response.status.error_code, response.metric[0].int64_value_increase) == (0, 3)
    assert ask(running.channel, "three") == (4.0, 123)
    reload(running.channel, config(three))
    eventually(lambda: available(running.channel, "two") == [])
    assert code_of(lambda: ask(running.channel, "two")) == (
        grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(two)",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "ServerModelConfig type not supported by HandleReloadConfigRequest."),
        (config(entry("m", "/a"), entry("m", "/b")), "Illegal to list model m multiple times in config list"),
        (config(entry("m", "relative/path")), "Expected model m to have an absolute path or URI; got base_path()="),
        (config('config { name: "m" base_path: "/a" }'), "Illegal setting neither ModelServerConfig::model_type"),
        (config('config { name: "m" base_path: "/a" model_platform: "other" }'), "Model m requests unsupported plat"),
    ],
)
def test_a_config_that_makes_no_sense_changes_nothing(serve, toys, text, words):
    running = serve(toys.half_plus_two)
    code, details = code_of(lambda: reload(running.channel, text))
    assert (code, details[: len(words)]) == (grpc.StatusCode.INVALID_ARGUMENT, words)
    assert ask(running.channel) == (3.0, 123)


def test_reload_reports_a_new_model_that_cannot_load(serve, toys, tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    running = serve(toys.half_plus_two)
    kept = entry("default", toys.half_plus_two)
    code, details = code_of(lambda: reload(running.channel, config(kept, entry("b", tmp_path / "broken"))))
    assert code is grpc.StatusCode.UNKNOWN
    assert details.startswith("1 model(s) did not become available: {{name: b version: 1 due to error: ")
    code, details = code_of(lambda: reload(running.channel, config(kept, entry("c", tmp_path / "nowhere"))))
    assert code is grpc.StatusCode.NOT_FOUND
    assert ask(running.channel) == (3.0, 123)


def test_a_config_file_is_reread_where_asked_to_and_a_broken_one_is_not_taken_over(serve, toys, tmp_path, eventually):
    path = tmp_path / "models.config"
    path.write_text(config(entry("two", toys.half_plus_two)))
    running = serve(model_config_file=path, model_config_file_poll_wait_seconds=1)
    assert ask(running.channel, "two") == (3.0, 123)
    path.write_text("no config {")
    time.sleep(1.5)
    assert ask(running.channel, "two") == (3.0, 123)
    path.write_text(config(entry("three", toys.half_plus_three)))
    eventually(lambda: available(running.channel, "three") == [123])
    assert ask(running.channel, "three") == (4.0, 123)


def test_rereading_goes_on_after_a_failure_that_nobody_foresaw(serve, toys, tmp_path, eventually, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("a secret")

    path = tmp_path / "models.config"
    path.write_text(config(entry("two", toys.half_plus_two)))
    running = serve(model_config_file=path, model_config_file_poll_wait_seconds=1)
    with monkeypatch.context() as patched:
        patched.setattr("serving.core.ServerCore.reload_config", broken)
        eventually(lambda: "the configuration file is not taken over: RuntimeError at " in caplog.text)
    path.write_text(config(entry("three", toys.half_plus_three)))
    eventually(lambda: available(running.channel, "three") == [123])
    assert "secret" not in caplog.text


def test_a_config_file_is_not_reread_with_poll_0(serve, toys, tmp_path):
    path = tmp_path / "models.config"
    path.write_text(config(entry("two", toys.half_plus_two)))
    running = serve(model_config_file=path, model_config_file_poll_wait_seconds=0)
    path.write_text(config(entry("three", toys.half_plus_three)))
    time.sleep(1.5)
    assert ask(running.channel, "two") == (3.0, 123)
    assert available(running.channel, "three") == []


def test_a_config_that_does_not_parse_ends_the_server(spawn, tmp_path):
    path = tmp_path / "models.config"
    path.write_text("improperly formatted file {")
    process = spawn(f"--model_config_file={path}", wait=False)
    assert process.popen.wait(120) == 1
    log = (tmp_path / "server-0.log").read_text()
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in log
    assert "Traceback" not in log


def test_a_relative_base_path_on_the_command_line_counts_from_the_working_folder(serve, toys, monkeypatch):
    monkeypatch.chdir(toys.half_plus_two.parent)
    assert ask(serve("half_plus_two").channel) == (3.0, 123)


# === What it listens on ===


def test_predict_over_a_unix_socket(serve, toys, tmp_path):
    path = tmp_path / "grpc.sock"
    running = serve(toys.half_plus_two, grpc_socket_path=path)
    assert running.server.grpc_port == 0
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert ask(channel) == (3.0, 123)


def test_channel_arguments_are_taken(serve, toys):
    arguments = "grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb"
    assert ask(serve(toys.half_plus_two, grpc_channel_arguments=arguments).channel) == (3.0, 123)
    with pytest.raises(StartError, match="'nonsense' is not key=value"):
        serve(toys.half_plus_two, grpc_channel_arguments="nonsense")


def test_a_port_in_use_is_a_clear_error(serve, toys):
    port = serve(toys.half_plus_two).server.grpc_port
    with pytest.raises(StartError, match=f"Cannot listen for gRPC on 127.0.0.1:{port}; is it in use"):
        serve(toys.half_plus_two, port=port)


def _certificates(folder):
    """An authority, and a key and certificate of `localhost` that it signed; the client has one like it."""

    def run(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        run("x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-extfile", "san", "-out", f"{name}.pem")  # fmt: skip
    return folder


def test_tls_and_mutual_tls(serve, toys, tmp_path):
    from serving.client import TLS, Client
    from serving.errors import UnavailableError

    folder = _certificates(tmp_path)
    for mutual in (False, True):
        path = tmp_path / f"ssl-{mutual}.config"
        files = ["server.key", "server.pem", "ca.pem"] if mutual else ["server.key", "server.pem"]
        made = subprocess.run([MAKE_SSL_CONFIG, *files], check=True, capture_output=True, cwd=folder)
        path.write_bytes(made.stdout)
        running = serve(toys.text, model_name="m", ssl_config_file=path)
        target = f"localhost:{running.server.grpc_port}"
        anonymous = TLS.from_files(folder / "ca.pem")
        known = TLS.from_files(folder / "ca.pem", folder / "client.key", folder / "client.pem")
        with Client(target, "m", tls=known) as client:
            assert client.predict(["a"])[0].label == "short"
        with Client(target, "m", tls=anonymous, timeout_s=3) as client:
            if mutual:
                with pytest.raises(UnavailableError):
                    client.predict(["a"])
            else:
                assert client.predict(["a"])[0].label == "short"
        with Client(target, "m", timeout_s=3) as client, pytest.raises(UnavailableError):
            client.predict(["a"])


# === Health and reflection ===


def health(channel, service="") -> str:
    request = health_pb2.HealthCheckRequest(service=service)
    response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=20)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def test_health_tells_readiness_from_liveness_and_knows_each_model(serve, toys, eventually):
    running = serve(toys.half_plus_two, model_name="two")
    assert [health(running.channel, s) for s in ("", "liveness", "two", "PredictionService")] == ["SERVING"] * 4
    assert code_of(lambda: health(running.channel, "nope"))[0] is grpc.StatusCode.NOT_FOUND
    reload(running.channel, config(entry("three", toys.half_plus_three)))
    eventually(lambda: health(running.channel, "two") == "NOT_SERVING")
    assert [health(running.channel, s) for s in ("liveness", "three")] == ["SERVING", "SERVING"]


def test_readiness_follows_the_models_and_the_stop_and_can_be_watched(serve, toys, tmp_path, eventually):
    (tmp_path / "later").mkdir()
    running = serve(toys.half_plus_two, model_name="two", file_system_poll_wait_seconds=1)
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=""))
    statuses = (health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) for answer in watch)
    assert next(statuses) == "SERVING"
    both = config(entry("two", toys.half_plus_two), entry("later", tmp_path / "later"))
    assert code_of(lambda: reload(running.channel, both))[0] is grpc.StatusCode.NOT_FOUND
    assert next(statuses) == "NOT_SERVING"  # one of two models has no version
    time.sleep(1.2)  # the server looks twice, and has no news
    shutil.copytree(toys.half_plus_two / "123", tmp_path / "later" / "1")
    assert next(statuses) == "SERVING"
    running.server._health.stopping()
    assert next(statuses) == "NOT_SERVING"
    assert [health(running.channel, name) for name in ("liveness", "two", "PredictionService")] == [
        "SERVING", "NOT_SERVING", "NOT_SERVING"
    ]  # fmt: skip
    watch.cancel()


def test_reflection_lists_the_services(serve, toys):
    running = serve(toys.half_plus_two)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    answer = next(iter(stub.ServerReflectionInfo(iter([request]))))
    assert {s.name for s in answer.list_services_response.service} == {
        "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "tensorflow.serving.ModelService",
        "tensorflow.serving.PredictionService",
    }  # fmt: skip


# === Flags ===


CPUS = len(os.sched_getaffinity(0))
# model_servers/main.cc and server.h of TensorFlow Serving 2.20, every flag; the latter's options hold the defaults.
FLAGS_2_20 = {
    "allow_version_labels_for_unavailable_models": False, "batching_parameters_file": "", "enable_batching": False,
    "enable_grpc_healthcheck_service": False, "enable_model_warmup": True,
    "enable_per_model_batching_parameters": False, "enable_profiler": True,
    "enable_serialization_as_tensor_content": False, "enable_signature_method_name_check": False,
    "file_system_poll_wait_seconds": 1, "flush_filesystem_caches": True, "grpc_channel_arguments": "",
    "grpc_max_threads": 4 * CPUS, "grpc_socket_path": "", "load_retry_interval_micros": 60_000_000,
    "max_num_load_retries": 5, "mixed_precision": "", "model_base_path": "", "model_config_file": "",
    "model_config_file_poll_wait_seconds": 0, "model_name": "default", "monitoring_config_file": "",
    "num_load_threads": 0, "num_request_iterations_for_warmup": 0, "num_tflite_interpreters_per_pool": 1,
    "num_tflite_pools": CPUS, "num_unload_threads": 0, "per_process_gpu_memory_fraction": 0.0,
    "platform_config_file": "", "port": 8500, "prefer_tflite_model": False,
    "remove_unused_fields_from_bundle_metagraph": True, "rest_api_enable_cors_support": False,
    "rest_api_num_threads": 4 * CPUS, "rest_api_port": 0, "rest_api_timeout_in_ms": 30_000,
    "saved_model_tags": "serve", "skip_initialize_tpu": False, "ssl_config_file": "",
    "tensorflow_inter_op_parallelism": 0, "tensorflow_intra_op_parallelism": 0, "tensorflow_session_config_file": "",
    "tensorflow_session_parallelism": 0, "thread_pool_factory_config_file": "", "use_alts_credentials": False,
    "version": False, "xla_cpu_compilation_enabled": False, "xla_gpu_compilation_enabled": False,
}  # fmt: skip


def test_flags_are_tensorflow_serving_s_with_its_defaults():
    ours = vars(Flags())
    assert {name: ours.get(name, "missing") for name in FLAGS_2_20} == FLAGS_2_20
    assert set(ours) - set(FLAGS_2_20) == {
        "host", "max_message_bytes", "max_connections", "bearer_tokens_file", "drain_seconds", "max_batch_tokens",
        "otlp_endpoint",
    }  # fmt: skip
    assert Flags().host == "127.0.0.1"


def test_flags_are_read_as_tensorflow_serving_reads_them():
    flags = parse(["--model_base_path=/m", "--enable_batching", "--enable_model_warmup=false", "--port=7"])
    assert (flags.enable_batching, flags.enable_model_warmup, flags.port) == (True, False, 7)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model_base_path=/m", "--nope=1"], "unknown argument: --nope"),
        (["--model_base_path=/m", "stray"], "unknown argument: stray"),
        (["--model_base_path=/m", "--port"], "--port needs a value"),
        (["--model_base_path=/m", "--port=x"], "--port=x: expected a value of type int"),
        (["--model_base_path=/m", "--enable_batching=maybe"], "expected a value of type bool"),
        ([], "Both --model_base_path and --model_config_file are empty"),
        (["--model_base_path=/m", "--batching_parameters_file=/b"], "without --enable_batching"),
        (["--model_base_path=/m", "--use_alts_credentials"], "--use_alts_credentials is not supported"),
        (["--model_base_path=/m", "--port=9", "--rest_api_port=9"], "cannot be the same"),
    ],
)
def test_wrong_flags_are_refused(argv, words):
    with pytest.raises(StartError, match=words):
        parse(argv)


def test_wrong_usage_ends_with_status_2_at_once_and_help_lists_every_flag(capsys):
    from dataclasses import fields

    from serving.server import main

    assert main(["--nope"]) == 2
    assert capsys.readouterr().err == "unknown argument: --nope (--help lists all flags)\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [f.name for f in fields(Flags) if f"--{f.name}=" not in text] == []
