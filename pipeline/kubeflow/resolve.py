"""The first container of a run: everything that must be known before the steps start.

    python -m pipeline.kubeflow.resolve --input JSON

Kubeflow has neither ExampleGen drivers nor resolvers of one's own. This container finds the spans of the window, which
data was approved last and which model is live, builds the same graph as a local run, and hands each step what it is
told, as one parameter a step. The platform's cache goes by these parameters: a step whose data, configuration and code
are known is answered from there, whatever the names and times of files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.environment import library_settings, spare_the_collector

os.environ.update(library_settings())
if __name__ == "__main__":
    spare_the_collector()

from google.protobuf import json_format, struct_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx.dsl.components.common.resolver import Resolver

from components.errors import ConfigError, PipelineError
from components.examples.component import TextExampleGen
from components.examples.driver import ContentDriver
from pipeline import spans
from pipeline.config import Config, read_values
from pipeline.fingerprint import FileHashes, run_fingerprint
from pipeline.graph import create_pipeline
from pipeline.kubeflow import ledger
from pipeline.kubeflow.spec import LOOKUPS
from pipeline.kubeflow.step import LOOKUP, write_output_file
from pipeline.nodes import place_of
from pipeline.run import run_facts

pb: Any = pipeline_spec_pb2  # generated code: mypy sees no messages in it
# What is settled when the pipeline is compiled: it stands in the specification itself.
_SETTLED = ("kubeflow", "beam", "paths")


def resolve(values: dict[str, Any], overrides: Sequence[str], span: str) -> dict[str, str]:
    """What each step is told.

    Args:
      values: the configuration as it was compiled.
      overrides: `section.key=value`, of this run.
      span: the window ends with this one; "" for the newest.

    Returns:
      A JSON text for every step and every look-up; "" for one that has nothing to do, or nothing to find.

    Raises:
      ConfigError: an override cannot be used, or what the configuration names is not there.
    """
    config = _configuration(values, overrides, span)
    hashes = FileHashes(config.root / "file_hashes.json")
    fingerprint = run_fingerprint(config, hashes)
    hashes.save()
    graph = create_pipeline(config, run_facts(config, fingerprint))
    members = spans.spans_of_run(config.data, config.window)
    told: dict[str, dict[str, Any]] = {}
    data: list[str] = []
    for node in graph.components:
        if isinstance(node, Resolver):
            continue
        properties = dict(node.exec_properties)
        if isinstance(node, TextExampleGen):
            properties = _driven(properties)
            data.append(f"{properties['input_base']} {properties['input_config']} {properties['input_fingerprint']}")
        told[place_of(node.id, members)] = {"properties": properties}
    digest = hashlib.sha256("\n".join(data).encode()).hexdigest()
    told["data_gate"]["approve"] = {"root": str(config.root), "data": digest}
    known = ledger.approvals(config.root)
    found = {
        "previous_schema": ledger.previous_schema(known, digest),
        "previous_statistics": ledger.previous_statistics(known, max(members)),
        "live_model": ledger.live_model(config.serving_dir),
    }
    assert found.keys() == LOOKUPS.keys()
    return {
        **{step: json.dumps(values, sort_keys=True) for step, values in told.items()},
        **{LOOKUP + name: json.dumps(artifact, sort_keys=True) if artifact else "" for name, artifact in found.items()},
    }


def _configuration(values: dict[str, Any], overrides: Sequence[str], span: str) -> Config:
    own = tuple(values["kubeflow"]["set"])
    settled = [item for item in overrides if item.partition(".")[0].strip() in _SETTLED]
    if settled:
        raise ConfigError(f"set: {settled[0]}: is settled when the pipeline is compiled; compile it anew")
    given = [*own, *overrides, *([f"window.until={span}"] if span else [])]
    return read_values("the configuration of this run", values, given)


def _driven(properties: dict[str, Any]) -> dict[str, Any]:
    """An ExampleGen's execution properties as its driver completes them: span, version, files, fingerprint."""
    nothing: Any = None  # neither metadata nor pipeline nor component is looked at
    return ContentDriver(nothing).resolve_exec_properties(properties, nothing, nothing)


def main(arguments: Sequence[str] | None = None) -> int:
    """The container's command."""
    parser = argparse.ArgumentParser(prog="pipeline.kubeflow.resolve", allow_abbrev=False)
    parser.add_argument("--input", required=True)
    told = json_format.Parse(parser.parse_args(arguments).input, pb.ExecutorInput(), ignore_unknown_fields=True)
    given = {name: json_format.MessageToDict(value) for name, value in told.inputs.parameter_values.items()}
    try:
        found = resolve(json.loads(given["config"]), given["set"], given["span"])
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    answer = pb.ExecutorOutput()
    for name in told.outputs.parameters:
        answer.parameter_values[name].CopyFrom(struct_pb2.Value(string_value=found.get(name, "")))
    write_output_file(told, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
