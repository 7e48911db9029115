"""`history`: records and a copy of the metadata, so that it answers whoever holds the metadata."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as pb
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.history import list_runs
from pipeline.records import INTERRUPTED, write_record
from pipeline.retraining import housekeeping

FIRST, KILLED = "20261101T030000", "20261102T030000"
HOLD = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1])
database.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(300)
"""


def add_run(root: Path, run: str, *steps: tuple[str, int]) -> None:
    """A run in ML Metadata as TFX writes it: each step with a state of its execution."""
    connection = pb.ConnectionConfig()
    connection.sqlite.filename_uri = str(root / "metadata.sqlite")
    connection.sqlite.connection_mode = 3
    store = metadata_store.MetadataStore(connection)

    def context(kind: str, name: str) -> int:
        known = store.get_context_by_type_and_name(kind, name)
        if known is not None:
            return known.id
        return store.put_contexts([pb.Context(type_id=store.put_context_type(pb.ContextType(name=kind)), name=name)])[0]

    for step, state in steps:
        kind = "tfx.dsl.components.common.resolver.Resolver" if step == "live_model" else f"kind.of.{step}"
        execution = pb.Execution(type_id=store.put_execution_type(pb.ExecutionType(name=kind)), last_known_state=state)
        [number] = store.put_executions([execution])
        contexts = [context("pipeline_run", f"{run}.1"), context("node", f"mine.v2.{step}")]
        store.put_attributions_and_associations(
            [], [pb.Association(execution_id=number, context_id=item) for item in contexts]
        )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a run that was pushed, a copy of the metadata made then, and a run that was killed."""
    done, failed, cached, running = pb.Execution.COMPLETE, pb.Execution.FAILED, pb.Execution.CACHED, 2
    add_run(tmp_path, FIRST, ("examples", cached), ("live_model", done), ("trainer", failed), ("trainer", done))
    write_record(tmp_path, {"run_id": FIRST, "status": "pushed", "version": 7})
    housekeeping.backup(tmp_path / "metadata.sqlite", tmp_path / "backups" / f"metadata-{KILLED}.sqlite", 7)
    write_record(tmp_path, {"run_id": KILLED, "status": INTERRUPTED, "step": "trainer"})
    add_run(tmp_path, KILLED, ("examples", cached), ("trainer", running))
    return tmp_path


@pytest.fixture
def held(root: Path) -> Iterator[Path]:
    """The same while another process holds the metadata."""
    command = [sys.executable, "-c", HOLD, str(root / "metadata.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        yield root
        holder.kill()


def test_runs_are_listed_with_their_steps(root: Path) -> None:
    (first, killed), source = list_runs(root)
    assert source == "metadata.sqlite"
    assert (first["run_id"], first["status"], first["version"]) == (FIRST, "pushed", 7)
    assert first["steps"] == {"examples": "cached", "trainer": "done"}
    assert (killed["run_id"], killed["status"], killed["version"]) == (KILLED, "interrupted", None)
    assert killed["steps"] == {"examples": "cached", "trainer": "running"}


def test_history_answers_while_another_process_holds_the_metadata(held: Path, minimal: Path) -> None:
    done = CliRunner().invoke(app, ["history", str(minimal), "--json", "--set", f"paths.root={held}"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["metadata"] == f"backups/metadata-{KILLED}.sqlite"
    assert [(run["run_id"], run["steps"]) for run in found["runs"]] == [
        (FIRST, {"examples": "cached", "trainer": "done"}), (KILLED, {}),
    ]  # fmt: skip
    told = CliRunner().invoke(app, ["history", str(minimal), "--set", f"paths.root={held}"]).stdout
    assert "1 cached, 1 done" in told
    assert f"steps as of backups/metadata-{KILLED}.sqlite: the metadata itself cannot be read now" in told


def test_names_with_brackets_are_listed_as_they_are(root: Path, minimal: Path) -> None:
    gates = [{"gate": f"recall of {name} >= 0", "value": 0.1, "passed": False} for name in ("[/x]", "Dose [mg]")]
    write_record(root, {"run_id": FIRST, "status": "not_blessed", "gates": gates})
    told = CliRunner().invoke(app, ["history", str(minimal), "--set", f"paths.root={root}"])
    assert told.exit_code == 0
    assert "recall of [/x] >= 0; recall of Dose [mg] >= 0" in told.stdout
    told = CliRunner().invoke(app, ["versions", str(minimal), "--set", f"paths.serving={root}/none[/a]"])
    assert told.exit_code == 0
    assert "none[/a] yet" in told.stdout


def test_reader_of_the_metadata_is_in_nobodys_way(root: Path) -> None:
    with housekeeping.copy_to_read(root) as copied, sqlite3.connect(root / "metadata.sqlite", timeout=0) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("DELETE FROM Execution")
        assert copied[0].execute("SELECT count(*) FROM Execution").fetchone() == (6,)
        copied[0].execute("DELETE FROM Execution")
        writer.rollback()
    assert len(list_runs(root)[0]) == 2


def test_the_metadata_can_be_written_while_it_is_copied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = root / "metadata.sqlite"
    with closing(sqlite3.connect(database)) as filled, filled:
        filled.execute("CREATE TABLE Filler AS SELECT zeroblob(8000000)")
    left: list[int] = []

    class Source(sqlite3.Connection):
        def backup(self, target: sqlite3.Connection, *, progress: Callable[..., None] | None = None, **options) -> None:
            def write(status: int, remaining: int, total: int) -> None:
                if not left:
                    left.append(remaining)
                    with closing(sqlite3.connect(database, timeout=0)) as writer, writer:
                        writer.execute("UPDATE Execution SET last_known_state = 3")
                if progress is not None:
                    progress(status, remaining, total)

            super().backup(target, progress=write, **options)

    monkeypatch.setattr(housekeeping, "_reading", lambda path, **_: sqlite3.connect(path, factory=Source))
    _, killed = list_runs(root)[0]
    assert left[0] > 0
    assert killed["steps"] == {"examples": "done", "trainer": "done"}


def test_damaged_metadata_is_read_from_its_newest_copy_and_a_root_without_any_has_no_steps(root: Path) -> None:
    (root / "metadata.sqlite").write_bytes(b"not a database" * 1000)
    assert list_runs(root)[1] == f"backups/metadata-{KILLED}.sqlite"
    (root / "backups" / f"metadata-{KILLED}.sqlite").unlink()
    runs, source = list_runs(root)
    assert [(run["status"], run["steps"]) for run in runs] == [("pushed", {}), ("interrupted", {})]
    assert source is None


def test_damaged_metadata_without_copies_or_records_is_no_empty_history(root: Path, minimal: Path) -> None:
    (root / "metadata.sqlite").write_bytes(b"not a database" * 1000)
    shutil.rmtree(root / "backups")
    command = ["history", str(minimal), "--set", f"paths.root={root}"]
    known = CliRunner().invoke(app, command)
    assert (known.exit_code, FIRST in known.stdout) == (0, True)
    assert "steps are not known: metadata.sqlite cannot be read" in known.stdout
    shutil.rmtree(root / "runs")
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 1
    assert "metadata.sqlite: cannot be read" in json.loads(done.stdout)["error"]
