"""The local runner on a graph of two tiny steps: tries, time-outs, logs."""

import sys
from pathlib import Path

import pytest
from tfx.orchestration import metadata, pipeline

from components.config import LocalConfig
from components.errors import ConfigError
from pipeline import local
from pipeline.config import load_config
from pipeline.console import quiet, step_log

MODULE = """
import os, pathlib, time
from components.errors import DataError
from tfx.dsl.component.experimental.annotations import OutputArtifact, InputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples

@component
def first(examples: OutputArtifact[Examples], folder: Parameter[str], fail: Parameter[int], kind: Parameter[str]):
    count = len(list(pathlib.Path(folder).glob("try-*")))
    (pathlib.Path(folder) / f"try-{count}").touch()
    os.write(1, f"try number {count}\\n".encode())
    if count < fail:
        if kind == "hang":
            time.sleep(60)
        raise DataError("refused") if kind == "data" else OSError(5, "Input/output error", "disk")
    (pathlib.Path(examples.uri)).mkdir(parents=True, exist_ok=True)
    (pathlib.Path(examples.uri) / "done").write_text("yes")

@component
def second(examples: InputArtifact[Examples]):
    os.write(2, f"second sees {(pathlib.Path(examples.uri) / 'done').read_text()}".encode())
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory):
    """A module of two components that TFX can import by name."""
    folder = tmp_path_factory.mktemp("steps")
    (folder / "two_tiny_steps.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    import two_tiny_steps

    yield two_tiny_steps
    sys.path.remove(str(folder))


class Run:
    """One run of the two steps in a folder; what happened, in order."""

    def __init__(
        self, module, folder: Path, fail: int, kind: str = "disk", from_step: str | None = None, **tries: object
    ) -> None:
        first = module.first(folder=str(folder), fail=fail, kind=kind).with_id("examples")
        second = module.second(examples=first.outputs["examples"]).with_id("statistics")
        graph = pipeline.Pipeline(
            pipeline_name="two", pipeline_root=str(folder / "artifacts"), components=[first, second],
            metadata_connection_config=metadata.sqlite_metadata_connection_config(str(folder / "metadata.sqlite")),
        )  # fmt: skip
        self.events: list[tuple[str, str]] = []
        self.error: local.StepError | None = None
        self.folder = folder
        with quiet(folder / "run.log"):
            try:
                local.run(
                    graph, lambda step, event, _: self.events.append((step, event)), tries=LocalConfig(**tries),
                    log=lambda step: step_log(folder / "run" / f"{step}.log"), from_step=from_step,
                )  # fmt: skip
            except local.StepError as error:
                self.error = error

    @property
    def tries(self) -> int:
        return len(list(self.folder.glob("try-*")))


DONE = [("examples", "done"), ("statistics", "started"), ("statistics", "done")]
AGAIN = [("examples", "started"), ("examples", "failed"), ("examples", "again")]


def test_a_part_of_the_graph_needs_a_run_before_it(steps, tmp_path: Path) -> None:
    alone = Run(steps, tmp_path, fail=0, from_step="statistics")
    assert str(alone.error).startswith("--from statistics: no earlier run in this root did the steps before it")
    assert Run(steps, tmp_path, fail=0).error is None
    after = Run(steps, tmp_path, fail=0, from_step="statistics")
    assert (after.error, after.events) == (None, [("statistics", "started"), ("statistics", "done")])


def test_step_that_fails_in_passing_is_tried_again_and_the_run_goes_on(steps, tmp_path: Path) -> None:
    run = Run(steps, tmp_path, fail=2, retries=2, retry_delay_s=0)
    assert run.error is None
    assert run.tries == 3
    assert run.events == [*AGAIN, *AGAIN, ("examples", "started"), *DONE]


def test_step_is_tried_no_more_often_than_configured(steps, tmp_path: Path) -> None:
    run = Run(steps, tmp_path, fail=5, retries=4, retry_delay_s=0, steps={"examples": {"retries": 1}})
    assert run.tries == 2
    assert (run.error.step, run.error.kind) == ("examples", "OSError")
    assert str(run.error) == "step examples: Input/output error: disk"


def test_refused_data_is_not_tried_again(steps, tmp_path: Path) -> None:
    run = Run(steps, tmp_path, fail=1, kind="data", retries=3, retry_delay_s=0)
    assert (run.tries, str(run.error), run.error.kind) == (1, "refused", "DataError")


def test_step_that_hangs_is_ended_and_tried_again(steps, tmp_path: Path) -> None:
    run = Run(steps, tmp_path, fail=1, kind="hang", retries=1, retry_delay_s=0, steps={"examples": {"timeout_s": 0.5}})
    assert run.error is None
    assert run.tries == 2


def test_step_that_hangs_for_good_is_named_with_its_bound(steps, tmp_path: Path) -> None:
    run = Run(steps, tmp_path, fail=1, kind="hang", timeout_s=0.5)
    assert str(run.error) == "step examples: took longer than 0.5 s (local.timeout_s); what is done is kept"
    assert run.error.kind == "StepTimeout"


def test_each_step_has_a_log_of_its_own(steps, tmp_path: Path) -> None:
    Run(steps, tmp_path, fail=1, retries=1, retry_delay_s=0)
    first, second = ((tmp_path / "run" / f"{step}.log").read_text() for step in ("examples", "statistics"))
    assert [line for line in first.splitlines() if line.startswith("try")] == ["try number 0", "try number 1"]
    assert "second sees yes" in second
    assert "second sees" not in first
    assert "try number" not in (tmp_path / "run.log").read_text()


def test_section_names_steps_and_does_not_change_what_a_run_gives(minimal: Path) -> None:
    config = load_config(minimal, ["local.retries=2", "local.steps.examples={retries=5, timeout_s=60}"])
    assert config.local.of("examples") == (5, 60.0)
    assert config.local.of("examples_7") == (5, 60.0)
    assert config.local.of("trainer") == (2, None)
    assert config.decisive() == load_config(minimal).decisive()
    with pytest.raises(ConfigError, match="local"):
        load_config(minimal, ["local.steps.trainr={}"])
