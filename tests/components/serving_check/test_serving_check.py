"""The check against the real model server, on toy models that are sound or wrong in one way."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
from tfx.types import standard_artifacts

from components.config import ServingConfig
from components.errors import ServingError
from components.serving_check import executor
from components.serving_check.executor import Executor
from components.serving_check.server_process import ModelNotLoaded, ServerProcess
from components.transform.keys import text_key
from serving.flags import parse
from serving.server import ModelServer

SLOW = pytest.mark.slow  # each starts a real model server, in a process of its own some five seconds
ROOT = Path(__file__).parents[3]
TEXTS = [f"Patient {n} received {n * 3} mg of aspirin daily for {n} weeks." for n in range(12)]
PAIRS = [f"Dose {n}?" for n in range(12)]


class ServerHere:
    """In the place of a ServerProcess: the same server in this process, which has imported TensorFlow already."""

    def __init__(self, base_path: Path, model_name: str, log: Path, timeout_s: float) -> None:
        command = ServerProcess(base_path, model_name, log, timeout_s)._command
        self._server = ModelServer(parse([word for word in command if word.startswith("--")]))
        self._log = logging.FileHandler(log)
        self.load_s = 0.0

    def __enter__(self) -> "ServerHere":
        logging.getLogger().addHandler(self._log)
        self._server.start()
        self.address = f"127.0.0.1:{self._server.grpc_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        logging.getLogger().removeHandler(self._log)
        self._log.close()

    def check_alive(self) -> None:
        """It is."""


@pytest.fixture
def server_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is of the model and its answers; that the server is a process of its own, other tests see to."""
    monkeypatch.setattr(executor, "ServerProcess", ServerHere)


class Step:
    """The component's inputs on disk, and its executor."""

    def __init__(self, folder: Path, toy: ModuleType, pairs: bool = False, **options: Any) -> None:
        self.folder = folder
        self.model = toy.ToyModel(pairs=pairs, **options)
        self.model.export(folder / "model" / "Format-Serving")
        self.pairs = PAIRS if pairs else None
        self._write_examples()
        (folder / "run").mkdir()
        self.write_check()

    def _write_examples(self) -> None:
        split = self.folder / "examples" / "Split-eval"
        split.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(split / "data_tfrecord-00000-of-00001.gz"), "GZIP") as writer:
            for row, text in enumerate(TEXTS):
                example = tf.train.Example()
                example.features.feature["text"].bytes_list.value.append(text.encode())
                if self.pairs:
                    example.features.feature["text_pair"].bytes_list.value.append(self.pairs[row].encode())
                writer.write(example.SerializeToString())

    def write_check(
        self, probabilities: np.ndarray | None = None, keys: list[int] | None = None, **further: float
    ) -> None:
        """check.json as the trainer writes it."""
        answers = self.model.probabilities(tf.constant(TEXTS), self.pairs and tf.constant(self.pairs)).numpy()
        noted = {
            "split": "eval",
            "keys": keys or text_key(TEXTS, self.pairs).numpy().tolist(),
            "probabilities": (answers if probabilities is None else probabilities).tolist(),
            **further,
        }
        (self.folder / "run" / "check.json").write_text(json.dumps(noted))

    def run(self, evaluator_blessed: bool = True, **serving: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the blessing and its report."""
        model, model_run = standard_artifacts.Model(), standard_artifacts.ModelRun()
        examples, blessed = standard_artifacts.Examples(), standard_artifacts.ModelBlessing()
        model.uri, model_run.uri = str(self.folder / "model"), str(self.folder / "run")
        examples.uri, examples.split_names = str(self.folder / "examples"), '["eval"]'
        blessed.set_int_custom_property("blessed", int(evaluator_blessed))
        blessing = standard_artifacts.InfraBlessing()
        blessing.uri = str(self.folder / "blessing")
        config = {"serving": ServingConfig(check_examples=8, **serving).model_dump(mode="json"), "code": ""}
        Executor().Do(
            {"model": [model], "model_run": [model_run], "examples": [examples], "model_blessing": [blessed]},
            {"blessing": [blessing]},
            {"custom_config": json.dumps(config)},
        )
        return blessing, json.loads((self.folder / "blessing" / "report.json").read_text())


def processes_with(text: str) -> list[int]:
    """Process ids whose command line holds `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def ends(process: int) -> bool:
    """Waits for a process that was killed: the kernel ends it in its own time, and its new parent may never reap it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{process}/stat").read_text().split()[2] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


@SLOW
@pytest.mark.parametrize("pairs", [False, True])
def test_sound_model_is_blessed_and_stamped_with_warmup_requests(
    tmp_path: Path, toy: ModuleType, request: pytest.FixtureRequest, pairs: bool
) -> None:
    if pairs:
        request.getfixturevalue("server_here")
    step = Step(tmp_path, toy, pairs)
    blessing, report = step.run(warmup_requests=3, model_name="left.over")
    assert processes_with("--model_name=left.over") == [], "a server is left when a check ends"
    assert report["reason"] == ""
    assert report["blessed"] is True
    assert blessing.get_int_custom_property("blessed") == 1
    assert blessing.get_int_custom_property("has_model") == 1
    assert (tmp_path / "blessing" / "INFRA_BLESSED").exists()
    assert report["examples"] == 8
    assert report["greatest_difference"] <= 1e-6
    assert report["latency_ms"]["median"] > 0
    assert len(report["hostile"]) == 8

    stamped = tmp_path / "blessing" / "stamped_model"
    records = tf.compat.v1.io.tf_record_iterator(str(stamped / "assets.extra" / "tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    requests = [log.predict_log.request for log in logs[:3]]
    assert [request.inputs["text"].tensor_shape.dim[0].size for request in requests] == [1, 8, 2]
    assert logs[3].predict_log.request.model_spec.signature_name == "serialized_examples"
    assert logs[4].classify_log.request.model_spec.signature_name == "classify"
    assert len(logs) == 5, "one request for each further signature"
    (example,) = logs[4].classify_log.request.input.example_list.examples
    assert sorted(example.features.feature) == (["text", "text_pair"] if pairs else ["text"])
    assert all(sorted(request.inputs) == (["text", "text_pair"] if pairs else ["text"]) for request in requests)
    words = {len(text.split()) for request in requests for text in tf.make_ndarray(request.inputs["text"])}
    assert words == {11}  # as long as the real texts, and none of them
    assert not any(b"aspirin" in log.SerializeToString() for log in logs)
    answer = tf.saved_model.load(str(stamped)).signatures["serving_default"](
        text=tf.constant(TEXTS), **({"text_pair": tf.constant(PAIRS)} if pairs else {})
    )
    expected = step.model.probabilities(tf.constant(TEXTS), tf.constant(PAIRS) if pairs else None)
    np.testing.assert_array_equal(answer["probabilities"], expected)
    assert not (tmp_path / "model" / "Format-Serving" / "assets.extra").exists(), "the trainer's model was changed"


@SLOW
def test_multilabel_model_is_blessed(tmp_path: Path, toy: ModuleType, server_here: None) -> None:
    _, report = Step(tmp_path, toy, multilabel=True).run()
    assert report["reason"] == ""


@SLOW
@pytest.mark.parametrize(
    ("options", "serving", "reason"),
    [
        ({"fault": "differs"}, {}, "8 of 8 texts, sent in one batch, differ from the trainer's probabilities by more"),
        pytest.param({"fault": "examples_differ"}, {}, "8 of 8 texts, sent as tf.Examples, differ", marks=SLOW),
        ({"fault": "breaks_on_bytes"}, {}, "invalid UTF-8 was answered with INVALID_ARGUMENT"),
        pytest.param({"fault": "nan_when_empty"}, {}, "an empty text was answered with numbers that", marks=SLOW),
        ({}, {"max_latency_ms": 1e-6}, "median latency of a single text is"),
    ],
)
def test_faulty_model_is_not_blessed_and_the_reason_holds_no_text(
    tmp_path: Path, toy: ModuleType, request: pytest.FixtureRequest, options: dict, serving: dict, reason: str
) -> None:
    if options.get("fault") != "breaks_on_bytes":  # its op's message quotes the text: what a process says is looked at
        request.getfixturevalue("server_here")
    blessing, report = Step(tmp_path, toy, **options).run(**serving)
    assert reason in report["reason"]
    assert report["blessed"] is False
    assert blessing.get_int_custom_property("blessed") == 0
    assert blessing.get_int_custom_property("has_model") == 0
    assert (tmp_path / "blessing" / "INFRA_NOT_BLESSED").exists()
    assert not (tmp_path / "blessing" / "stamped_model").exists()
    for name in ("report.json", "server.log"):
        assert "aspirin" not in (tmp_path / "blessing" / name).read_text()


@SLOW
@pytest.mark.parametrize("noted", [False, True])
def test_larger_tolerance_admits_a_difference(tmp_path: Path, toy: ModuleType, server_here: None, noted: bool) -> None:
    """The configuration's, or the one that the trainer noted with a model of low precision."""
    step = Step(tmp_path, toy, fault="differs")
    if noted:
        step.write_check(tolerance=0.01)
    _, report = step.run(**({} if noted else {"tolerance": 0.01}))
    assert report["blessed"] is True
    assert report["tolerance"] == 0.01
    assert 1e-5 < report["greatest_difference"] < 0.01


@SLOW
def test_answers_of_another_width_are_not_blessed(tmp_path: Path, toy: ModuleType, server_here: None) -> None:
    step = Step(tmp_path, toy)
    step.write_check(np.full((12, 2), 0.5))
    _, report = step.run()
    assert report["reason"] == "the server gives 3 probabilities a text, the trainer 2"


def test_noted_examples_that_are_not_in_the_split_are_not_blessed(tmp_path: Path, toy: ModuleType) -> None:
    step = Step(tmp_path, toy)
    step.write_check(keys=[1, 2, *text_key(TEXTS[2:]).numpy().tolist()])
    _, report = step.run()
    assert "6 are in the split 'eval' and 2 are not" in report["reason"]


@SLOW
def test_model_that_does_not_load_is_not_blessed(tmp_path: Path, toy: ModuleType) -> None:
    step = Step(tmp_path, toy)
    for file in (tmp_path / "model" / "Format-Serving" / "variables").iterdir():
        file.unlink()
    _, report = step.run()
    assert report["reason"] == "the model server could not load the model; server.log says why"
    assert "Could not load SavedModel" in (tmp_path / "blessing" / "server.log").read_text()


def test_nothing_is_served_when_the_evaluator_refused(tmp_path: Path, toy: ModuleType) -> None:
    blessing, report = Step(tmp_path, toy).run(evaluator_blessed=False)
    assert report == {
        "blessed": False,
        "reason": "the evaluator did not bless the model, so it was not served",
        "checked": False,
    }
    assert blessing.get_int_custom_property("blessed") == 0
    assert not (tmp_path / "blessing" / "server.log").exists()


def script(folder: Path, text: str) -> list[str]:
    """A program that stands for the model server."""
    (folder / "server.py").write_text(f"import os, signal, sys, time\n{text}\n")
    return [sys.executable, str(folder / "server.py")]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("sys.exit('no module named x')", ServingError, r"ended with status 1 .*(?s:.*)no module named x"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ServingError, r"was ended by SIGKILL \(out of memory\?\)"),
        ("sys.exit('Failed to start server. Error: broken')", ModelNotLoaded, "could not load the model"),
        ("time.sleep(60)", ServingError, r"after 0\.5 s: run again .* or raise serving\.load_timeout_s"),
    ],
)
def test_server_that_does_not_come_up_is_told_from_a_model_that_does_not(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    server = ServerProcess(tmp_path, "m", tmp_path / "log", 0.5 if "sleep" in text else 60, script(tmp_path, text))
    with pytest.raises(error, match=message), server:
        pytest.fail("the server was taken to listen")
    assert not Path(f"/proc/{server.pid}").exists()


def test_server_that_ignores_sigterm_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.serving_check.server_process._STOP_TIMEOUT_S", 0.2)
    text = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child: print('listening on grpc 127.0.0.1:1', child, flush=True) or print('\\nlistening on grpc h:1')\n"
        "sys.stdout.flush()\ntime.sleep(600)"
    )
    with ServerProcess(tmp_path, "m", tmp_path / "log", 60, script(tmp_path, text)) as server:
        assert server.address == "h:1"
        child = int((tmp_path / "log").read_text().split()[4])
        assert Path(f"/proc/{child}").exists()
    assert not Path(f"/proc/{server.pid}").exists()
    assert ends(child)


def test_server_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    server = script(tmp_path, "print('listening on grpc h:1', flush=True)\ntime.sleep(600)")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from components.serving_check.server_process import ServerProcess\n"
        f"with ServerProcess(Path({str(tmp_path)!r}), 'm', Path({str(tmp_path / 'log')!r}), 60, {server!r}) as s:\n"
        "    print(s.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert ends(child)


def test_component_declares_inputs_outputs_and_leaves_keep_versions_out_of_its_cache_key() -> None:
    from tfx import types

    from components.serving_check.component import ServingCheck

    def component(keep: int, attempt: int = 0) -> ServingCheck:
        return ServingCheck(
            model=types.Channel(type=standard_artifacts.Model),
            model_run=types.Channel(type=standard_artifacts.ModelRun),
            examples=types.Channel(type=standard_artifacts.Examples),
            serving=ServingConfig(keep_versions=keep),
            attempt=attempt,
        )

    assert list(component(1).outputs) == ["blessing"]
    assert component(1).outputs["blessing"].type is standard_artifacts.InfraBlessing
    assert component(1).exec_properties == component(2).exec_properties
    assert component(1).exec_properties != component(1, attempt=1).exec_properties


def test_answer_that_does_not_come_in_time_is_no_verdict_on_the_model() -> None:
    import grpc

    from components.serving_check.checks import Client

    asked = threading.Event()

    def never(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked.set()
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "a text of the request")
        return b""

    methods = {"Predict": grpc.unary_unary_rpc_method_handler(never)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", methods)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = Client(f"127.0.0.1:{port}", "m", 30.0)
    try:
        with pytest.raises(ServingError, match=r"^a single text was not answered within 30 s: run again") as caught:
            client.probabilities([b"a"], None, "a single text")
    finally:
        client.close()
        server.stop(0)
    assert asked.is_set()
    assert "request" not in str(caught.value)
