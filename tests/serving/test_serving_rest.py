"""The REST API: TensorFlow Serving's api_rest.md and http_rest_api_handler_test.cc, over real HTTP."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import math
import socket
import urllib.error
import urllib.request

import grpc
import pytest
from tensorflow_serving.apis import classification_pb2

from serving.client_core import PREDICT_METHOD
from serving.errors import StatusError
from serving.json_tensor import examples_request
from serving.metrics import Metrics


def call(running, path: str, body=None, method: str | None = None, headers: dict | None = None):
    """(status, parsed JSON); a body that is not bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(running.rest + path, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture
def half(serve, toys):
    return serve(toys.half_plus_two, rest_api_port=-1)


def test_predict_in_row_form(half):
    assert call(half, "/v1/models/default:predict", {"instances": [2.0, 3.0, 4.0]}) == (
        200, {"predictions": [3.0, 3.5, 4.0]},
    )  # fmt: skip
    rows = {"instances": [{"x": [2.0]}, {"x": [4]}]}
    assert call(half, "/v1/models/default:predict", rows) == (200, {"predictions": [[3.0], [4.0]]})


def test_predict_in_columnar_form(half):
    assert call(half, "/v1/models/default:predict", {"inputs": [2.0, 3.0, 4.0]}) == (200, {"outputs": [3.0, 3.5, 4.0]})
    assert call(half, "/v1/models/default:predict", {"inputs": {"x": [[2.0]]}}) == (200, {"outputs": [[3.0]]})


@pytest.mark.parametrize("path", ["/v1/models/default/versions/123:predict", "/V1/Models/default:predict"])
def test_predict_takes_a_version_in_the_path_and_a_path_in_any_case(half, path):
    assert call(half, path, {"instances": [2.0]}) == (200, {"predictions": [3.0]})


def test_several_outputs_are_objects_and_strings_and_bytes_pass(serve, toys):
    running = serve(toys.text, rest_api_port=-1)
    encoded = {"b64": base64.b64encode("é".encode() * 20).decode()}
    status, found = call(running, "/v1/models/default:predict", {"instances": ["a", encoded]})
    assert status == 200
    assert [p["label"] for p in found["predictions"]] == ["short", "long"]
    assert found["predictions"][0]["classes"] == ["short", "long"]
    assert found["predictions"][0]["probabilities"] == [0.909090877, 0.0909090936]
    status, found = call(running, "/v1/models/default:predict", {"inputs": {"text": ["a"]}})
    assert (status, found["outputs"]["label"]) == (200, ["short"])


def decoded(text: str) -> bytes:
    request = classification_pb2.ClassificationRequest()
    examples_request(json.dumps({"examples": [{"x": {"b64": text}}]}).encode(), request)
    return request.input.example_list.examples[0].features.feature["x"].bytes_list.value[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", b""), ("YWJj", b"abc"), ("YWI=", b"ab"), ("YWI.", b"ab"), ("YWI", b"ab"), ("YQ==", b"a"), ("YQ=.", b"a"),
        ("YQ", b"a"), ("YR==", b"a"), ("/+8=", b"\xff\xef"), (" Y\tW\nJ\rj\v\f", b"abc"), ("YQ = =\n", b"a"),
        ("YW\nI", b"ab"),
    ],
)  # fmt: skip
def test_base64_is_read_as_absl_reads_it(text, value):
    assert decoded(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "Y",
        "Y===",
        "YQ=",
        "YQ===",
        "YWI==",
        "YWJj=",
        "=",
        "Y=Q=",
        "YQ==YQ==",
        "_-8=",
        "YQ\0=",
        "YQ=\xa0=",
        "\u2003YQ==",
        "*",
    ],
)
def test_what_absl_does_not_take_for_base64_is_refused(text):
    with pytest.raises(StatusError, match="Unable to base64 decode"):
        decoded(text)


def test_not_a_number_and_infinity_are_read_and_written(half):
    body = b'{"instances": [NaN, Infinity, -Infinity]}'
    status, found = call(half, "/v1/models/default:predict", body)
    assert status == 200
    assert math.isnan(found["predictions"][0])
    assert found["predictions"][1:] == [math.inf, -math.inf]


def test_classify(half):
    body = {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}, {"x": [4.0]}]}
    assert call(half, "/v1/models/default:classify", body) == (200, {"results": [[["", 3.0]], [["", 4.0]]]})


def test_regress_with_a_context_shared_by_all_examples(half):
    body = {"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]}
    assert call(half, "/v1/models/default:regress", body) == (200, {"results": [3.0]})
    body = {"signature_name": "regress_x_to_y", "context": {"x": 4.0}, "examples": [{"x2": 1.0}, {"x": 2.0}]}
    assert call(half, "/v1/models/default:regress", body) == (200, {"results": [4.0, 3.0]})


def test_status(half):
    expected = {
        "model_version_status": [
            {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert call(half, "/v1/models/default") == (200, expected)
    assert call(half, "/v1/models/default/versions/123") == (200, expected)
    assert call(half, "/v1/models/default/versions/7") == (
        404, {"error": "Could not find version 7 of model default"},
    )  # fmt: skip
    assert call(half, "/v1/models/nope") == (404, {"error": "Could not find any versions of model nope"})


def test_metadata_equals_the_stored_json(half):
    def tensor(name, dtype="DT_FLOAT", *dims):
        shape = {"dim": [{"size": d, "name": ""} for d in dims], "unknown_rank": False}
        return {"dtype": dtype, "tensor_shape": shape, "name": name}

    def signature(inputs, outputs, method):
        return {
            "inputs": inputs, "outputs": outputs, "method_name": f"tensorflow/serving/{method}", "defaults": {},
        }  # fmt: skip

    examples = {"inputs": tensor("tf_example:0", "DT_STRING", "-1")}
    y, y2, y3 = (tensor(f"{n}:0", "DT_FLOAT", "-1", "1") for n in ("y", "y2", "y3"))
    x, x2 = (tensor(f"{n}:0", "DT_FLOAT", "-1", "1") for n in ("x", "x2"))
    expected = {
        "model_spec": {"name": "default", "signature_name": "", "version": "123"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": signature({"x": x}, {"y": y}, "predict"),
                    "regress_x_to_y": signature(examples, {"outputs": y}, "regress"),
                    "regress_x_to_y2": signature(examples, {"outputs": y2}, "regress"),
                    "regress_x2_to_y3": signature({"inputs": x2}, {"outputs": y3}, "regress"),
                    "classify_x_to_y": signature(examples, {"scores": y}, "classify"),
                }
            }
        },
    }
    assert call(half, "/v1/models/default/metadata") == (200, expected)
    assert call(half, "/v1/models/default/versions/123/metadata") == (200, expected)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models"), ("POST", "/v1/models/m"), ("POST", "/v1/models/m:nope"), ("GET", "/v1/nope"),
        ("POST", "/v1/models/m/versions/x:predict"), ("DELETE", "/v1/models/m"), ("GET", "/v1/models/m:predict"),
        ("POST", "/v1/models/m/versions/1/labels/a:predict"), ("PUT", "/v1/models/m:predict"),
    ],
)  # fmt: skip
def test_calls_that_the_api_does_not_have_are_malformed(half, method, path):
    body = b"{}" if method in ("POST", "PUT") else None
    assert call(half, path, body, method) == (400, {"error": f"Malformed request: {method} {path}"})


def test_paths_outside_the_api_are_not_found(half):
    assert call(half, "/statuspage")[0] == 404
    assert call(half, "/")[0] == 404
    assert call(half, "/v1/models") == (400, {"error": "Missing model name in request."})


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/models/nope:predict", 404, "Servable not found for request: Latest(nope)"),
        ("/v1/models/default/versions/7:predict", 404, "Servable not found for request: Specific(default, 7)"),
        ("/v1/models/default/labels/nope:predict", 400, "Unrecognized servable version label: nope"),
        ("/v1/models/default/versions/99999999999999999999:predict", 400, "Failed to convert version: "),
    ],
)
def test_unknown_models_versions_and_labels(half, path, status, words):
    code, found = call(half, path, {"instances": [1.0]})
    assert (code, found["error"][: len(words)]) == (status, words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b" \n", "JSON Parse error: The document is empty"),
        (b"instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
        (b'{"instances": [1.0', "JSON Parse error: Missing a comma or } after an object member, or a comma or ]"),
        (b"{instances: [1.0]}", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (b'{"instances": [1.0], }', "JSON Parse error: Missing a name for object member. at offset: 21"),
        (b'{"instances": [1.0, ]}', "JSON Parse error: Invalid value. at offset: 20"),
        (
            b'\xef\xbb\xbf{"\xc3\xa9\xe2\x82\xac" 1}',
            "JSON Parse error: Missing a colon after a name of object member. at offset: 12",
        ),
        (b'{"\xc3\xa9": "\xff"}', "JSON Parse error: Invalid encoding at offset: 8"),
        (b'\xef\xbb\xbf{"\xff"}', "JSON Parse error: Invalid encoding at offset: 5"),
        (b'{"instances" [1.0]}', "JSON Parse error: Missing a colon after a name of object member. at offset: 13"),
        (b'{"instances": ["1.0]}', "JSON Parse error: Missing a closing quotation mark in string."),
        (b'{"instances": ["secret\\q"]}', "JSON Parse error: Invalid escape character in string."),
        (b'{"instances": ["\\uZZZZ"]}', "JSON Parse error: Incorrect hex digit after \\u escape in string."),
        (b'{"instances": ["\n"]}', "JSON Parse error: Invalid encoding in string."),
        (b"[1.0]", "JSON Value: (Array) Is not object"),
        (b'{"instances": [' + b"9" * 5000 + b"]}", "JSON Parse error: "),
        (b'{"instances": ' + b"[" * 100_000, "JSON Parse error: "),
        (b'{"instances": ["\xff"]}', "JSON Parse error: Invalid encoding"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"signature_name": 5, "instances": [1]}', "JSON Value: (Object) not formatted correctly. 'signature_name'"),
        (b'{"signature_name": "z", "instances": [1]}', 'Serving signature name: "z" not found in signature def'),
        (b'{"instances": 1}', "JSON Value: (Object) Expecting 'instances' to be an list/array"),
        (b'{"instances": []}', "JSON Value: (Object) No values in 'instances' array"),
        (b'{"instances": [1], "inputs": [1]}', "JSON Value: (Object) Not formatted correctly expecting only"),
        (b'{"instances": ["secret"]}', "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT"),
        (b'{"instances": [1.0, true]}', "Failed to process element: 1 of 'instances' list."),
        (b'{"instances": [[1.0], [1.0, 2.0]]}', "Failed to process element: 1 of 'instances' list."),
        (b'{"instances": [{"x": 1}, 2]}', "Expecting object but got list at item 1 of input list"),
        (b'{"instances": [1, {"x": 2}]}', "Expecting value/list but got object at item 1 of input list"),
        (
            b'{"instances": [{"z": 1}]}',
            "Failed to process element: 0 key: z of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON object: does not have named input: z",
        ),
        (b'{"instances": [{"a secret": 1}]}', "Failed to process element: 0 key: (not a name) of 'instances' list."),
        (b'{"inputs": {"z": [1]}}', "Missing named input: x in 'inputs' object."),
        (b'{"inputs": [[1], 2]}', "JSON Value: (Number) found at incorrect level: 2 in the JSON DOM. Expected at"),
        (b'{"inputs": [1, [2]]}', "Encountered list at unexpected level: 1 expected < 1"),
        (b'{"inputs": [[1], [2, 3]]}', "Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
    ],
)
def test_predict_requests_that_are_wrong_say_where_and_never_what(half, body, words):
    status, found = call(half, "/v1/models/default:predict", body)
    assert (status, found["error"][: len(words)]) == (400, words)
    assert "secret" not in found["error"]


@pytest.mark.parametrize(
    ("end", "words", "body"),
    [
        ("object", "Missing a name for object member. at offset: 12", '{"\u00e9": [1], }'),
        ("array", "Invalid value. at offset: 11", '{"\u00e9": [1, ]}'),
    ],
)
def test_python_3_13_s_words_for_a_comma_too_many_are_rapidjson_s(monkeypatch, end, words, body):
    from serving import json_tensor
    from serving.errors import StatusError

    class Decoder:
        def raw_decode(self, text, start):
            raise json.JSONDecodeError(f"Illegal trailing comma before end of {end}", text, text.index(", "))

    for decoder in (json_tensor._DECODER, Decoder()):  # this Python's, and that one's
        monkeypatch.setattr(json_tensor, "_DECODER", decoder)
        with pytest.raises(StatusError) as caught:
            json_tensor.parse(body.encode())
        assert caught.value.message == f"JSON Parse error: {words}"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"signature_name": "classify_x_to_y"}, "JSON Value: (Object) When method is classify, key 'examples'"),
        ({"examples": 1}, "JSON Value: (Object) Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "JSON Value: (Object) 'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1]]}]}, "Feature: x has element with unexpected JSON type: Array"),
        ({"examples": [{"x": [1.0, "secret"]}]}, "Unexpected element type in feature: x expecting type: float"),
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64_t element. Only int64_t is supported."),
        ({"examples": [{"x": {"b64": "*secret*"}}]}, "Unable to base64 decode"),
        ({"signature_name": "classify_x_to_y", "examples": [{"y": "secret"}]}, "The model's graph failed: Feature: x"),
    ],
)
def test_classify_requests_that_are_wrong_say_where_and_never_what(half, body, words):
    status, found = call(half, "/v1/models/default:classify", body)
    assert (status, found["error"][: len(words)]) == (400, words)
    assert "secret" not in found["error"]


def test_a_failure_that_nobody_foresaw_is_logged_by_its_place_only(half, monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("a secret")

    monkeypatch.setattr("serving.json_tensor.predict_response", broken)
    assert call(half, "/v1/models/default:predict", {"instances": [1.0]}) == (
        500, {"error": "Internal error of the server"},
    )  # fmt: skip
    assert "a REST request failed: RuntimeError at " in caplog.text
    assert "secret" not in caplog.text


def test_cors_headers_and_preflight(serve, toys):
    running = serve(toys.half_plus_two, rest_api_port=-1, rest_api_enable_cors_support=True)
    assert call(running, "/v1/models/default:predict", method="OPTIONS", headers={"Origin": "http://a"}) == (200, None)
    assert call(running, "/v1/models/default:predict", method="OPTIONS") == (
        400, {"error": "Origin header is missing in CORS preflight"},
    )  # fmt: skip
    with urllib.request.urlopen(running.rest + "/v1/models/default") as response:
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["Content-Type"] == "application/json"


def test_metrics_are_where_the_monitoring_config_says(serve, toys, tmp_path):
    config = tmp_path / "monitoring.config"
    config.write_text("prometheus_config { enable: true }")
    running = serve(toys.half_plus_two, rest_api_port=-1, monitoring_config_file=config)
    call(running, "/v1/models/default:predict", {"instances": [1.0]})
    call(running, "/v1/models/default:predict", {"instances": ["a"]})
    with urllib.request.urlopen(running.rest + "/monitoring/prometheus/metrics") as response:
        lines = response.read().decode().splitlines()
    assert "# TYPE :tensorflow:serving:request_count counter" in lines
    assert ':tensorflow:serving:request_count{model_name="default",status="OK"} 1' in lines
    latency = ':tensorflow:serving:request_latency_count{model_name="default",API="predict",entrypoint="REST"} 1'
    assert latency in lines
    assert ':biobert_cnn:serving:model_version_available{model_name="default",version="123"} 1' in lines
    plain = serve(toys.half_plus_two, rest_api_port=-1)
    assert call(plain, "/monitoring/prometheus/metrics")[0] == 404


def test_every_request_is_counted_with_its_status_and_no_name_that_a_client_made_up(serve, toys, tmp_path):
    config = tmp_path / "monitoring.config"
    config.write_text("prometheus_config { enable: true }")
    running = serve(toys.half_plus_two, rest_api_port=-1, monitoring_config_file=config)
    name, predict = ":tensorflow:serving:request_count", "/v1/models/default:predict"
    asked = [
        (predict, {"instances": [1.0]}, 200), (predict, {"instances": ["a"]}, 400), (predict, b"{", 400),
        (predict, {"instances": [1.0], "signature_name": "nope"}, 400),
        ("/v1/models/default:classify", {"examples": []}, 400), ("/v1/models/default/versions/9:predict", {}, 404),
        ("/v1/models/nope:predict", {"instances": [1.0]}, 404), ("/v1/models/default/metadata", None, 200),
        ("/v1/models/default", None, 200), ("/v1/models/nope", None, 404), ("/other", None, 404),
    ]  # fmt: skip
    assert [call(running, path, body)[0] for path, body, _ in asked] == [status for _, _, status in asked]
    with pytest.raises(grpc.RpcError):  # without a ModelSpec
        running.channel.unary_unary(PREDICT_METHOD)(b"", timeout=30)
    with urllib.request.urlopen(running.rest + "/monitoring/prometheus/metrics") as response:
        lines = response.read().decode().splitlines()
    assert [line for line in lines if line.startswith(name)] == [
        f'{name}{{model_name="",status="INVALID_ARGUMENT"}} 1', f'{name}{{model_name="",status="NOT_FOUND"}} 2',
        f'{name}{{model_name="default",status="INVALID_ARGUMENT"}} 4',
        f'{name}{{model_name="default",status="NOT_FOUND"}} 1', f'{name}{{model_name="default",status="OK"}} 3',
    ]  # fmt: skip
    timed = [line.partition("request_latency_count")[2] for line in lines if "request_latency_count" in line]
    assert timed == [
        '{model_name="default",API="",entrypoint="REST"} 2', '{model_name="default",API="predict",entrypoint="REST"} 1',
    ]  # fmt: skip


def test_metrics_are_tensorflow_serving_s():
    # Labels and, for histograms, scale, growth and number of buckets, as its sources have them.
    latency, sizes, batching = (10, 1.8, 33), (1, 2, 14), ("model_name",)  # the label is this server's own
    theirs = {
        "request_count": (("model_name", "status"), None),
        "request_latency": (("model_name", "API", "entrypoint"), latency),
        "runtime_latency": (("model_name", "API", "runtime"), latency),
        "request_example_counts": (("model",), (1, 2, 15)),
        "request_example_count_total": (("model",), None),
        "request_log_count": (("model_name", "status_code"), None),
        "model_warmup_latency": (("model_path", "status"), latency),
        "model_warmup_records_read": (("model_path", "status"), None),
        "batching_session:queuing_latency": (batching, (100, 1.2, 52)),
        "batching_session:wrapped_run_count": (batching, None),
        "batching_session:input_batch_size": (batching, sizes),
        "batching_session:processed_batch_size": (batching, sizes),
        "batching_session:padding_size": (batching, sizes),
    }  # fmt: skip
    ours = {m.name: m for m in vars(Metrics()).values() if m.name.startswith(":tensorflow:serving:")}
    assert set(ours) == {f":tensorflow:serving:{name}" for name in theirs}
    for name, (labels, buckets) in theirs.items():
        metric = ours[f":tensorflow:serving:{name}"]
        assert metric.labels == labels, name
        if buckets:
            scale, growth, count = buckets
            assert metric._bounds == pytest.approx([scale * growth**n for n in range(count)]), name


def test_a_connection_serves_many_requests_and_chunked_bodies(half):
    connection = http.client.HTTPConnection("127.0.0.1", half.server.rest_port, timeout=30)
    for value in (2.0, 4.0):
        connection.request("POST", "/v1/models/default:predict", json.dumps({"instances": [value]}))
        assert json.loads(connection.getresponse().read()) == {"predictions": [value / 2 + 2]}
    connection.request("POST", "/v1/models/default:predict", iter([b'{"inst', b'ances": [6.0]}']), encode_chunked=True)
    assert json.loads(connection.getresponse().read()) == {"predictions": [5.0]}
    connection.close()


@pytest.mark.parametrize(
    "raw", [b"nonsense\r\n\r\n", b"GET /v1/models HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nA" + b"x" * 70_000]
)
def test_what_is_not_http_is_refused_and_the_connection_closed(half, raw):
    with socket.create_connection(("127.0.0.1", half.server.rest_port), 30) as connection:
        connection.sendall(raw)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.split()[1] in (b"400", b"431", b"505")
    assert b'"error"' in answer


def test_a_body_over_the_limit_is_refused_before_it_is_read(serve, toys):
    running = serve(toys.half_plus_two, rest_api_port=-1, max_message_bytes=1000)
    status, found = call(running, "/v1/models/default:predict", b" " * 1_000_000)
    assert (status, found["error"]) == (400, "The request body exceeds 1000 bytes")
    assert call(running, "/v1/models/default:predict", {"instances": [2.0]}) == (200, {"predictions": [3.0]})


def test_a_gzipped_body_is_uncompressed_within_a_limit(half, monkeypatch):
    path, packed = "/v1/models/default:predict", {"Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps({"instances": [2.0]}).encode())
    assert call(half, path, body, headers=packed) == (200, {"predictions": [3.0]})
    failed = "Failed to uncompress the gzipped body"
    for bad, words in (
        (b'{"instances": [2.0]}', failed),
        (body[:-9], f"{failed}: it is cut off, or over {100 << 20} bytes"),
    ):
        assert call(half, path, bad, headers=packed) == (400, {"error": words})
    monkeypatch.setattr("serving.rest._MAX_UNCOMPRESSED", 1 << 20)
    code, found = call(half, path, gzip.compress(b" " * (1 << 20) + b"{}"), headers=packed)
    assert (code, found["error"]) == (
        400, "Failed to uncompress the gzipped body: it is cut off, or over 1048576 bytes",
    )  # fmt: skip


def test_a_gzipped_body_is_held_to_the_limit_of_any_other(serve, toys):
    running = serve(toys.half_plus_two, rest_api_port=-1, max_message_bytes=1000)
    path, packed = "/v1/models/default:predict", {"Content-Encoding": "gzip"}
    body = json.dumps({"instances": [2.0]}).encode()
    for size, answer in (
        (1000, (200, {"predictions": [3.0]})),
        (1001, (400, {"error": "The request body exceeds 1000 bytes"})),
        (100_000, (400, {"error": "The request body exceeds 1000 bytes"})),
    ):
        small = gzip.compress(body.ljust(size))
        assert len(small) < 1000
        assert call(running, path, small, headers=packed) == answer


def test_bearer_tokens_guard_both_interfaces(serve, toys, tmp_path):
    from serving.client import Client
    from serving.errors import AuthenticationError

    tokens = tmp_path / "tokens"
    tokens.write_text("first-token\nsecond-token\n")
    running = serve(toys.text, rest_api_port=-1, bearer_tokens_file=tokens, model_name="m")
    body = {"instances": ["a"]}
    assert call(running, "/v1/models/m:predict", body) == (401, {"error": "A valid bearer token is required"})
    assert call(running, "/v1/models/m:predict", body, headers={"Authorization": "Bearer first"})[0] == 401
    assert call(running, "/v1/models/m:predict", body, headers={"Authorization": "Bearer second-token"})[0] == 200
    with Client(running.target, "m") as client, pytest.raises(AuthenticationError):
        client.predict(["a"])
    with Client(running.target, "m", token="first-token") as client:
        assert client.predict(["a"])[0].label == "short"


def test_strangers_are_refused_before_their_body_is_taken_in(serve, toys, tmp_path):
    (tmp_path / "tokens").write_text("secret\n")
    running = serve(toys.text, rest_api_port=-1, bearer_tokens_file=tmp_path / "tokens", model_name="m")
    with socket.create_connection(("127.0.0.1", running.server.rest_port), 30) as stranger:
        stranger.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        assert stranger.recv(12) == b"HTTP/1.1 401"


def test_a_request_that_takes_longer_than_the_flag_says_is_answered_504(serve, toys):
    running = serve(toys.text, rest_api_port=-1, rest_api_timeout_in_ms=1, model_name="m", enable_batching=True)
    code, found = call(running, "/v1/models/m:predict", {"instances": ["a"] * 200_000})
    assert (code, list(found)) == (504, ["error"])
