"""Retention against a real metadata store; and each thing that can stop a run before it starts."""

import json
import os
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from components.errors import PipelineError
from pipeline.retraining import housekeeping
from pipeline.retraining.config import RetentionConfig
from pipeline.run import run

STEPS = (("examples", "Examples", ()), ("trainer", "Model", ("examples",)), ("evaluator", "Evaluation", ("trainer",)))


class Store:
    """An ML Metadata store as TFX fills it, and the folders of its artifacts."""

    def __init__(self, root: Path) -> None:
        from ml_metadata import metadata_store
        from ml_metadata.proto import metadata_store_pb2 as pb

        root.mkdir(parents=True, exist_ok=True)
        connection = pb.ConnectionConfig()
        connection.sqlite.filename_uri = str(root / "metadata.sqlite")
        connection.sqlite.connection_mode = 3
        self.pb, self.root, self.store = pb, root, metadata_store.MetadataStore(connection)
        self.run_type = self.store.put_context_type(pb.ContextType(name="pipeline_run"))
        self.runs = 0

    def add_run(self, base: dict | None = None, cached: dict | None = None) -> dict[str, dict]:
        """One run, a folder an artifact. `base`: a Model that the trainer starts from. `cached`: what it reuses."""
        pb, store = self.pb, self.store
        self.runs += 1
        [run] = store.put_contexts([pb.Context(type_id=self.run_type, name=f"run-{self.runs}")])
        made: dict[str, dict] = {}
        for step, kind, inputs in STEPS:
            execution = pb.Execution(type_id=store.put_execution_type(pb.ExecutionType(name=step)))
            [number] = store.put_executions([execution])
            reused = (cached or {}).get(step)
            if reused is None:
                folder = self.root / "artifacts" / step / kind.lower() / str(number)
                folder.mkdir(parents=True)
                (folder / "data").write_text(step)
                artifact = pb.Artifact(type_id=store.put_artifact_type(pb.ArtifactType(name=kind)), uri=str(folder))
                [artifact.id] = store.put_artifacts([artifact])
                made[step] = {"id": artifact.id, "uri": str(folder)}
            else:
                made[step] = reused
            events = [pb.Event(artifact_id=made[step]["id"], execution_id=number, type=pb.Event.OUTPUT)]
            sources = [made[name] for name in inputs] + ([base] if base and step == "trainer" else [])
            events += [pb.Event(artifact_id=item["id"], execution_id=number, type=pb.Event.INPUT) for item in sources]
            store.put_events(events)
            store.put_attributions_and_associations(
                [pb.Attribution(artifact_id=made[step]["id"], context_id=run)],
                [pb.Association(execution_id=number, context_id=run)],
            )
        return made

    def add_gate(self, span: int, approved: bool) -> dict[str, dict]:
        """One run that ended at the data gate or failed after it."""
        pb, store = self.pb, self.store
        self.runs += 1
        [run] = store.put_contexts([pb.Context(type_id=self.run_type, name=f"run-{self.runs}")])
        made: dict[str, dict] = {}
        for step, kind in (("statistics", "ExampleStatistics"), ("schema", "Schema"), ("data_gate", "DataApproval")):
            execution = pb.Execution(type_id=store.put_execution_type(pb.ExecutionType(name=step)))
            [number] = store.put_executions([execution])
            folder = self.root / "artifacts" / step / kind.lower() / str(number)
            folder.mkdir(parents=True)
            type_id = store.put_artifact_type(pb.ArtifactType(name=kind, properties={"span": pb.INT}))
            artifact = pb.Artifact(type_id=type_id, uri=str(folder), properties={"span": pb.Value(int_value=span)})
            [artifact.id] = store.put_artifacts([artifact])
            made[step] = {"id": artifact.id, "uri": str(folder)}
            output = pb.Event(artifact_id=artifact.id, execution_id=number, type=pb.Event.OUTPUT)
            events = [output] if step != "data_gate" or approved else []
            for name in ("statistics", "schema") if step == "data_gate" else ():
                event = pb.Event(artifact_id=made[name]["id"], execution_id=number, type=pb.Event.INPUT)
                event.path.steps.add(key=name)
                events.append(event)
            store.put_events(events)
            store.put_attributions_and_associations(
                [pb.Attribution(artifact_id=artifact.id, context_id=run)],
                [pb.Association(execution_id=number, context_id=run)],
            )
        return made

    def count(self) -> int:
        return len(self.store.get_artifacts())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def version_of(serving_dir: Path, number: int, model: dict, evaluation: dict) -> None:
    folder = serving_dir / str(number) / "assets.extra"
    folder.mkdir(parents=True)
    (folder / "lineage.json").write_text(json.dumps({"artifacts": {"model": model, "evaluation": evaluation}}))


def there(made: dict[str, dict]) -> set[str]:
    return {step for step, artifact in made.items() if Path(artifact["uri"]).exists()}


def clean(project, **retention) -> list[Path]:
    config = project.config.model_copy(update={"retention": RetentionConfig(**retention)})
    return housekeeping.clean(config)


def test_artifacts_beyond_the_latest_runs_go_and_their_rows_stay(project) -> None:
    store = Store(project.root)
    runs = [store.add_run() for _ in range(4)]
    removed = clean(project, keep_runs=2)
    assert [there(made) for made in runs] == [set(), set(), set(runs[0]), set(runs[0])]
    assert len(removed) == 6
    assert store.count() == 12
    assert clean(project, keep_runs=2) == []
    assert not (project.root / ".trash").exists()


def test_what_a_version_was_made_of_stays_as_long_as_the_version(project) -> None:
    store = Store(project.root)
    runs = [store.add_run() for _ in range(4)]
    serving = project.config.serving_dir
    version_of(serving, 1, runs[0]["trainer"], runs[0]["evaluator"])
    version_of(serving / ".rolled-back", 2, runs[1]["trainer"], runs[1]["evaluator"])
    clean(project, keep_runs=1)
    assert [there(made) for made in runs] == [set(runs[0]), set(runs[0]), set(), set(runs[0])]
    (serving / "1").rename(project.folder / "gone")
    clean(project, keep_runs=1)
    assert [there(made) for made in runs] == [set(), set(runs[0]), set(), set(runs[0])]


def test_model_that_another_was_started_from_is_not_in_use_for_that(project) -> None:
    store = Store(project.root)
    first = store.add_run()
    second = store.add_run(base=first["trainer"])
    store.add_run()
    version_of(project.config.serving_dir, 1, second["trainer"], second["evaluator"])
    clean(project, keep_runs=1)
    assert there(first) == set()
    assert there(second) == {"examples", "trainer", "evaluator"}


def test_artifact_that_a_kept_run_took_from_the_cache_stays(project) -> None:
    store = Store(project.root)
    first = store.add_run()
    store.add_run()
    store.add_run(cached={"examples": first["examples"]})
    clean(project, keep_runs=1)
    assert there(first) == {"examples"}


def test_what_the_next_data_is_compared_with_outlives_any_number_of_failed_runs(project) -> None:
    store = Store(project.root)
    checks = [store.add_gate(span, approved=span != 4) for span in range(5)]
    for _ in range(3):
        store.add_run()
    clean(project, keep_runs=1)
    assert [there(made) for made in checks] == [
        set(), set(), {"statistics", "schema"}, {"statistics", "schema"}, set(),
    ]  # fmt: skip
    again = store.add_gate(1, approved=True)  # an old span, corrected
    for _ in range(3):
        store.add_run()
    clean(project, keep_runs=1)
    assert there(again) == there(checks[3]) == {"statistics", "schema"}


def test_days_keep_more_than_runs(project) -> None:
    store = Store(project.root)
    runs = [store.add_run() for _ in range(3)]
    assert clean(project, keep_runs=1, keep_days=1) == []
    assert all(there(made) == set(made) for made in runs)


def test_nothing_goes_without_a_retention_or_while_a_run_holds_the_root(project) -> None:
    store = Store(project.root)
    for _ in range(3):
        store.add_run()
    assert clean(project, keep_runs=None) == []
    from pipeline.records import root_lock

    with root_lock(project.root, wait=False):
        assert clean(project, keep_runs=1) == []


def test_folder_of_a_killed_run_goes_once_a_newer_run_is_kept(project) -> None:
    store = Store(project.root)
    store.add_run()
    left = project.root / "artifacts" / "trainer" / "model" / "1"
    left.mkdir(parents=True)
    newer = project.root / "artifacts" / "trainer" / "model" / "99"
    newer.mkdir(parents=True)
    store.add_run()
    clean(project, keep_runs=1)
    assert (left.exists(), newer.exists()) == (False, True)


def test_old_checkpoints_go(project) -> None:
    for name, days in (("old", 40), ("new", 1)):
        folder = project.root / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "ckpt").write_text("")
        then = time.time() - days * 86400
        for path in (folder / "ckpt", folder):
            os.utime(path, (then, then))
    clean(project, keep_runs=5)
    assert [path.name for path in (project.root / "checkpoints").iterdir()] == ["new"]


def test_backup_is_made_before_each_run_and_the_newest_are_kept(project) -> None:
    store = Store(project.root)
    store.add_run()
    config = project.config.model_copy(update={"retention": RetentionConfig(keep_backups=2)})
    for number in range(4):
        housekeeping.before_run(config, f"2026110{number}T000000")
    copies = sorted((project.root / "backups").iterdir())
    assert [path.name for path in copies] == ["metadata-20261102T000000.sqlite", "metadata-20261103T000000.sqlite"]
    with sqlite3.connect(copies[-1]) as copy:
        assert copy.execute("SELECT count(*) FROM Artifact").fetchone() == (3,)
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_artifacts_are_their_owners_alone_unless_opened(project) -> None:
    folder = project.root / "artifacts"
    housekeeping.before_run(project.config, "r")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o750)
    housekeeping.before_run(project.config, "r")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_artifacts_of_another_user_are_named_with_the_remedy(project, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may everything
    with pytest.raises(PipelineError, match=r"artifacts: this user may not read and write it; run as its owner, or"):
        housekeeping.before_run(project.config, "r")


def test_metadata_that_another_process_holds_is_named_with_the_remedy(project, monkeypatch) -> None:
    Store(project.root).add_run()
    monkeypatch.setattr(housekeeping, "_BUSY_TIMEOUT_S", 0.05)
    with sqlite3.connect(project.root / "metadata.sqlite") as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(PipelineError, match=r"metadata\.sqlite: another process holds it .* end that process"):
            housekeeping.before_run(project.config, "r")
    housekeeping.before_run(project.config, "r")


def test_damaged_metadata_is_named_with_where_its_copies_are(project) -> None:
    project.root.mkdir(parents=True)
    (project.root / "metadata.sqlite").write_bytes(b"noise" * 1000)
    with pytest.raises(PipelineError, match=r"is damaged; replace it by the newest copy in .*backups"):
        housekeeping.before_run(project.config, "r")


def test_disk_that_is_nearly_full_stops_a_run_before_it_starts(project) -> None:
    config = project.config.model_copy(update={"retention": RetentionConfig(min_free_mb=1 << 40)})
    with pytest.raises(PipelineError, match=r"only \d+ MiB are free, retention\.min_free_mb = 1099511627776"):
        housekeeping.before_run(config, "r")


@pytest.mark.skipif(os.getuid() != 0, reason="the test gives up the rights of root to be refused")
def test_root_that_cannot_be_written_is_named_by_the_run_and_by_the_schedule(project) -> None:
    project.root.mkdir(parents=True)
    scheduler = project.scheduler()

    def attempt(what) -> str:
        """Calls it in a process that may write nothing; returns the message of its error."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setgid(65534)
                os.setuid(65534)
                what()
            except BaseException as error:
                os.write(writing, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        os.waitpid(pid, 0)
        with os.fdopen(reading) as file:
            return file.read()

    folder = project.folder  # pytest's own folders are closed to others
    while folder.name.startswith(("test_", "pytest-")):
        folder.chmod(0o755)
        folder = folder.parent
    for what in (lambda: run(project.config), scheduler.look, lambda: scheduler.loop()):
        assert attempt(what).startswith(
            f"PipelineError: paths.root: {project.root} cannot be written (Permission denied)"
        )
