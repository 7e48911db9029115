"""The whole pipeline on a small part of the shipped data: a project folder, and commands in a warm process."""

import contextlib
import copy
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.records import read_records

ROOT = Path(__file__).parents[2]
DATA = ROOT / "pipeline" / "data" / "pmc_rct_sections"
FIRST = "Anfang, früh"  # a value to slice by with a comma, a space and a letter that is not ASCII
TOML = """
task = "multiclass"
labels = ["BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS"]

[data]
input = "rows"
splits = { train = "train.csv", eval = "dev.csv", test = "test.csv" }
columns = { text = "text", label = "label", id = "id", slices = ["position"] }

[encoder]
hidden_size = 16
num_hidden_layers = {layers}
num_attention_heads = 2
intermediate_size = 32

[head]
kind = "multi_width"
widths = [2, 3]
filters = [16]

[training]
epochs = 2
learning_rate = 5e-3
checkpoint_steps = 5

[evaluation]
bootstrap_samples = 2
paired_samples = 50
gates = [{ metric = "accuracy", min = 0.3 }, { metric = "macro_f1", min_gain_over_blessed = -0.5 }]

[serving]
check_examples = 8
max_latency_ms = 5000.0
"""


@dataclass
class Done:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict:
        """The one JSON object on standard output."""
        return json.loads(self.stdout)


class Project:
    """A folder with data, a configuration and a pipeline root."""

    def __init__(self, folder: Path, warm: subprocess.Popen, home: Path, layers: int = 0) -> None:
        self.folder = folder
        self.home = home  # of the user who calls the commands
        self._warm = warm
        self.config = folder / "small.toml"
        self.root = folder / "root"
        self.config.write_text(TOML.replace("{layers}", str(layers)))
        (folder / "rows").mkdir()
        for name, rows in (("train", 600), ("dev", 120), ("test", 150)):
            with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as source:
                kept = [row for _, row in zip(range(rows + 1), csv.reader(source), strict=False)]
            at = kept[0].index("position")
            for row in kept[1:]:
                row[at] = FIRST if row[at] == "0" else row[at]
            with (folder / "rows" / f"{name}.csv").open("w", encoding="utf-8", newline="") as target:
                csv.writer(target).writerows(kept)

    @property
    def serving_dir(self) -> Path:
        return self.root / "serving" / "biobert_cnn"

    @property
    def versions(self) -> list[int]:
        """What a model server would see."""
        if not self.serving_dir.exists():
            return []
        return sorted(int(path.name) for path in self.serving_dir.iterdir() if path.name.isdigit())

    @property
    def record(self) -> dict:
        """The newest run's, as `--json` printed it."""
        return read_records(self.root)[-1]

    def command(self, *arguments: str, overrides: tuple[str, ...] = ()) -> list[str]:
        settings = [f"paths.root={self.root}", *overrides]
        return [*arguments, str(self.config), *(part for value in settings for part in ("--set", value))]

    def start(self, argv: list[str], **request: object) -> int:
        """Starts a command in the warm process; returns its process id. `request`: see warm.py."""
        request = {"argv": argv, "cwd": str(self.folder), "stdout": str(self.folder / "out"),
                   "stderr": str(self.folder / "err"), **request}  # fmt: skip
        for name in ("out", "err"):
            (self.folder / name).write_text("")
        self._warm.stdin.write(json.dumps(request) + "\n")
        self._warm.stdin.flush()
        return int(self._warm.stdout.readline().split()[1])

    def wait(self) -> Done:
        """Waits for the command that was started."""
        status = int(self._warm.stdout.readline().split()[2])
        return Done(status, (self.folder / "out").read_text(), (self.folder / "err").read_text())

    def beside(self, warm: subprocess.Popen) -> "Project":
        """The same project, whose commands run in another warm process."""
        other = copy.copy(self)
        other._warm = warm
        return other

    def process(self, *argv: str) -> Done:
        """A command as a user calls it: a process of its own, to its end, without the settings of tests."""
        environment = {name: value for name, value in os.environ.items() if name != "KERAS_HOME"}
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *argv], capture_output=True, text=True, cwd=self.folder,
            env={**environment, "PYTHONPATH": str(ROOT), "HOME": str(self.home)}, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, *overrides: str, options: tuple[str, ...] = ("--json",)) -> Done:
        """`biobert-cnn run`, to its end."""
        self.start([*self.command("run", overrides=overrides), *options])
        return self.wait()

    def run_and_kill(self, step: str, delay: float) -> Done:
        """`biobert-cnn run`, killed (SIGKILL) `delay` seconds after a step has started."""
        pid = self.start([*self.command("run"), "--json"])
        deadline = time.monotonic() + 300
        while f"{step:<20} started" not in (self.folder / "err").read_text():
            if time.monotonic() > deadline or not Path(f"/proc/{pid}").exists():
                break
            time.sleep(0.01)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):  # it had ended: the caller sees its status
            os.killpg(pid, signal.SIGKILL)
        return self.wait()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@contextlib.contextmanager
def warm_process(home: Path, *options: str) -> Iterator[subprocess.Popen]:
    """warm.py, ready."""
    paths = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": paths, "HOME": str(home)}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("warm.py")), *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()
        process.wait(timeout=60)


@pytest.fixture(scope="session")
def warm(home: Path) -> Iterator[subprocess.Popen]:
    with warm_process(home) as process:
        yield process


@pytest.fixture(scope="module")
def libraries(home: Path) -> Iterator[subprocess.Popen]:
    """A warm process that has imported nothing of this project."""
    with warm_process(home, "--libraries") as process:
        yield process


@pytest.fixture(scope="module")
def project(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, warm: subprocess.Popen, home: Path
) -> Project:
    """A new one for each file of tests, in a folder of its `FOLDER`'s name; its encoder has the file's
    `ENCODER_LAYERS`, or embeddings alone."""
    layers, name = (getattr(request.module, *setting) for setting in (("ENCODER_LAYERS", 0), ("FOLDER", "project")))
    return Project(tmp_path_factory.mktemp(name), warm, home, layers)
