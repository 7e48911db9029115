"""The inferred schema, written where a person can review it."""

from pathlib import Path

import pytest

from components.errors import PipelineError
from pipeline.config import Config, load_config
from pipeline.steps import freeze_schema


@pytest.fixture
def config(minimal: Path, tmp_path: Path) -> Config:
    return load_config(minimal, [f"paths.root={tmp_path / 'root'}"])


def infer(config: Config, execution: int, content: str) -> None:
    folder = config.root / "artifacts" / "schema" / "schema" / str(execution)
    folder.mkdir(parents=True)
    (folder / "schema.pbtxt").write_text(content)


def test_the_newest_inferred_schema_is_written_once(config: Config, tmp_path: Path) -> None:
    output = tmp_path / "schema.pbtxt"
    with pytest.raises(PipelineError, match=r"no schema in .* yet: call `biobert-cnn run CONFIG --to schema` first"):
        freeze_schema(config, output)
    infer(config, 9, "# of run 9\n")
    infer(config, 10, "# of run 10\n")
    freeze_schema(config, output)
    assert output.read_text().endswith("# of run 10\n")
    with pytest.raises(PipelineError, match="exists already; give another file"):
        freeze_schema(config, output)


def test_a_file_that_cannot_be_written_is_named(config: Config, tmp_path: Path) -> None:
    infer(config, 1, "")
    with pytest.raises(PipelineError, match=r"nowhere/schema\.pbtxt cannot be written \(No such file or directory\)"):
        freeze_schema(config, tmp_path / "nowhere" / "schema.pbtxt")
