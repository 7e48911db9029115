"""A month in an hour: real runs on a tiny model under a simulated clock, twice at the same time, once with kills.

    make soak                                     30 days, 20 kills
    make soak ARGS="--days 6 --kills 4"           shorter
    make soak ARGS="--documents 20"               with half the rows

Daily spans are made from the shipped data. On one day the labels are shifted, on another the span is corrupt (and
corrected later), on a third the configuration makes a model that learns nothing. The schedule is killed (SIGKILL) at
random moments, and a model server answers requests all the time. At the end:

- the versions that were pushed are those of the undisturbed month: the same spans, the same weights;
- no span is lost, and none is run on twice: each version has learned from the window that the plan says;
- each refusal names its cause;
- the server has failed no request.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.push import base_path
from pipeline.config import load_config
from pipeline.retraining.state import FILE, State

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DATA = ROOT / "pipeline" / "data" / "pmc_rct_sections"
START = dt.datetime(2026, 11, 1, 3, tzinfo=dt.UTC)
MODEL = "biobert_cnn"
TOML = """
task = "multiclass"
labels = ["BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS"]
[data]
input = "rows"
columns = { text = "text", label = "label", id = "id" }
[data.splits]
train = "span-{SPAN}/v{VERSION}/train.csv"
eval = "span-{SPAN}/v{VERSION}/dev.csv"
test = "span-{SPAN}/v{VERSION}/test.csv"
[encoder]
hidden_size = 16
num_hidden_layers = 0
num_attention_heads = 2
intermediate_size = 32
[head]
kind = "multi_width"
widths = [2, 3]
filters = [32]
[training]
epochs = 8
learning_rate = @RATE@
patience = 8
[validation]
min_label_count = 0
label_drift = 0.08
[evaluation]
bootstrap_samples = 0
paired_samples = 50
baseline = false
gates = [{ metric = "macro_f1", min = 0.2 }]
[serving]
check_examples = 8
max_latency_ms = 60000.0
load_timeout_s = 900.0
keep_versions = 100
[paths]
root = "@ROOT@"
[window]
last = @LAST@
[schedule]
on_new_span = true
first_span = 1
settle_s = 0
poll_s = 0.2
retry_after_s = 1
[retention]
keep_runs = 5
[notify]
command = ["@PYTHON@", "-c", "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10))", "@TOLD@"]
"""


_LAST = 3  # spans a window
_LEARNS, _LEARNS_NOTHING = 5e-3, 1e-9  # learning rates


@dataclass(frozen=True)
class Plan:
    """Which day is which; 0: none."""

    days: int
    shifted: int
    corrupt: int
    corrected: int
    broken: int

    @classmethod
    def of(cls, days: int) -> Plan:
        """Spread over the month."""
        if days < 6:
            return cls(days, 0, 2 if days >= 3 else 0, 0, 0)
        corrupt = days // 2
        return cls(days, max(2, days * 3 // 10), corrupt, corrupt + 1, max(days * 7 // 10, corrupt + 2))

    def causes(self) -> dict[str, str]:
        """What is refused, as "span.version", and what its cause must name."""
        named = {self.shifted: "drifted", self.corrupt: "rows are bad", self.broken: "macro_f1"}
        return {f"{day}.1": cause for day, cause in named.items() if day}

    def windows(self) -> list[list[tuple[int, int]]]:
        """Spans and versions that each pushed version must have learned from, in order."""
        usable: dict[int, int] = {}
        found = []

        def learn(span: int, version: int) -> None:
            usable[span] = version
            found.append(sorted(usable.items())[-_LAST:])

        for day in range(1, self.days + 1):
            if day == self.broken:
                usable[day] = 1
            elif day not in (self.shifted, self.corrupt):
                learn(day, 1)
            if day == self.corrected and day:
                learn(self.corrupt, 2)
        return found


@dataclass
class Month:
    """One month in a folder of its own."""

    folder: Path
    plan: Plan
    documents: int
    kills: list[tuple[int, float]] = field(default_factory=list)  # day, and the moment as a share of a run's time
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    kills_done: int = 0
    pace: float = 40.0  # seconds that the latest run took which was not cut short

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.now = START
        self.config_file = self.folder / "soak.toml"
        self.write_config(_LEARNS)
        self.add_span(1)
        self.set_clock()
        self.config = load_config(self.config_file)

    def write_config(self, rate: float) -> None:
        text = (
            TOML.replace("@RATE@", repr(rate))
            .replace("@LAST@", str(_LAST))
            .replace("@ROOT@", str(self.folder / "root"))
        )
        text = text.replace("@TOLD@", str(self.folder / "told")).replace("@PYTHON@", sys.executable)
        draft = self.config_file.with_suffix(".new")
        draft.write_text(text)
        draft.replace(self.config_file)

    def set_clock(self) -> None:
        draft = self.folder / "clock.new"
        draft.write_text(self.now.isoformat())
        draft.replace(self.folder / "clock")

    def add_span(self, day: int, version: int = 1) -> None:
        """So many documents of the shipped training data, others every day, as three files; whole at once."""
        draft = self.folder / "rows" / f".span-{day}"
        draft.mkdir(parents=True)
        documents = _documents()
        names = sorted(documents)[(day - 1) * self.documents :][: self.documents]
        train, dev = self.documents * 7 // 10, self.documents * 17 // 20
        for name, mine in (("train", names[:train]), ("dev", names[train:dev]), ("test", names[dev:])):
            rows = [row for document in mine for row in documents[document]]
            if day == self.plan.shifted:
                rows = [{**row, "label": "RESULTS" if row["label"] == "METHODS" else row["label"]} for row in rows]
            with (draft / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["id", "position", "label", "text"])
                writer.writeheader()
                writer.writerows(rows)
            if day == self.plan.corrupt and version == 1:
                content = (draft / f"{name}.csv").read_bytes().splitlines(keepends=True)
                spoiled = [line.replace(b",", b";") if number % 3 == 1 else line for number, line in enumerate(content)]
                (draft / f"{name}.csv").write_bytes(b"".join(spoiled))
            then = self.now.timestamp() - 3600
            os.utime(draft / f"{name}.csv", (then, then))
        target = self.folder / "rows" / f"span-{day}"
        target.mkdir(exist_ok=True)
        draft.rename(target / f"v{version}")

    # === The month ===

    def live(self, runs: Path) -> None:
        """Lives through it. `runs`: the socket of soak_runs.py."""
        port, rest = _free_port(), _free_port()
        with _Served(self, port, rest), _Schedule(self, runs, port, rest) as schedule:
            self.wait_for(1, schedule, 1)
            expected = 1
            for day in range(2, self.plan.days + 1):
                self.now += dt.timedelta(days=1)
                self.write_config(_LEARNS_NOTHING if day == self.plan.broken else _LEARNS)
                self.add_span(day)
                self.set_clock()
                expected += 1
                self.wait_for(expected, schedule, day)
                if day == self.plan.corrected:
                    self.add_span(self.plan.corrupt, version=2)
                    expected += 1
                    self.wait_for(expected, schedule, day)

    def wait_for(self, expected: int, schedule: _Schedule, day: int) -> None:
        began = time.monotonic()
        due = [share * self.pace for on, share in self.kills if on == day]
        while (settled := self.settled()) < expected:
            elapsed = time.monotonic() - began
            if elapsed > 3600:
                raise SystemExit(f"day {day}: {settled} of {expected} runs settled after an hour; see {self.folder}")
            if due and elapsed > due[0]:
                due.pop(0)
                schedule.kill()
                self.kills_done += 1
            self.now += dt.timedelta(seconds=2)  # so that a pause before another attempt passes
            self.set_clock()
            time.sleep(0.2)
        for _ in due:  # the day ended before its moment had come
            schedule.kill()
            self.kills_done += 1
        self.kills = [kill for kill in self.kills if kill[0] != day]
        took = time.monotonic() - began
        run = self.runs()[-1]
        if run.status == "pushed":
            self.pace = took
        cause = " ".join(((run.result or {}).get("cause") or "").split())[:90]
        line = f"{self.folder.name:<5} day {day:>2} {took:6.1f} s  span {run.newest:>2} {run.status:<8} {cause}"
        print(line.rstrip(), flush=True)

    def settled(self) -> int:
        return sum(run.ended_at is not None for run in self.runs())

    def runs(self) -> list[Any]:
        if not (self.config.root / FILE).exists():
            return []
        state = State(self.config.root)
        try:
            return list(reversed(state.runs()))
        finally:
            state.close()

    # === What came of it ===

    def outcome(self) -> dict[str, Any]:
        """What must not depend on the kills."""
        versions = []
        for path in base_path.published(self.config.serving_dir).values():
            lineage = base_path.read_lineage(path) or {}
            files = lineage["model"]["files"]
            versions.append(
                {
                    "spans": [[entry["span"], entry["version"]] for entry in lineage["data"]["spans"]],
                    "weights": [f["sha256"] for name, f in files.items() if "variables.data" in name],
                    "accuracy": lineage["metrics"]["accuracy"]["value"],
                }
            )
        told = (self.folder / "told").read_text().splitlines() if (self.folder / "told").exists() else []
        return {
            "runs": [
                {"span": r.newest, "without": r.exclude, "status": r.status, "trigger": r.key,
                 "cause": re.sub(r"\S*/rejected/\S*", "", (r.result or {}).get("cause") or "")}
                for r in self.runs()
            ],
            "versions": versions,
            # One that was told twice, for the schedule was killed in between, has the same id.
            "told": list({body["id"]: body["event"] for body in map(json.loads, told)}.values()),
        }  # fmt: skip


class _Schedule:
    """The process that is killed."""

    def __init__(self, month: Month, runs: Path, port: int, rest: int) -> None:
        self._command = [
            sys.executable, str(HERE / "soak_schedule.py"), str(month.config_file), str(month.folder / "clock"),
            str(runs), f"127.0.0.1:{port}", f"http://127.0.0.1:{rest}/monitoring/prometheus/metrics",
        ]  # fmt: skip
        self._log = (month.folder / "schedule.log").open("ab")
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log, env=_environment())

    def kill(self) -> None:
        """SIGKILL, and a new one."""
        self._process.send_signal(signal.SIGKILL)
        assert self._process.wait() == -signal.SIGKILL, "the schedule had ended by itself; see schedule.log"
        self._start()

    def __enter__(self) -> _Schedule:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)
        self._log.close()


class _Served:
    """A model server on the month's versions, and a client that never stops asking."""

    def __init__(self, month: Month, port: int, rest: int) -> None:
        self._month, self._port, self._rest = month, port, rest
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> _Served:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        deadline = time.monotonic() + 300  # a short month is over before the server has started
        while kind is None and self._month.requests < 100 and not self._month.failures and time.monotonic() < deadline:
            time.sleep(0.1)
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        from serving.client import Client, Options, Retry
        from serving.errors import ClientError

        month = self._month
        while not base_path.published(month.config.serving_dir):
            if self._stop.wait(0.2):
                return
        command = [
            sys.executable, "-m", "pipeline.cli", "serve", f"--model_name={MODEL}", f"--port={self._port}",
            f"--model_base_path={month.config.serving_dir}", f"--rest_api_port={self._rest}",
            f"--monitoring_config_file={_monitoring(month.folder)}", "--file_system_poll_wait_seconds=1",
        ]  # fmt: skip
        with (month.folder / "server.log").open("ab") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, env=_environment())
        texts = ["We enrolled 40 patients.", "Aspirin reduced mortality.", "Further trials are needed."]
        options = Options(timeout_s=30.0, retry=Retry(attempts=1))
        try:
            with Client(f"127.0.0.1:{self._port}", MODEL, options) as client:
                deadline = time.monotonic() + 180
                while not self._answers(client):  # until the first version is loaded nobody is served
                    if server.poll() is not None or time.monotonic() > deadline:
                        month.failures.append("the model server did not start; see server.log")
                        return
                    time.sleep(0.2)
                while not self._stop.wait(0.1):
                    month.requests += 1
                    try:
                        client.predict(texts)
                    except ClientError as error:
                        month.failures.append(f"{month.now}: {type(error).__name__}: {error}")
        finally:
            server.terminate()
            server.wait(timeout=60)

    @staticmethod
    def _answers(client: Any) -> bool:
        from serving.errors import ClientError

        try:
            return bool(client.available_versions())
        except ClientError:
            return False


def soak(folder: Path, days: int, kills: int, seed: int, documents: int = 40) -> list[str]:
    """Both months. Returns what is wrong; empty where all is as it must be."""
    plan = Plan.of(days)
    dice = random.Random(seed)
    moments = sorted((dice.randint(1, days), dice.random()) for _ in range(kills))
    address = folder / "runs.socket"
    with (folder / "runs.log").open("ab") as log, subprocess.Popen(
        [sys.executable, str(HERE / "soak_runs.py"), str(address), str(folder / "runs.log")],
        stdout=subprocess.PIPE, stderr=log, text=True, env=_environment(),
    ) as runs:  # fmt: skip
        try:
            assert runs.stdout is not None
            if runs.stdout.readline() != "ready\n":
                return [f"TFX could not be imported; see {folder / 'runs.log'}"]
            print(f"a month of {days} days, calm without a disturbance and rough with {kills} kills", flush=True)
            calm, rough = Month(folder / "calm", plan, documents), Month(folder / "rough", plan, documents, moments)
            with ThreadPoolExecutor(2) as pool:
                for lived in [pool.submit(month.live, address) for month in (calm, rough)]:
                    lived.result()
        finally:
            runs.terminate()
    return compare(calm, rough, kills)


def compare(calm: Month, rough: Month, kills: int) -> list[str]:
    """What differs, and what is not as planned."""
    plan = calm.plan
    wrong: list[str] = []
    expected, found = calm.outcome(), rough.outcome()
    for key in expected:
        if expected[key] != found[key]:
            wrong.append(f"{key} differ: {json.dumps(expected[key])} undisturbed, {json.dumps(found[key])} with kills")
    runs = {run["trigger"].split(":")[1]: run for run in expected["runs"]}
    planned = {f"{day}.1" for day in range(1, plan.days + 1)} | ({f"{plan.corrupt}.2"} if plan.corrected else set())
    if runs.keys() != planned:
        wrong.append(f"runs on other spans than planned: {sorted(runs.keys() ^ planned)}")
    causes = plan.causes()
    for span, run in runs.items():
        status = "refused" if span in causes else "pushed"
        if run["status"] != status or causes.get(span, "") not in run["cause"]:
            wrong.append(f"span {span} was to be {status} {causes.get(span, '')}: {run}")
    learned = [[tuple(span) for span in version["spans"]] for version in expected["versions"]]
    if learned != plan.windows():
        wrong.append(f"versions have learned from {learned}, planned was {plan.windows()}")
    for month in (calm, rough):
        triggers = [run["trigger"] for run in month.outcome()["runs"]]
        if len(triggers) != len(set(triggers)):
            wrong.append(f"{month.folder.name}: a span was run on twice: {triggers}")
        if month.failures or not month.requests:
            wrong.append(f"{month.folder.name}: {len(month.failures)} of {month.requests} requests failed: "
                         f"{month.failures[:3]}")  # fmt: skip
    if expected["told"] != [
        run["status"] for run in expected["runs"] if run["status"] in ("pushed", "refused", "failed", "rolled_back")
    ]:
        wrong.append(f"not everything was told: {expected['told']}")
    if rough.kills_done != kills:
        wrong.append(f"{rough.kills_done} of {kills} kills were done")
    print(
        f"{len(expected['versions'])} versions, {sum(r['status'] == 'refused' for r in expected['runs'])} refusals; "
        f"{calm.requests} and {rough.requests} requests, {len(calm.failures)} and {len(rough.failures)} failed; "
        f"{rough.kills_done} kills",
        flush=True,
    )
    return wrong


_CACHE: dict[str, list[dict[str, str]]] = {}


def _documents() -> dict[str, list[dict[str, str]]]:
    if not _CACHE:
        with (DATA / "train.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                _CACHE.setdefault(row["id"], []).append(row)
    return _CACHE


def _monitoring(folder: Path) -> Path:
    path = folder / "monitoring.config"
    path.write_text('prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }\n')
    return path


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "TF_CPP_MIN_LOG_LEVEL": "2"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="A month of daily retraining, with and without kills.")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=40, help="a day, of 13 rows on average; fewer: faster")
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one, removed when all is well")
    given = parser.parse_args()
    if given.days * given.documents > len(_documents()):
        parser.error(f"the shipped data has {len(_documents())} documents, too few for {given.days} days")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    wrong = soak(folder, given.days, given.kills, given.seed, given.documents)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    for line in wrong:
        print(f"WRONG: {line}")
    if wrong:
        print(f"everything is in {folder}")
        return 1
    if given.folder is None:
        shutil.rmtree(folder)
    print("as it must be")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
