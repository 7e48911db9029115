"""Ingest as a node of a TFX pipeline: the launcher, MLMD, the cache and a component that reads the examples."""

import json
import os
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2
from tfx.components.statistics_gen.component import StatisticsGen
from tfx.orchestration import metadata, pipeline
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.types import artifact_utils

from components.config import Columns, DataConfig
from components.errors import DataError
from components.examples.component import TextExampleGen

pytestmark = pytest.mark.slow


class Pipeline:
    """A pipeline of ingest and statistics under `root`."""

    def __init__(self, root, source):
        self.root, self.source = root, source
        self.connection = metadata.sqlite_metadata_connection_config(str(root / "metadata.sqlite"))

    def run(self, **changes):
        """Runs it; returns the states of the executions of ingest so far, oldest first."""
        splits = {"train": "span-{SPAN}/train.csv", "eval": "span-{SPAN}/eval.csv"}
        columns = Columns(id="id", slices=("year",))
        data = DataConfig(**({"input": self.source, "splits": splits, "columns": columns} | changes))
        examples = TextExampleGen(str(self.source), data, "multiclass", ("a", "b"), "label")
        statistics = StatisticsGen(examples=examples.outputs["examples"])
        LocalDagRunner().run(
            pipeline.Pipeline(
                pipeline_name="ingest",
                pipeline_root=str(self.root),
                metadata_connection_config=self.connection,
                components=[examples, statistics],
                enable_cache=True,
            )
        )
        return self.states()

    def states(self):
        with metadata.Metadata(self.connection) as handle:
            executions = handle.store.get_executions_by_type("components.examples.component.TextExampleGen")
        name = metadata_store_pb2.Execution.State.Name
        return [name(execution.last_known_state) for execution in sorted(executions, key=lambda each: each.id)]

    def examples(self):
        """All Examples artifacts, oldest first."""
        with metadata.Metadata(self.connection) as handle:
            return sorted(handle.store.get_artifacts_by_type("Examples"), key=lambda each: each.id)


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "eval"):
        lines = [f"{name}{number},{name} text {number},{label},2001" for number, label in enumerate(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["id,text,label,year", *lines]) + "\n")


def test_pipeline_caches_reads_back_and_keeps_dead_letters_of_a_failed_run(tmp_path):
    source, root = tmp_path / "in", tmp_path / "root"
    root.mkdir()
    write(source / "span-1", ["a", "b"] * 5)
    ingest = Pipeline(root, source)
    assert ingest.run() == ["COMPLETE"]
    assert ingest.run() == ["COMPLETE", "CACHED"]

    (first,) = ingest.examples()
    assert first.custom_properties["span"].int_value == 1
    assert first.custom_properties["payload_format"].string_value == "FORMAT_TF_EXAMPLE"
    assert artifact_utils.decode_split_names(first.properties["split_names"].string_value) == ["train", "eval"]

    # Touched, but the same: cached. Changed, or a new span: ingested.
    os.utime(source / "span-1" / "train.csv", (1, 1))
    assert ingest.run()[2:] == ["CACHED"]
    write(source / "span-1", ["a", "b"] * 6)
    assert ingest.run()[3:] == ["COMPLETE"]
    write(source / "span-2", ["b", "a"] * 6)
    assert ingest.run()[4:] == ["COMPLETE"]
    assert [artifact.custom_properties["span"].int_value for artifact in ingest.examples()] == [1, 1, 2]

    # StatisticsGen read every row of every split.
    from tensorflow_metadata.proto.v0 import statistics_pb2

    (newest,) = sorted(root.glob("StatisticsGen/statistics/*"), key=lambda path: int(path.name))[-1:]
    for split in ("train", "eval"):
        content = (newest / f"Split-{split}" / "FeatureStats.pb").read_bytes()
        dataset = statistics_pb2.DatasetFeatureStatisticsList.FromString(content).datasets[0]
        assert dataset.num_examples == 12
        names = {feature.path.step[0] for feature in dataset.features}
        assert names == {"text", "label", "id", "year"}

    # TFX removes the artifact of a failed run; the dead letters stay.
    write(source / "span-3", ["a", "c"] * 6)
    with pytest.raises(DataError, match=r"^12 of 24 rows are bad .*: unknown_label 12\.") as caught:
        ingest.run()
    assert ingest.states()[5:] == ["FAILED"]
    letters = Path(str(caught.value).split(" in ")[1].split(": correct")[0])
    assert len([json.loads(line) for line in letters.read_bytes().splitlines()]) == 12
    assert len(list((root / "TextExampleGen" / "examples").iterdir())) == 3
