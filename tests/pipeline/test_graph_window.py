"""A window of spans in the graph: who drops what is leaked, and whom the gates guard."""

import json
from pathlib import Path

import pytest
from google.protobuf import wrappers_pb2
from tfx.proto import example_gen_pb2
from tfx.utils import proto_utils

from pipeline.config import load_config
from pipeline.graph import create_pipeline

SPANS = ('data.splits={train="{SPAN}-train.csv", eval="{SPAN}-dev.csv"}', "data.drop_leaked=true")


@pytest.fixture
def spans(minimal: Path) -> Path:
    for number in (1, 2):
        for split in ("train", "dev"):
            (minimal.parent / "rows" / f"{number}-{split}.csv").write_text("text,label\na,yes\n")
    return minimal


def nodes(path: Path, *overrides: str):
    return {node.id: node for node in create_pipeline(load_config(path, (*SPANS, *overrides)), {}).components}


def ingest_config(node) -> dict:
    custom, value = example_gen_pb2.CustomConfig(), wrappers_pb2.StringValue()
    proto_utils.json_to_proto(node.exec_properties["custom_config"], custom)
    custom.custom_config.Unpack(value)
    return json.loads(value.value)


def test_leaked_rows_are_dropped_where_all_spans_are_seen(spans: Path) -> None:
    assert ingest_config(nodes(spans)["examples"])["drop_leaked"] is True
    window = nodes(spans, "window.last=2")
    assert [ingest_config(window[f"examples_{span}"])["drop_leaked"] for span in (1, 2)] == [False, False]
    assert json.loads(window["examples"].exec_properties["custom_config"])["drop_leaked"] is True


@pytest.mark.parametrize(
    ("overrides", "guarded"),
    [((), False), (("window.warm_start=true",), True), (("window.warm_start=true", "window.guard=false"), False)],
)
def test_gates_guard_old_spans_with_a_warm_start(spans: Path, overrides: tuple[str, ...], guarded: bool) -> None:
    evaluator = nodes(spans, "window.last=2", *overrides)["evaluator"]
    assert json.loads(evaluator.exec_properties["custom_config"]).get("guard", False) is guarded
