"""What a run says of itself: its record, its summary, and when there is nothing to do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.errors import ConfigError, DataError
from pipeline import run as runs
from pipeline.cli import app
from pipeline.config import Config, load_config
from pipeline.console import report_console
from pipeline.local import StepError
from pipeline.records import read_records, write_record
from pipeline.retraining.results import status_of
from pipeline.summary import print_summary

PROMISED = {"status", "version", "model_path", "metrics", "baseline", "gates", "seconds"}


@pytest.fixture
def config(minimal: Path) -> Config:
    return load_config(minimal, [f"paths.root={minimal.parent}/root"])


def record(**values: object) -> dict:
    return {**runs.blank_record(), "fingerprint": "f", **values}


def test_refusal_by_the_gates_holds_and_one_by_the_serving_check_is_looked_into_again(config: Config) -> None:
    gates = record(run_id="1", status="not_blessed", serving_check={"checked": False, "blessed": False})
    write_record(config.root, gates)
    assert runs._settled(config.root, config, "f") == gates
    assert runs._settled(config.root, config, "other") is None
    (config.serving_dir / "5").mkdir(parents=True)  # live now, as after a rollback: it was not compared with that
    assert runs._settled(config.root, config, "f") is None
    gates = record(run_id="2", live=5, status="not_blessed")
    write_record(config.root, gates)
    assert runs._settled(config.root, config, "f") == gates
    refused = {"checked": True, "blessed": False, "reason": "the median latency …"}
    write_record(config.root, record(run_id="3", live=5, status="not_blessed", serving_check=refused))
    assert runs._settled(config.root, config, "f") is None


def test_failed_run_has_every_promised_key_and_names_its_step(
    config: Config, minimal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StepError("data_gate", "the data was refused", DataError.exit_status, "DataError")

    monkeypatch.setattr(runs, "_prepare", fail)
    done = CliRunner().invoke(app, ["run", str(minimal), "--set", f"paths.root={config.root}", "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found.keys() >= PROMISED
    assert (found["status"], found["step"], found["error_kind"]) == ("failed", "data_gate", "DataError")
    assert (found["error"], found["version"]) == ("the data was refused", None)
    assert found["seconds"]["total"] >= 0
    assert json.loads((config.root / "runs" / f"{found['run_id']}.json").read_text()) == found


def test_scheduled_run_leaves_the_columns_to_its_ingest_which_refuses_the_data_on_record(
    config: Config, minimal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StepError("examples", "dev.csv: the column 'outcome' is missing", DataError.exit_status, "DataError")

    monkeypatch.setattr(runs, "_prepare", refuse)
    settings = ["--set", f"paths.root={config.root}", "--set", "data.columns.label=outcome", "--json"]
    assert CliRunner().invoke(app, ["run", str(minimal), *settings]).exit_code == ConfigError.exit_status
    assert read_records(config.root) == []
    done = CliRunner().invoke(app, ["run", str(minimal), *settings, "--trigger", "span:0:abc"])
    (kept,) = read_records(config.root)
    assert json.loads(done.stdout) == kept
    assert (status_of(kept), kept["step"], kept["trigger"]) == ("refused", "examples", "span:0:abc")


def test_wrong_configuration_is_a_json_object_too(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", str(tmp_path / "none.toml"), "--json"])
    assert done.exit_code == ConfigError.exit_status == 2
    found = json.loads(done.stdout)
    assert found.keys() >= PROMISED
    assert (found["status"], found["error_kind"]) == ("failed", "ConfigError")
    assert "there is no such configuration file" in found["error"]


@pytest.mark.parametrize(
    "command",
    [
        "config check CONFIG", "predict CONFIG text", "score CONFIG in out", "history CONFIG", "versions CONFIG",
        "weights CONFIG", "step CONFIG examples --run 20260101T000000",
        "compile CONFIG --target kubeflow --output out.yaml", "schedule once CONFIG", "schedule explain CONFIG",
        "lineage CONFIG 1",
    ],
)  # fmt: skip
def test_every_command_answers_an_error_by_an_object_where_json_is_asked_for(command: str, tmp_path: Path) -> None:
    arguments = [word.replace("CONFIG", str(tmp_path / "none.toml")) for word in command.split()]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == ConfigError.exit_status
    found = json.loads(done.stdout)
    assert (found["error_kind"], "there is no such configuration file" in found["error"]) == ("ConfigError", True)
    assert done.stderr.startswith("error: ")
    assert CliRunner().invoke(app, arguments).stdout == ""


@pytest.mark.parametrize("command", ["run a.toml --bogus", "run", "nothing", "schedule nothing", "--bogus"])
def test_bad_usage_too_is_an_object_where_json_is_asked_for(command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--json"])
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    assert found["error_kind"] == "UsageError"
    assert found["error"] in " ".join(done.stderr.replace("│", " ").split())
    plain = CliRunner().invoke(app, command.split())
    assert (plain.exit_code, plain.stdout) == (2, "")


def test_unexpected_error_is_named_by_its_kind_alone(
    config: Config, minimal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a text of a patient")

    monkeypatch.setattr(runs, "_prepare", fail)
    done = CliRunner().invoke(app, ["run", str(minimal), "--set", f"paths.root={config.root}", "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert (found["error"], found["error_kind"], found["name"]) == ("ValueError", "ValueError", "mine")
    assert [found] == read_records(config.root)
    assert "patient" not in done.output
    assert f"see {config.root}/logs/{found['run_id']}.log" in done.stderr
    assert "unexpected ValueError at tests/pipeline/test_run.py:" in done.stderr


@pytest.mark.parametrize(
    "error", [ValueError("a text of a patient"), PermissionError(13, "Permission denied", "/a/file")]
)
def test_error_that_nobody_foresaw_ends_every_command_in_one_line(
    error: Exception, config: Config, minimal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("components.push.base_path.published", fail)
    done = CliRunner().invoke(app, ["versions", str(minimal), "--set", f"paths.root={config.root}", "--json"])
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert said["error_kind"] == type(error).__name__
    assert done.stderr == f"error: {said['error']}\n"
    assert "patient" not in done.output
    if isinstance(error, OSError):
        assert said["error"] == "/a/file: cannot be read or written (Permission denied)"
    else:
        assert re.fullmatch(r"unexpected ValueError at tests/pipeline/test_run.py:\d+ \(fail\)", said["error"])


def test_span_that_lacks_a_file_is_told_and_recorded(
    minimal: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = minimal.parent / "rows"
    for name in ("1/train.csv", "1/dev.csv", "2/train.csv"):
        (rows / name).parent.mkdir(exist_ok=True)
        (rows / name).write_text("text,label\na,yes\n")
    monkeypatch.setattr(runs, "_prepare", lambda *_: (_ for _ in ()).throw(StepError("examples", "stop here")))
    settings = [f"paths.root={minimal.parent}/root", "data.splits={train='{SPAN}/train.csv',eval='{SPAN}/dev.csv'}"]
    overrides = [part for value in settings for part in ("--set", value)]
    done = CliRunner().invoke(app, ["run", str(minimal), *overrides, "--json"])
    assert json.loads(done.stdout)["incomplete_spans"] == [2]
    assert "span 2 is left out: no file for data.splits.eval ({SPAN}/dev.csv)" in " ".join(
        capfd.readouterr().err.split()
    )


def test_summary_counts_what_was_bad_shared_dropped_and_truncated(capsys) -> None:
    data = {
        "splits": {"train": {"rows": 90}, "test": {"rows": 10}},
        "bad": {"rows": 3},
        "leaked": [{"splits": ["train", "test"], "texts": 2}],
        "dropped": {"train": 4},
    }
    metric = {"value": 0.72184, "low": 0.68721, "high": 0.75443}
    calibration = {"temperature": 1.234, "error_before": 0.05, "error_after": 0.02, "loss_before": 1, "loss_after": 0.9}
    training = {"calibration": calibration}
    training["hyperparameters"] = {"head.kind": "cls", "training.learning_rate": 0.001}
    found = record(
        status="pushed", version=7, model_path="/m/7", data=data, training=training,
        truncated={"train": 5, "eval": 1, "test": 2},
        metrics={"macro_f1": metric}, baseline={"macro_f1": 0.645},
        paired={"macro_f1": {"difference": 0.0768, "low": 0.0362, "high": 0.1142}},
        per_label={"yes": {"f1": 0.8, "support": 9}, "[rare]": {"f1": 0.0, "support": 0}},
        gates=[{"gate": "macro_f1 >= 0.6", "value": 0.72184, "passed": True}], seconds={"total": 151.2},
    )  # fmt: skip
    print_summary(report_console(), found, "/m")
    text = capsys.readouterr().out
    assert (
        "data: train 90  test 10  bad rows 3; texts both in train and test 2; dropped for that 4; "
        "truncated train 5, eval 1, test 2" in text
    )
    assert "macro_f1  0.7218  0.687 to 0.754  0.6450  +0.077 (+0.036 to +0.114)" in " ".join(
        line for line in text.splitlines() if "macro_f1" in line
    ).replace("   ", "  ")
    assert "no row of the evaluated split has '[rare]': F1 0 in macro-F1" in text
    assert "holds" in text
    assert "pushed version 7 → /m/7" in text
    assert "found by the tuner: head.kind = cls, training.learning_rate = 0.001" in text
    assert (
        "calibration on split eval: temperature 1.234, expected calibration error 0.0500 → 0.0200, log loss "
        "1.0000 → 0.9000" in text
    )


@pytest.mark.parametrize("status", ["pushed", "unchanged", "not_blessed", "partial", "failed"])
def test_names_with_brackets_and_colons_are_printed_as_they_are(capsys, status: str) -> None:
    found = record(
        run_id="1", status=status, version=7, model_path="/m[/7]", reason="a [/b]",
        metrics={"macro_f1": {"value": 0.5}},
        per_label={"[/x]": {"support": 0}}, serving_check={"blessed": False, "reason": "no [mg] :x:"},
        gates=[{"gate": f"recall of {name} >= 0", "value": 0.5, "passed": False} for name in ("Dose [mg]", "[/x] :x:")],
        seconds={"total": 1.0},
    )  # fmt: skip
    print_summary(report_console(), found, "/root[/a]")
    text = capsys.readouterr().out
    for whole in ("recall of Dose [mg] >= 0", "recall of [/x] :x: >= 0", "no [mg] :x:", "has '[/x]'", "/root[/a]"):
        assert whole in text
    if status == "unchanged":
        assert "nothing to do: a [/b]" in text


# Steps that do nothing: the second waits to be killed.
STEPS_THAT_WAIT = """
import sys, types
from pipeline import run as runs
from pipeline.config import load_config

def run(graph, listener, *_, **__):
    listener("examples", "started", 0.0)
    listener("examples", "done", 1.5)
    listener("statistics", "started", 0.0)
    sys.stdin.read()

sys.modules["pipeline.local"] = local = types.ModuleType("pipeline.local")
local.run, runs._prepare = run, lambda *_: None
runs.run(load_config(sys.argv[1], [f"paths.root={sys.argv[2]}"]))
"""


def test_history_shows_a_run_while_it_runs_and_for_good_when_it_was_killed(config: Config, minimal: Path) -> None:
    def history(*options: str) -> str:
        arguments = ["history", str(minimal), "--set", f"paths.root={config.root}", *options]
        return CliRunner().invoke(app, arguments).stdout

    command = [sys.executable, "-c", STEPS_THAT_WAIT, str(minimal), str(config.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while "statistics" not in history():
            assert process.poll() is None
        assert "running in statistics" in history()
        process.kill()
    (found,) = json.loads(history("--json"))["runs"]
    assert (found["status"], found["step"], found["version"]) == ("interrupted", "statistics", None)
    assert (found["seconds"]["examples"], found["seconds"]["total"] > 0) == (1.5, True)
    assert "interrupted in statistics" in history()
