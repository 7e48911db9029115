"""The component: what it publishes, what it refuses, what it leaves in MLMD and in the version's folder."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
from tensorflow.core.protobuf import saved_model_pb2
from tfx import types
from tfx.types import standard_artifacts

from components.errors import PushError
from components.push import base_path
from components.push.component import Push
from components.push.executor import Executor
from components.push.live_model import LiveModelStrategy
from pipeline import versions

FACTS = {
    "name": "trials", "fingerprint": "run 1", "code": "abc123", "configuration": {"training": {"seed": 5}},
}  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    """Artifacts of a run: a model, and what the steps before left beside theirs."""
    made = {
        "model": standard_artifacts.Model(),
        "model_run": standard_artifacts.ModelRun(),
        "evaluation": standard_artifacts.ModelEvaluation(),
        "model_blessing": standard_artifacts.ModelBlessing(),
        "infra_blessing": standard_artifacts.InfraBlessing(),
        "examples": standard_artifacts.Examples(),
    }
    for number, (name, artifact) in enumerate(made.items(), 1):
        artifact.uri, artifact.id = str(tmp_path / name), number
    for name in ("model_blessing", "infra_blessing"):
        made[name].set_int_custom_property("blessed", 1)
    write_graph(tmp_path / "model" / "Format-Serving" / "saved_model.pb", "plain")
    write(tmp_path / "model_run" / "summary.json", {"epochs": 3})
    metrics = {"macro_f1": {"value": 0.75, "low": 0.7, "high": 0.8}}
    write(tmp_path / "evaluation" / "metrics.json", {"split": "test", "examples": 9, "model": metrics})
    gates = [{"gate": "macro_f1 >= 0.6", "passed": True}]
    write(tmp_path / "evaluation" / "gates.json", {"blessed": True, "gates": gates})
    files = [{"file": "train.csv", "sha256": "00ff", "bytes": 12}]
    write(
        tmp_path / "examples" / "ingest_report.json",
        {"span": 4, "version": 2, "files": files, "unforeseen": "a text of a patient"},
    )
    return made


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_graph(path: Path, name: str, number: int = 1) -> None:
    """A SavedModel's graph with one node, which calls a function of that number."""
    saved = saved_model_pb2.SavedModel()
    graph = saved.meta_graphs.add().graph_def
    graph.library.function.add().signature.name = f"function_{number}"
    graph.node.add(name=name, op="PartitionedCall").attr["f"].func.name = f"function_{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(saved.SerializeToString())


def name_of(version: Path) -> str:
    """The node of `write_graph`."""
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    return saved.meta_graphs[0].graph_def.node[0].name


def push(inputs: dict[str, Any], folder: Path, keep: int = 5, facts: dict | None = None) -> types.Artifact:
    pushed = standard_artifacts.PushedModel()
    pushed.uri = str(folder / "pushed")
    config = {"serving_dir": str(folder / "serving"), "keep_versions": keep, "facts": facts or FACTS}
    given = {name: [artifact] for name, artifact in inputs.items()}
    Executor().Do(given, {"pushed_model": [pushed]}, {"custom_config": json.dumps(config)})
    return pushed


def test_blessed_model_is_pushed_with_the_properties_of_tfx_pusher(inputs: dict, tmp_path: Path) -> None:
    pushed = push(inputs, tmp_path)
    (version,) = base_path.published(tmp_path / "serving").values()
    assert pushed.get_int_custom_property("pushed") == 1
    assert pushed.get_string_custom_property("pushed_destination") == str(version)
    assert pushed.get_string_custom_property("pushed_version") == version.name
    assert name_of(version) == "plain"


def test_lineage_stands_in_the_version_and_in_mlmd(inputs: dict, tmp_path: Path) -> None:
    pushed = push(inputs, tmp_path)
    (version,) = base_path.published(tmp_path / "serving").values()
    lineage = json.loads((version / "assets.extra" / "lineage.json").read_text())
    assert lineage["blessed"] is True
    assert lineage["run"] == FACTS
    assert lineage["data"] == {
        "span": 4,
        "version": 2,
        "files": [{"file": "train.csv", "sha256": "00ff", "bytes": 12}],
    }
    assert lineage["training"] == {"epochs": 3}
    assert lineage["metrics"] == {"macro_f1": {"value": 0.75, "low": 0.7, "high": 0.8}}
    assert lineage["evaluated"] == {"split": "test", "examples": 9}
    assert lineage["gates"] == [{"gate": "macro_f1 >= 0.6", "passed": True}]
    assert lineage["artifacts"]["model"] == {"id": 1, "type": "Model", "uri": str(tmp_path / "model")}
    assert lineage["software"]["tensorflow"].startswith("2.")
    assert "patient" not in json.dumps(lineage)

    assert json.loads(pushed.get_string_custom_property("lineage")) == lineage
    assert pushed.get_string_custom_property("run_fingerprint") == "run 1"
    assert pushed.get_string_custom_property("code_revision") == "abc123"
    assert pushed.get_int_custom_property("data_span") == 4
    assert pushed.get_float_custom_property("metric_macro_f1") == 0.75
    assert pushed.get_string_custom_property("model_sha256") == lineage["model"]["sha256"]
    (listed,) = versions.list_versions(tmp_path / "serving")
    assert (listed.blessed, listed.span, listed.metrics) == (True, 4, {"macro_f1": 0.75})


def test_model_with_warmup_requests_is_preferred(inputs: dict, tmp_path: Path) -> None:
    write_graph(tmp_path / "infra_blessing" / "stamped_model" / "saved_model.pb", "stamped")
    write(tmp_path / "infra_blessing" / "stamped_model" / "assets.extra" / "tf_serving_warmup_requests", "warm")
    inputs["infra_blessing"].set_int_custom_property("has_model", 1)
    push(inputs, tmp_path)
    (version,) = base_path.published(tmp_path / "serving").values()
    assert name_of(version) == "stamped"
    assert (version / "assets.extra" / "tf_serving_warmup_requests").read_text() == "warm"
    assert (version / "assets.extra" / "lineage.json").exists()


@pytest.mark.parametrize(
    ("blessing", "reason"),
    [
        ("model_blessing", "the evaluator did not bless the model"),
        ("infra_blessing", "the serving check did not bless the model"),
    ],
)
def test_model_that_is_not_blessed_is_not_pushed(inputs: dict, tmp_path: Path, blessing: str, reason: str) -> None:
    inputs[blessing].set_int_custom_property("blessed", 0)
    pushed = push(inputs, tmp_path)
    assert pushed.get_int_custom_property("pushed") == 0
    assert pushed.get_string_custom_property("reason") == reason
    assert not pushed.has_custom_property("pushed_destination")
    assert not (tmp_path / "serving").exists()


def test_second_push_of_the_same_model_points_at_the_version_that_is_live(inputs: dict, tmp_path: Path) -> None:
    first = push(inputs, tmp_path)
    second = push(inputs, tmp_path, facts={**FACTS, "fingerprint": "another run"})
    for name in ("pushed_version", "pushed_destination"):
        assert second.get_string_custom_property(name) == first.get_string_custom_property(name)
    assert (first.get_int_custom_property("new_version"), second.get_int_custom_property("new_version")) == (1, 0)
    assert len(base_path.published(tmp_path / "serving")) == 1


def test_rolled_back_model_is_not_pushed_by_a_later_run(inputs: dict, tmp_path: Path) -> None:
    push(inputs, tmp_path)
    write_graph(tmp_path / "model" / "Format-Serving" / "saved_model.pb", "second")
    push(inputs, tmp_path, facts={**FACTS, "fingerprint": "run 2"})
    live = versions.rollback(tmp_path / "serving")
    write_graph(tmp_path / "model" / "Format-Serving" / "saved_model.pb", "second", number=7)  # exported anew
    pushed = push(inputs, tmp_path, facts={**FACTS, "fingerprint": "run 3"})
    assert pushed.get_int_custom_property("pushed") == 0
    assert "was rolled back" in pushed.get_string_custom_property("reason")
    assert list(base_path.published(tmp_path / "serving")) == [live]


def test_missing_model_is_a_push_error(inputs: dict, tmp_path: Path) -> None:
    (tmp_path / "model" / "Format-Serving" / "saved_model.pb").unlink()
    with pytest.raises(PushError, match="is not a SavedModel"):
        push(inputs, tmp_path)
    assert not (tmp_path / "serving").exists()


def resolve(inputs: dict, folder: Path, models: list | None = None) -> list[int]:
    strategy = LiveModelStrategy(serving_dir=str(folder / "serving"))
    found = strategy.resolve_artifacts(
        None, {"model": [inputs["model"]] if models is None else models, "pushed_model": []}
    )
    assert sorted(found) == ["model", "pushed_model"]
    return [model.id for model in found["model"]]


def test_live_model_is_what_the_live_version_was_published_from(inputs: dict, tmp_path: Path) -> None:
    assert resolve(inputs, tmp_path) == []
    push(inputs, tmp_path)
    newer = standard_artifacts.Model()
    newer.uri, newer.id = str(tmp_path / "newer"), 17
    write_graph(tmp_path / "newer" / "Format-Serving" / "saved_model.pb", "newer")
    both = [inputs["model"], newer]
    assert resolve(inputs, tmp_path, both) == [1]
    push({**inputs, "model": newer}, tmp_path, facts={**FACTS, "fingerprint": "run 2"})
    assert resolve(inputs, tmp_path, both) == [17]
    versions.rollback(tmp_path / "serving")
    assert resolve(inputs, tmp_path, both) == [1]


def test_live_model_of_another_metadata_store_or_without_its_folder_is_none(inputs: dict, tmp_path: Path) -> None:
    push(inputs, tmp_path)
    stranger = standard_artifacts.Model()
    stranger.uri, stranger.id = str(tmp_path / "elsewhere"), 1
    assert resolve(inputs, tmp_path, [stranger]) == []
    (tmp_path / "model").rename(tmp_path / "moved")
    assert resolve(inputs, tmp_path) == []


def test_cache_key_changes_with_what_stands_in_the_base_path(inputs: dict, tmp_path: Path) -> None:
    def key() -> str:
        component = Push(
            model=types.Channel(type=standard_artifacts.Model), serving_dir=str(tmp_path / "serving"), facts=FACTS
        )
        assert component.outputs["pushed_model"].type is standard_artifacts.PushedModel
        return component.exec_properties["custom_config"]

    empty = key()
    assert key() == empty
    push(inputs, tmp_path)
    one = key()
    assert one != empty
    write_graph(tmp_path / "model" / "Format-Serving" / "saved_model.pb", "second")
    push(inputs, tmp_path, facts={})
    two = key()
    assert two != one
    versions.rollback(tmp_path / "serving")
    assert key() not in (empty, one, two)


def test_push_without_any_model_cannot_be_wired() -> None:
    with pytest.raises(ValueError, match="give model, or infra_blessing"):
        Push(serving_dir="somewhere")
