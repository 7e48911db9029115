"""A pipeline root with spans, a clock that the test sets, and a run that takes milliseconds: the seam `Launch`."""

import datetime as dt
import hashlib
import os
import socketserver
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from types import FunctionType
from typing import Any

import pytest

from components.push.publish import publish
from pipeline import records
from pipeline.config import Config, load_config
from pipeline.fingerprint import file_hash
from pipeline.retraining.launch import Request
from pipeline.retraining.scheduler import Scheduler
from pipeline.retraining.watch import Before
from pipeline.spans import find_files, spans_of_run

TOML = """
task = "binary"
labels = ["no", "yes"]
[data]
input = "rows"
splits = { train = "span-{SPAN}/v{VERSION}/train.csv", eval = "span-{SPAN}/v{VERSION}/dev.csv" }
[evaluation]
split = "eval"
[serving]
keep_versions = 100
[schedule]
on_new_span = true
settle_s = 0
poll_s = 0.01
retry_after_s = 60
"""
START = dt.datetime(2026, 11, 1, 3, tzinfo=dt.UTC)


class FakeRun:
    """A run of the pipeline in milliseconds: it reads the window's files, "trains", publishes, writes its record.

    `faults`: span → what goes wrong in the run that ends with it: a record's facts, or an exception to raise.
    Every effect is written down in `<root>/effects`, one line a model that was trained.
    """

    def __init__(self, config: Config, clock: Callable[[], dt.datetime], faults: dict[int, Any] | None = None) -> None:
        self.config, self.clock, self.faults = config, clock, dict(faults or {})
        self.requests: list[Request] = []

    def __call__(self, request: Request, stop: Event, lock: int) -> dict[str, Any]:
        self.requests.append(request)
        root = self.config.root
        window = self.config.window.model_copy(update={"until": request.newest, "exclude": request.exclude})
        members = spans_of_run(self.config.data, window)
        files = [
            {"file": str(path), "sha256": file_hash(path)}
            for span in members
            for paths in find_files(self.config.data)[span][1].values()
            for path in paths
        ]
        model = hashlib.sha256(repr(sorted(file["sha256"] for file in files)).encode()).hexdigest()
        with (root / "effects").open("a") as file:
            file.write(f"{request.key} {list(members)}\n")
            file.flush()
            os.fsync(file.fileno())
        record = {
            "run_id": records.new_run_id(root), "status": "pushed", "version": None, "metrics": None, "gates": None,
            "trigger": request.key, "data": {"span": members[-1]}, "fingerprint": model,
        }  # fmt: skip
        fault = self.faults.get(request.newest)
        fault = fault(request) if callable(fault) else fault
        if fault is not None:
            record.update(fault)
        else:
            source = root / "models" / model
            source.mkdir(parents=True, exist_ok=True)
            (source / "saved_model.pb").write_text(model)
            facts = {"blessed": True, "data": {"span": members[-1], "spans": list(members), "files": files},
                     "run": {"fingerprint": model}}  # fmt: skip
            done = publish(
                source,
                self.config.serving_dir,
                100,
                lambda number: dict(facts),
                model,
                lambda: self.clock().timestamp(),
            )
            record["version"] = done.version
        records.write_record(root, record)
        return record


class FakeWatch:
    """A watch that knows its answer; the server answered before the run."""

    def __init__(self, answer: Callable[[int, Event], str | None]) -> None:
        self._answer = answer

    def before(self) -> Before:
        return Before(answered=True)

    def __call__(self, version: int, before: Before, stop: Event) -> str | None:
        assert before.answered
        return self._answer(version, stop)


class Project:
    """A folder with a configuration, spans and a clock."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        (folder / "rows").mkdir(exist_ok=True)
        (folder / "c.toml").write_text(TOML)
        self.now = START
        if not list((folder / "rows").iterdir()):
            self.add_span(0)  # a configuration's data must be there; the live version has not seen it
        self.config = load_config(folder / "c.toml", [f"paths.root={folder}/root", *overrides])
        self.run = FakeRun(self.config, self.clock)

    @property
    def root(self) -> Path:
        return self.config.root

    def clock(self) -> dt.datetime:
        return self.now

    def pass_time(self, **delta: float) -> None:
        self.now += dt.timedelta(**delta)

    def add_span(
        self, number: int, version: int = 1, text: str = "a", splits: tuple[str, ...] = ("train", "dev")
    ) -> None:
        folder = self.folder / "rows" / f"span-{number}" / f"v{version}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("train", "dev"):
            hidden = folder / f".{name}.csv"  # no scheduler takes it for settled before it is whole
            hidden.write_text(f"text,label\n{text} {number} {version} {name},yes\n")
            os.utime(hidden, (self.now.timestamp() - 60,) * 2)
            hidden.rename(folder / f"{name}.csv")

    def scheduler(self, **parts: Any) -> Scheduler:
        """With `parts` of its own; a watch may be a function of the version and `stop`."""
        if isinstance(parts.get("watch"), FunctionType):
            parts["watch"] = FakeWatch(parts["watch"])
        return Scheduler(self.config, parts.pop("start", self.run), clock=self.clock, **parts)

    def effects(self) -> list[str]:
        """What was trained, in order: trigger and window."""
        path = self.root / "effects"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Project]:
    return lambda *overrides: Project(tmp_path, *overrides)


@pytest.fixture
def project(make_project) -> Project:
    return make_project()


@pytest.fixture(scope="session")
def project_type() -> type[Project]:
    return Project


@pytest.fixture
def answer_with() -> Iterator[Callable[[bytes], str]]:
    """Starts an HTTP server on loopback that answers every request with the given bytes; returns its address."""
    started: list[tuple[socketserver.TCPServer, Thread]] = []

    def start(answer: bytes) -> str:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                length = 0
                while line := self.rfile.readline().strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                self.rfile.read(length)
                self.wfile.write(answer)

        server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()
