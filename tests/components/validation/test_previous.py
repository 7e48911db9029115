"""What counts as earlier approved data, in a metadata store as TFX fills it."""

from pathlib import Path

import pytest
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as pb
from tfx.types import standard_artifacts

from components.validation.previous import PreviousSchemaStrategy, PreviousStatisticsStrategy, approvals


class Store:
    """Statistics, schema and the gate's verdict of one run after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = pb.ConnectionConfig()
        config.fake_database.SetInParent()
        self.store = metadata_store.MetadataStore(config)
        names = ("ExampleStatistics", "Schema", "DataApproval")
        self.types = {name: self.store.put_artifact_type(pb.ArtifactType(name=name)) for name in names}
        self.gate = self.store.put_execution_type(pb.ExecutionType(name="DataGate"))
        self.statistics: list = []
        self.schemas: list = []

    def run(self, span: int, approved: bool, previous: int | None = None) -> None:
        """One run on a span; the numbers are indices of `statistics`."""
        statistics = self._artifact(standard_artifacts.ExampleStatistics(), "ExampleStatistics")
        statistics.span = span
        self.statistics.append(statistics)
        self.schemas.append(self._artifact(standard_artifacts.Schema(), "Schema"))
        (execution,) = self.store.put_executions([pb.Execution(type_id=self.gate)])
        self._event(execution, statistics.id, "statistics", pb.Event.INPUT)
        self._event(execution, self.schemas[-1].id, "schema", pb.Event.INPUT)
        if previous is not None:
            self._event(execution, self.statistics[previous].id, "previous_statistics", pb.Event.INPUT)
        if approved:
            (approval,) = self.store.put_artifacts([pb.Artifact(type_id=self.types["DataApproval"])])
            self._event(execution, approval, "approval", pb.Event.OUTPUT)

    def take_over(self) -> None:
        """What TFX records of the last approval where a run goes on from a later step: the output alone."""
        (execution,) = self.store.put_executions([pb.Execution(type_id=self.gate)])
        approval = self.store.get_artifacts_by_type("DataApproval")[-1]
        self._event(execution, approval.id, "approval", pb.Event.OUTPUT)

    def _artifact(self, artifact, name: str):
        (artifact.id,) = self.store.put_artifacts([pb.Artifact(type_id=self.types[name])])
        folder = self.folder / f"{artifact.id}"
        folder.mkdir()
        artifact.uri = str(folder)
        return artifact

    def _event(self, execution: int, artifact: int, key: str, kind: int) -> None:
        event = pb.Event(execution_id=execution, artifact_id=artifact, type=kind)
        event.path.steps.add(key=key)
        self.store.put_events([event])

    def previous_statistics(self) -> list[int]:
        found = PreviousStatisticsStrategy().resolve_artifacts(
            self.store, {"current": self.statistics[-1:], "statistics": self.statistics}
        )
        return [self.statistics.index(item) for item in found["statistics"]]

    def previous_schema(self) -> list[int]:
        found = PreviousSchemaStrategy().resolve_artifacts(
            self.store, {"current": self.statistics[-1:], "schema": self.schemas}
        )
        return [self.schemas.index(item) for item in found["schema"]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_first_run_has_nothing_to_be_compared_with(store: Store) -> None:
    assert approvals(store.store) == []
    store.run(span=1, approved=True)
    assert store.previous_statistics() == store.previous_schema() == []


def test_refused_data_is_no_reference(store: Store) -> None:
    store.run(span=1, approved=True)
    store.run(span=2, approved=False, previous=0)
    store.run(span=3, approved=True, previous=0)
    assert store.previous_statistics() == [0]
    assert store.previous_schema() == [0]
    store.run(span=4, approved=False)
    assert store.previous_statistics() == store.previous_schema() == [2]


def test_statistics_that_a_later_gate_only_compared_with_are_not_approved_by_it(store: Store) -> None:
    store.run(span=1, approved=False)
    store.run(span=2, approved=True, previous=0)
    store.run(span=3, approved=True)
    assert store.previous_statistics() == [1]


def test_same_span_is_compared_with_the_span_before_it(store: Store) -> None:
    store.run(span=1, approved=True)
    store.run(span=2, approved=True)
    store.run(span=2, approved=True)
    assert store.previous_statistics() == [0]
    assert store.previous_schema() == [1]


def test_what_is_gone_from_the_disk_is_passed_over(store: Store) -> None:
    store.run(span=1, approved=True)
    store.run(span=2, approved=True)
    store.run(span=3, approved=True)
    Path(store.schemas[1].uri).rmdir()
    Path(store.statistics[1].uri).rmdir()
    assert store.previous_schema() == store.previous_statistics() == [0]


def test_a_run_that_went_on_from_a_later_step_hides_nothing(store: Store) -> None:
    store.run(1, approved=True)
    store.take_over()
    store.run(2, approved=True)
    assert store.previous_statistics() == [0]
    assert store.previous_schema() == [0]
