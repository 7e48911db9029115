"""A container of the pipeline: one TFX executor, told by the platform's launcher what it reads and writes.

    python -m pipeline.kubeflow.step --step NAME --executor CLASS [--artifacts FOLDER] [--remote] --input JSON -- [BEAM]

JSON is an `ExecutorInput` (kfp.pipeline_spec). Its parameter `step` is what `resolve` said of this step; a parameter
`lookup_X` is the artifact of the input X that `resolve` looked up; inputs `X__0`, `X__1` … together are the input X.
Exit status 3: the model was not blessed. What the executor wrote is there all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.environment import library_settings, spare_the_collector

os.environ.update(library_settings())
if __name__ == "__main__":
    spare_the_collector()

from google.protobuf import json_format
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.orchestration.portable import outputs_utils
from tfx.utils import import_utils

from components import beam_memo
from components.errors import PipelineError
from pipeline.kubeflow import artifacts, ledger
from pipeline.local import explain
from pipeline.verdict import refusal

LOOKUP = "lookup_"
_MEMBER = re.compile(r"(?P<key>.+)__(?P<number>\d+)")
Artifacts = dict[str, list[types.Artifact]]


def run(options: argparse.Namespace, beam: Sequence[str]) -> int:
    """Runs the executor; returns the exit status.

    Raises:
      StepError: the executor failed; the message is for a person and quotes no data.
    """
    beam_memo.remember()
    told = json_format.Parse(options.input, artifacts.pb.ExecutorInput(), ignore_unknown_fields=True)
    parameters = {name: value.string_value for name, value in told.inputs.parameter_values.items()}
    names: dict[int, str] = {}
    outputs: Artifacts = {}
    addresses: dict[str, str] = {}
    for key, found in told.outputs.artifacts.items():
        folder = os.path.join(options.artifacts, options.step, key) if options.artifacts else None
        outputs[key] = [artifacts.read_output(item, names, options.remote, folder) for item in found.artifacts]
        addresses[key] = found.artifacts[0].uri
    if not parameters["step"]:  # a place in the window for which there is no span yet
        for (artifact,) in outputs.values():
            artifact.set_int_custom_property(artifacts.ABSENT, 1)
        _write(told, outputs, addresses)
        return 0
    step = json.loads(parameters["step"])
    inputs = _inputs(told, parameters, names, options.remote)
    try:
        _execute(options, beam, told, inputs, outputs, step["properties"])
    except Exception as error:
        raise explain(options.step, error) from error
    outputs_utils.tag_output_artifacts_with_version(outputs)
    reason = refusal(options.step, outputs)
    if not reason and "approve" in step:
        approve = step["approve"]
        (statistics,), (schema,) = inputs["statistics"], inputs["schema"]
        approval = ledger.Approval(
            statistics.span, approve["data"], artifacts.to_json(statistics), artifacts.to_json(schema)
        )
        ledger.record(Path(approve["root"]), approval)
    _write(told, outputs, addresses)
    if reason:
        print(f"error: step {options.step}: {reason}", file=sys.stderr)
        return 3
    return 0


def _inputs(told: Any, parameters: dict[str, str], names: dict[int, str], remote: bool) -> Artifacts:
    inputs: Artifacts = {}
    for key in sorted(told.inputs.artifacts):
        member = _MEMBER.fullmatch(key)
        found = [artifacts.read_input(item, names, remote) for item in told.inputs.artifacts[key].artifacts]
        there = [artifact for artifact in found if not artifact.get_int_custom_property(artifacts.ABSENT)]
        inputs.setdefault(member["key"] if member else key, []).extend(there)
    for name, value in parameters.items():
        if name.startswith(LOOKUP):
            inputs[name.removeprefix(LOOKUP)] = artifacts.from_json(value, remote)
    return inputs


def _execute(
    options: argparse.Namespace, beam: Sequence[str], told: Any, inputs: Artifacts, outputs: Artifacts, properties: Any
) -> None:
    executor = import_utils.import_class_by_path(options.executor)
    task = os.path.dirname(told.outputs.output_file)
    base = artifacts.place(options.artifacts or task, options.remote)
    unique = uuid.uuid4().hex
    context: dict[str, Any] = {"tmp_dir": os.path.join(base, ".temporary", unique, ""), "unique_id": unique}
    if issubclass(executor, base_beam_executor.BaseBeamExecutor):
        context["beam_pipeline_args"] = list(beam)
    executor(executor.Context(**context)).Do(inputs, outputs, properties)


def _write(told: Any, outputs: Artifacts, addresses: dict[str, str]) -> None:
    """The `ExecutorOutput`, which the launcher reads."""
    answer = artifacts.pb.ExecutorOutput()
    for key, (artifact,) in outputs.items():
        answer.artifacts[key].artifacts.append(artifacts.write_output(artifact, addresses[key]))
    write_output_file(told, answer)


def write_output_file(told: Any, answer: Any) -> None:
    """Writes an `ExecutorOutput` where the launcher looks for it."""
    path = Path(artifacts.local(told.outputs.output_file))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_format.MessageToJson(answer), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The container's command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    beam = given[given.index("--") + 1 :] if "--" in given else []
    parser = argparse.ArgumentParser(prog="pipeline.kubeflow.step", allow_abbrev=False)
    parser.add_argument("--step", required=True)
    parser.add_argument("--executor", required=True)
    parser.add_argument("--artifacts")
    parser.add_argument("--remote", action="store_true")
    parser.add_argument("--input", required=True)
    options = parser.parse_args(given[: given.index("--")] if "--" in given else given)
    try:
        return run(options, beam)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
