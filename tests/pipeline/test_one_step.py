"""`biobert-cnn step`: one step of a run that an orchestrator leads, and the live model that a run compares with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import ConfigError
from components.push.publish import publish
from pipeline.config import load_config
from pipeline.one_step import Overtaken, run_step
from pipeline.records import read_records, write_record
from pipeline.run import blank_record


def test_run_of_a_step_must_be_a_time(minimal: Path) -> None:
    with pytest.raises(ConfigError, match=r"--run manual__1: write the time .* or 20270131T235959-0001"):
        run_step(lambda more: load_config(minimal, more), "examples", "manual__1", "")


@pytest.fixture
def pushed(minimal: Path) -> Callable[..., None]:
    """Publishes versions to the root beside the configuration."""
    serving = load_config(minimal, [f"paths.root={minimal.parent}/root"]).serving_dir

    def publish_one(number: int, fingerprint: str = "other") -> None:
        model = minimal.parent / "model"
        model.mkdir(exist_ok=True)
        (model / "saved_model.pb").write_text(str(number))
        publish(model, serving, 9, lambda _: {"run": {"fingerprint": fingerprint}}, str(number), lambda: float(number))

    return publish_one


def run_push(minimal: Path, record: dict) -> None:
    root = minimal.parent / "root"
    write_record(root, {**blank_record(), "run_id": "20270131T235959", "attempt": 0, **record})
    run_step(lambda more: load_config(minimal, [f"paths.root={root}", *more]), "push", "20270131T235959", "")


def test_push_of_a_model_that_was_compared_with_another_live_version_is_refused(minimal: Path, pushed) -> None:
    pushed(100)
    pushed(200)
    with pytest.raises(Overtaken, match=r"the live version was 100 when .* and is 200 now; run the evaluator again"):
        run_push(minimal, {"live": 100})
    (record,) = read_records(minimal.parent / "root")
    assert (record["status"], record["step"], record["error_kind"]) == ("failed", "push", "Overtaken")


@pytest.fixture
def launched(minimal: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The nodes that were launched, each with the live version by the record on disk, as a kill would leave it.

    Resolvers do their work; of any other node only its execution is recorded.
    """
    from ml_metadata.proto import metadata_store_pb2
    from tfx.orchestration import metadata
    from tfx.orchestration.portable.mlmd import context_lib, execution_lib

    from pipeline import local

    found: list[tuple[str, int]] = []
    launch = local.launch

    def fake(ir, deployment, connection, node, listener, result) -> None:
        step = local.step_id(node)
        found.append((step, read_records(minimal.parent / "root")[-1]["live"]))
        if local.is_resolver(node):
            launch(ir, deployment, connection, node, listener, result)
            return
        with metadata.Metadata(connection) as handle:
            execution = execution_lib.prepare_execution(
                handle, node.pipeline_node.node_info.type, metadata_store_pb2.Execution.COMPLETE
            )
            contexts = context_lib.prepare_contexts(handle, node.pipeline_node.contexts)
            execution_lib.put_execution(handle, execution, contexts)
        result.outputs[step] = {}
        listener(step, "done", 0.0)

    monkeypatch.setattr(local, "launch", fake)
    monkeypatch.setattr("pipeline.verdict.refusal", lambda step, outputs: "")
    monkeypatch.setattr("pipeline.one_step.outcome", lambda outputs: {"status": "partial"})
    return found


@pytest.mark.parametrize("first", ["trainer", "evaluator"])
def test_version_that_comes_live_after_the_live_model_was_looked_up_holds_the_push_until_it_is_compared_with(
    minimal: Path, pushed, launched: list[tuple[str, int]], first: str
) -> None:
    """A warm start looks it up for the trainer, and the evaluator compares with the same one."""
    for span in (1, 2):
        for split in ("train", "dev"):
            (minimal.parent / "rows" / f"{span}-{split}.csv").write_text("text,label\na,yes\n")
    settings = [
        f"paths.root={minimal.parent}/root", 'data.splits={train="{SPAN}-train.csv", eval="{SPAN}-dev.csv"}',
        "window.last=2", f"window.warm_start={'true' if first == 'trainer' else 'false'}",
    ]  # fmt: skip

    def live_of(step: str) -> int | None:
        return run_step(lambda more: load_config(minimal, [*settings, *more]), step, "20270131T235959", "")["live"]

    pushed(100)
    steps = ["trainer", "evaluator"][["trainer", "evaluator"].index(first) :]
    assert live_of(first) == 100
    pushed(200)
    for step in steps[1:]:
        assert live_of(step) == 100, "it is not looked up again"
    with pytest.raises(Overtaken, match=r"the live version was 100 when .* and is 200 now"):
        live_of("push")
    assert live_of("evaluator") == 200
    assert live_of("push") == 200
    compared = [("live_model", 100), *((step, 100) for step in steps)]
    assert launched == [*compared, ("live_model", 200), ("evaluator", 200), ("push", 200)]
