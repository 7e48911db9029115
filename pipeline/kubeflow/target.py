"""`biobert-cnn compile --target kubeflow|vertex`: what must hold of a configuration there, and the file."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from components.config import HUB_NAME, BeamConfig, step_name
from components.errors import ConfigError
from pipeline.config import SHIPPED, Config, override_values

Target = Literal["kubeflow", "vertex"]
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")
_SUFFIXES = {"kubeflow": (".yaml", ".yml"), "vertex": (".json", ".yaml", ".yml")}


def compile_to(config: Config, target: Target, output: Path) -> list[str]:
    """Writes the specification of the configuration's graph.

    Args:
      config: validated; what it names must be here too, for the graph is built here.
      target: whose containers: Kubeflow's on shared volumes, or Vertex AI's, where buckets are mounted under /gcs.
      output: a YAML file; for Vertex AI also JSON, a whole PipelineJob.

    Returns:
      The tasks' names.

    Raises:
      ConfigError: the configuration cannot run there, naming the step and the remedy; or kfp is not installed.
    """
    if output.suffix not in _SUFFIXES[target]:
        raise ConfigError(f"--output {output}: name a file that ends with {' or '.join(_SUFFIXES[target])}")
    try:
        import kfp.pipeline_spec  # noqa: F401
    except ImportError:
        raise ConfigError(
            "compile: Kubeflow's package is not installed; pip install 'biobert-cnn[pipeline,kfp]'"
        ) from None
    values = config.model_dump(mode="json")
    there = _there(values, config)
    root = _check(config, target, there)
    from google.protobuf import json_format

    from pipeline import nodes, spans
    from pipeline.graph import create_pipeline
    from pipeline.kubeflow import spec

    graph = create_pipeline(config, {})
    members = spans.spans_of_run(config.data, config.window)
    spec.check_nodes(graph)
    steps = nodes.steps_of(graph, members, int(config.window.last))
    beam, remote = _beam(config, target, root, steps, graph.beam_pipeline_args)
    placement = spec.Placement(
        name=_name(config.name),
        target=target,
        config=config.kubeflow,
        values=json.dumps(values, sort_keys=True),
        artifacts=f"{root}/artifacts" if target == "kubeflow" else None,
        beam=beam,
        remote=remote,
    )
    message = json_format.MessageToDict(spec.pipeline_spec(steps, placement))
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".json":
        job = {
            "displayName": placement.name,
            "pipelineSpec": message,
            "runtimeConfig": {"gcsOutputDirectory": config.kubeflow.bucket},
        }
        output.write_text(json.dumps(job, indent=1, sort_keys=True), encoding="utf-8")
    else:
        documents = [message]
        if target == "kubeflow":
            documents.append(spec.platform_spec(steps, config.kubeflow))
        output.write_text(yaml.safe_dump_all(documents, sort_keys=True), encoding="utf-8")
    return sorted(message["root"]["dag"]["tasks"])


def _name(name: str) -> str:
    plain = name.lower().replace("_", "-").replace(".", "-")
    if not _NAME.fullmatch(plain):
        raise ConfigError(f"name: {name!r} is no name for a pipeline there: letters, digits and '-', at most 128")
    return plain


def _there(values: dict[str, Any], config: Config) -> dict[str, Any]:
    """The configuration's values as they are in the containers."""
    there = json.loads(json.dumps(values))
    override_values(there, config.kubeflow.set)
    return there


def _check(config: Config, target: Target, there: dict[str, Any]) -> str:
    """Refuses what cannot run there; returns the pipeline root in the containers."""
    if config.window.last == "all":
        raise ConfigError(
            "step examples: window.last = 'all': the steps are fixed when compiled; give a number of spans"
        )
    mounts = ["/gcs"] if target == "vertex" else sorted(config.kubeflow.volumes)
    if target == "vertex" and config.kubeflow.bucket is None:
        raise ConfigError("kubeflow.bucket: name where Vertex AI puts artifacts, gs://bucket/folder")
    if not mounts:
        raise ConfigError(
            'kubeflow.volumes: name the volume that all steps share, for example volumes = { "/mnt" = "claim" }; '
            "push, Beam's workers and the next run need it"
        )
    paths = there["paths"]
    root = paths["root"]
    needed = {
        "paths.root": ("push", root),
        "paths.serving": ("push", paths["serving"]),
        "data.input": ("examples", there["data"]["input"]),
        "tokenizer.vocab": ("transform", there["tokenizer"]["vocab"]),
        "encoder.config": ("trainer", there["encoder"]["config"]),
        "encoder.weights": ("weights", there["encoder"]["weights"]),
        "validation.schema_file": ("schema", there["validation"]["schema_file"]),
        "validation.serving_logs": ("data_gate", there["validation"]["serving_logs"]),
    }
    if root is None:
        raise ConfigError(f"step push: paths.root: name a folder below {' or '.join(mounts)}, in kubeflow.set")
    for key, (step, value) in needed.items():
        if value is None or (key == "encoder.weights" and HUB_NAME.match(value)):
            continue
        path = PurePosixPath(value)
        if not any(path.is_relative_to(mount) for mount in mounts):
            hint = " (it ships with the package: copy it there)" if path.is_relative_to(SHIPPED) else ""
            raise ConfigError(
                f"step {step}: {key}: {value} is not in the containers, which see {', '.join(mounts)}{hint}; say where "
                f"it is there with kubeflow.set = [\"{key}='{mounts[0]}/…'\"]"
            )
    for step, gets in (("default", config.kubeflow.default), *config.kubeflow.steps.items()):
        whole = config.kubeflow.of(step) if step != "default" else gets
        if whole.gpus and not whole.gpu_type:
            example = "nvidia.com/gpu" if target == "kubeflow" else "NVIDIA_L4"
            raise ConfigError(f"kubeflow: {step}: gpus needs gpu_type beside it, for example {example!r}")
        if whole.node_selector and target == "vertex":
            raise ConfigError(
                f"kubeflow: {step}: node_selector: Vertex AI chooses the machine by cpu, memory and gpu_type"
            )
    return root


def _beam(
    config: Config, target: Target, root: str, steps: list[Any], arguments: list[str]
) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """Flags by step, and the steps whose workers see no mounted folder."""
    from pipeline.beam import beam_arguments, runner, runs_here

    beam: dict[str, tuple[str, ...]] = {}
    remote = set()
    for step in steps:
        if not step.on_beam:
            continue
        own = config.kubeflow.of(step.id).beam_pipeline_args
        flags = tuple(arguments) if own is None else tuple(beam_arguments(BeamConfig(pipeline_args=own)))
        beam[step.id] = flags
        if runs_here(flags) or (target == "kubeflow" and runner(flags) != "DataflowRunner"):
            continue  # a cluster beside Kubeflow mounts the same volume: deploy/beam/flink.yaml
        name = step_name(step.id)
        if not root.startswith("/gcs/"):
            raise ConfigError(
                f"step {name}: paths.root: {root} lies on a volume that the workers of {runner(flags)} do not see; "
                'mount a bucket as a volume, kubeflow.volumes = { "/gcs/BUCKET" = CLAIM }, and put the root there, or '
                "take a Flink cluster (deploy/beam/flink.yaml)"
            )
        reads_files = name == "examples" or (name == "data_gate" and config.validation.serving_logs)
        if reads_files:
            raise ConfigError(
                f"step {name}: reads mounted files, which the workers of {flags[0]} do not see; give it "
                f'[kubeflow.steps.{name}] beam_pipeline_args = ["--runner=FnApiRunner"]'
            )
        remote.add(step.id)
    return beam, frozenset(remote)
