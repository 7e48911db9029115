"""The graph as a pipeline specification: one task, component and container a step, by name in that order.

    task        what a step waits for and where each of its inputs comes from; caching, retries
    component   its typed inputs and outputs
    executor    image, command line, resources

`resolve` comes first and feeds every other task one parameter (see resolve.py). The nodes are those of a local run, but
the resolvers, whose work `resolve` does.
https://www.kubeflow.org/docs/components/pipelines/user-guides/core-functions/compile-a-pipeline/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx.dsl.components.base import base_component, base_driver, executor_spec
from tfx.dsl.components.common.resolver import Resolver

from components.errors import ConfigError
from components.examples.driver import ContentDriver
from pipeline.kubeflow.artifacts import schema_of
from pipeline.kubeflow.config import KubeflowConfig, StepConfig
from pipeline.kubeflow.step import LOOKUP
from pipeline.nodes import Step

pb: Any = pipeline_spec_pb2  # generated code: mypy sees no messages in it
_STRING, _LIST = pb.ParameterType.STRING, pb.ParameterType.LIST
# The resolvers whose work pipeline/kubeflow/resolve.py does, and what each gives.
LOOKUPS = {"previous_schema": "schema", "previous_statistics": "statistics", "live_model": "model"}
_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "TF_CPP_MIN_LOG_LEVEL": "2", "HOME": "/tmp"}


@dataclass(frozen=True)
class Placement:
    """What of a specification is not in the graph.

    Attributes:
      name: of the pipeline.
      target: "kubeflow" or "vertex".
      config: the section.
      values: the whole configuration, as `resolve` reads it.
      artifacts: a folder on the volume that all steps share; None: where the platform says.
      beam: flags by step.
      remote: steps whose Beam workers see addresses only.
    """

    name: str
    target: str
    config: KubeflowConfig
    values: str
    artifacts: str | None
    beam: Mapping[str, Sequence[str]]
    remote: frozenset[str] = frozenset()


def check_nodes(graph: Any) -> None:
    """Raises ConfigError where a node of a TFX pipeline cannot run in a container; it is named."""
    for node in graph.components:
        if not isinstance(node, Resolver):
            _check(node)
        elif node.id not in LOOKUPS:
            raise ConfigError(
                f"step {node.id}: is a resolver that Kubeflow does not have, and `resolve` knows nothing of"
            )


def _check(node: Any) -> None:
    if not isinstance(node, base_component.BaseComponent):
        raise ConfigError(f"step {node.id}: a {type(node).__name__} has no container")
    if not isinstance(node.executor_spec, executor_spec.ExecutorClassSpec):
        raise ConfigError(f"step {node.id}: its executor is no class, so no container can run it")
    if node.DRIVER_CLASS not in (base_driver.BaseDriver, ContentDriver):
        raise ConfigError(f"step {node.id}: Kubeflow has no driver of one's own ({node.DRIVER_CLASS.__name__})")


def pipeline_spec(steps: Sequence[Step], placement: Placement) -> Any:
    """The `PipelineSpec` message."""
    spec = pb.PipelineSpec(schema_version="2.1.0", sdk_version=f"kfp-{metadata.version('kfp')}")
    spec.pipeline_info.name = placement.name
    spec.pipeline_info.description = "Made by `biobert-cnn compile`."
    parameters = spec.root.input_definitions.parameters
    parameters["config"].parameter_type = _STRING
    parameters["config"].description = "The whole configuration, as JSON."
    parameters["config"].default_value.string_value = placement.values
    parameters["set"].parameter_type = _LIST
    parameters["set"].description = 'Overrides, each "section.key=value".'
    parameters["set"].default_value.list_value.SetInParent()
    parameters["span"].parameter_type = _STRING
    parameters["span"].description = "The window of spans ends with this one; empty: with the newest."
    parameters["span"].default_value.string_value = ""
    for parameter in parameters.values():
        parameter.is_optional = True
    deployment = pb.PipelineDeploymentConfig()
    _add_resolve(spec, deployment, steps, placement)
    types_of = {step.id: step.outputs for step in steps}
    for step in steps:
        _add_step(spec, deployment, step, types_of, placement)
    spec.deployment_spec.update(json_format.MessageToDict(deployment))
    return spec


def _add_resolve(spec: Any, deployment: Any, steps: Sequence[Step], placement: Placement) -> None:
    component, task = _new(spec, deployment, "resolve", placement)
    for name, parameter in spec.root.input_definitions.parameters.items():
        component.input_definitions.parameters[name].parameter_type = parameter.parameter_type
        task.inputs.parameters[name].component_input_parameter = name
    for name in [*(step.id for step in steps), *(LOOKUP + lookup for lookup in LOOKUPS)]:
        component.output_definitions.parameters[name].parameter_type = _STRING
    container = deployment.executors["exec-resolve"].container
    container.command.extend(["python", "-m", "pipeline.kubeflow.resolve"])
    container.args.extend(["--input", "{{$}}"])


def _add_step(spec: Any, deployment: Any, step: Step, types_of: Mapping[str, Any], placement: Placement) -> None:
    component, task = _new(spec, deployment, step.id, placement)
    for key, kind in step.outputs.items():
        component.output_definitions.artifacts[key].artifact_type.instance_schema = schema_of(kind)
    for key, (producer, output) in step.inputs.items():
        schema = schema_of(types_of[producer][output])
        component.input_definitions.artifacts[key].artifact_type.instance_schema = schema
        source = task.inputs.artifacts[key].task_output_artifact
        source.producer_task, source.output_artifact_key = task_name(producer), output
    told = {"step": step.id, **{LOOKUP + key: LOOKUP + lookup for key, lookup in step.lookups.items()}}
    for name, output in told.items():
        component.input_definitions.parameters[name].parameter_type = _STRING
        source = task.inputs.parameters[name].task_output_parameter
        source.producer_task, source.output_parameter_key = "resolve", output
    task.dependent_tasks.extend(sorted({"resolve", *(task_name(other) for other in step.after)}))
    container = deployment.executors[f"exec-{task_name(step.id)}"].container
    container.command.extend(["python", "-m", "pipeline.kubeflow.step"])
    container.args.extend(["--step", step.id, "--executor", step.executor])
    if placement.artifacts is not None:
        container.args.extend(["--artifacts", placement.artifacts])
    if step.id in placement.remote:
        container.args.append("--remote")
    container.args.extend(["--input", "{{$}}"])
    if step.on_beam:
        container.args.extend(["--", *placement.beam[step.id]])


def _new(spec: Any, deployment: Any, step_id: str, placement: Placement) -> tuple[Any, Any]:
    """The component and the task of a step, and its container but for the command line."""
    name = task_name(step_id)
    gets = placement.config.of(step_id)
    component = spec.components[f"comp-{name}"]
    component.executor_label = f"exec-{name}"
    task = spec.root.dag.tasks[name]
    task.task_info.name = name
    task.component_ref.name = f"comp-{name}"
    task.caching_options.enable_cache = bool(gets.cache)
    if gets.retries:
        task.retry_policy.max_retry_count = gets.retries
        task.retry_policy.backoff_duration.seconds = 60
        task.retry_policy.backoff_factor = 2.0
        task.retry_policy.backoff_max_duration.seconds = 3600
    container = deployment.executors[f"exec-{name}"].container
    container.image = placement.config.gpu_image if gets.gpus else placement.config.image
    for key, value in _ENVIRONMENT.items():
        container.env.add(name=key, value=value)
    _add_resources(container.resources, gets)
    return component, task


def _add_resources(resources: Any, gets: StepConfig) -> None:
    """Both forms: numbers, which Vertex AI reads, and texts, which newer Kubeflow reads."""
    if gets.cpu:
        resources.cpu_limit = resources.cpu_request = gets.cpu
        resources.resource_cpu_limit = resources.resource_cpu_request = f"{gets.cpu:g}"
    if gets.memory:
        unit = gets.memory.lstrip("0123456789.")
        amount = float(gets.memory.removesuffix(unit)) * _UNITS[unit] / 1e9  # gigabytes
        resources.memory_limit = resources.memory_request = amount
        resources.resource_memory_limit = resources.resource_memory_request = gets.memory
    if gets.gpus:
        resources.accelerator.count, resources.accelerator.type = gets.gpus, str(gets.gpu_type)
        resources.accelerator.resource_count = str(gets.gpus)
        resources.accelerator.resource_type = str(gets.gpu_type)


def platform_spec(steps: Sequence[Step], config: KubeflowConfig) -> dict[str, Any]:
    """What only Kubernetes knows of: volumes and node selectors (kfp-kubernetes' `KubernetesExecutorConfig`)."""
    executors = {}
    for step in ["resolve", *(step.id for step in steps)]:
        gets = config.of(step)
        executors[f"exec-{task_name(step)}"] = {
            "pvcMount": [
                {
                    "mountPath": folder,
                    "constant": claim,
                    "pvcNameParameter": {"runtimeValue": {"constant": claim}},
                }
                for folder, claim in sorted(config.volumes.items())
            ],
            **({"nodeSelector": {"labels": dict(gets.node_selector)}} if gets.node_selector else {}),
        }
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}


def task_name(step_id: str) -> str:
    """Argo, which runs Kubeflow's tasks, takes no underscore."""
    return step_id.replace("_", "-")
