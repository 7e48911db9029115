"""What a person sees of a run: a line as each step starts and ends, and the trainer's bar."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from components.errors import ServingError
from pipeline.cli import errors_in_words
from pipeline.config import load_config
from pipeline.console import StepDisplay, chatter_to, quiet
from pipeline.predictions import print_file

ROOT = Path(__file__).resolve().parents[2]

EPOCH = {"epoch": 1, "epochs": 3, "step": 10, "steps": 30, "loss": 0.98765, "texts_per_s": 1234.5, "seconds_left": 61.7}


def shown(terminal: bool, *happened: tuple) -> str:
    """What the display writes of events; `(step, event, seconds)`, or `(event, values)` for a step's own reports."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200, soft_wrap=True, highlight=False)
    with StepDisplay(console) as display:
        for event in happened:
            display.report(*event) if len(event) == 2 else display.step(*event)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_each_step_is_a_line_as_it_starts_and_as_it_ends_with_its_time() -> None:
    text = shown(
        False,
        ("examples", "started", 0.0), ("examples", "done", 4.25),
        ("statistics", "started", 0.0), ("statistics", "cached", 0.04),
        ("schema", "started", 0.0), ("schema", "failed", 1.0), ("schema", "again", 1.0),
        ("schema", "started", 0.0), ("schema", "failed", 71.5),
    )  # fmt: skip
    assert lines(text) == [
        "  examples             started",
        "  examples             done          4.2 s",
        "  statistics           started",
        "  statistics           unchanged     0.0 s",
        "  schema               started",
        "  schema               FAILED        1.0 s",
        "  schema               again         1.0 s",
        "  schema               started",
        "  schema               FAILED       71.5 s",
    ]


def test_training_is_a_line_an_epoch_where_nothing_can_move() -> None:
    second = {**EPOCH, "epoch": 2, "step": 12, "loss": 0.8, "metric": 0.51239}
    text = shown(
        False, ("trainer", "started", 0.0), ("train", EPOCH), ("train", {**EPOCH, "step": 15, "loss": 0.9}),
        ("train", second), ("train", {**second, "step": 30, "seconds_left": 0.2}), ("trainer", "done", 9.0),
    )  # fmt: skip
    assert lines(text) == [
        "  trainer              started",
        "    epoch 1/3  loss 0.900  1234 texts/s  62 s left",
        "    epoch 2/3  loss 0.800  metric 0.512  1234 texts/s  0 s left",
        "  trainer              done          9.0 s",
    ]


def test_training_is_a_bar_on_a_terminal_that_goes_when_it_ends() -> None:
    started, report = ("trainer", "started", 0.0), ("train", {**EPOCH, "metric": 0.5})
    bar = lines(shown(True, started, report))[-1]
    third = "━" * 8 + "╺" + "━" * 15  # of 24
    figures = "epoch 1/3  loss 0.988  metric 0.500  1234 texts/s  62 s left"
    assert re.fullmatch(rf"\S trainer +{third} 0:00:0\d {figures}", bar), bar
    ended = lines(shown(True, started, report, ("trainer", "done", 9.0)))
    assert ended[-1] == "  trainer              done          9.0 s"
    assert "started" not in "".join(ended), "the bar says it"


def test_the_tuner_tells_of_each_trial() -> None:
    text = shown(
        False, ("tuner", "started", 0.0),
        ("tune", {"trial": 1, "trials": 4}), ("tune", {"trial": 2, "trials": 4, "metric": 0.25, "best": 0.75}),
        ("tuner", "done", 3.0),
    )  # fmt: skip
    assert lines(text)[1:3] == ["    trial 1/4  not trainable", "    trial 2/4  metric 0.2500  best 0.7500"]


def test_what_libraries_write_goes_to_the_log_and_the_terminal_is_given_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with quiet(tmp_path / "logs" / "run.log") as console:
        os.write(1, b"from C++\n")
        os.write(2, b"errors from C++\n")
        logging.getLogger("tfx").info("chatter")
        console.print("for a person")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "for a person\nafter\n"
    log = (tmp_path / "logs" / "run.log").read_text()
    assert log.startswith("from C++\nerrors from C++\n")
    assert log.endswith("INFO tfx: chatter\n")


def test_chatter_goes_nowhere_where_no_log_can_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for log in (tmp_path / "logs" / "predict.log", tmp_path / "file" / "predict.log", tmp_path / "typo" / "logs" / "x"):
        for _ in range(2):
            with chatter_to(log):
                os.write(2, b"chatter\n")
                print("a result")
    assert capfd.readouterr() == ("a result\n" * 6, "")
    assert not (tmp_path / "typo").exists()
    assert (tmp_path / "logs" / "predict.log").read_text() == "chatter\n"


@pytest.mark.parametrize(("said", "root", "named"), [(b"chatter", ".", True), (b"", ".", False), (b"a", "typo", False)])
def test_an_error_names_a_log_that_holds_something(tmp_path: Path, said: bytes, root: str, named: bool) -> None:
    log = tmp_path / root / "logs" / "predict.log"

    @errors_in_words
    def command() -> None:
        with chatter_to(log):
            os.write(2, said)
            raise ServingError("it failed")

    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, [])
    note = f"what the libraries said meanwhile: {log}\n" if named else ""
    assert (done.exit_code, done.output) == (ServingError.exit_status, f"error: it failed\n{note}")


@pytest.mark.parametrize(("encoding", "arrow"), [("ascii", "\\u2192"), ("latin-1", "\\u2192"), ("utf-8", "→")])
def test_terminal_that_is_not_utf_8_costs_no_command_its_success(encoding: str, arrow: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline import cli\n"
        "def ends():\n"
        "    from pipeline.console import quiet, report_console\n"
        "    from pipeline.summary import print_summary\n"
        "    with quiet(Path(sys.argv[1])) as console: console.print('läuft →', end=' '); print('→ Übelkeit')\n"
        "    pushed = dict(status='pushed', version=7, model_path='/m/7', seconds=dict(total=1.5))\n"
        "    print_summary(report_console(), pushed, '/m')\n"
        "cli.app = ends; cli.main()\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for command in (["-m", "pipeline.cli", "--help"], ["-c", code, str(tmp_path / "logs" / "run.log")]):
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, encoding=encoding, check=False
        )
        assert done.returncode == 0, done.stderr
        assert arrow in done.stdout
    assert done.stdout.startswith(f"pushed version 7 {arrow} /m/7")
    assert done.stderr.startswith(f"l{'ä' if encoding != 'ascii' else chr(92) + 'xe4'}uft {arrow}")
    assert "belkeit" in (tmp_path / "logs" / "run.log").read_text(encoding=encoding)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_predictions_are_json_on_every_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch, minimal: Path) -> None:
    row = {"file": "fälle.csv", "label": "Übelkeit"}
    monkeypatch.setitem(sys.modules, "pipeline.predict", SimpleNamespace(predict_file=lambda *_: [row]))
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace"))
    print_file(load_config(minimal), Path("fälle.csv"), None)
    sys.stdout.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == row
    assert ("Übelkeit" in raw.getvalue().decode()) == (encoding == "utf-8")
