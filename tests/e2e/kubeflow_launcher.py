"""What Kubeflow's driver and launcher do with a compiled pipeline, on this machine and without containers.

Follows backend/src/v2 of kubeflow/pipelines: inputs are filled into an ExecutorInput, `{{$}}` in the command line is
replaced by it, the command runs as a process, and what it says in the output file is merged into the outputs. Images,
resources and volumes are not looked at.
"""

import json
import subprocess
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

STORE = "minio://mlpipeline/v2/artifacts"


@dataclass
class Run:
    """What came of the tasks: exit status by task that ran, names of those answered from the cache, and outputs."""

    status: dict[str, int] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    stderr: dict[str, str] = field(default_factory=dict)
    artifacts: dict[tuple[str, str], pb.RuntimeArtifact] = field(default_factory=dict)
    parameters: dict[tuple[str, str], object] = field(default_factory=dict)

    def folder(self, task: str, key: str) -> Path:
        """Where an output really is."""
        return Path(self.artifacts[task, key].metadata["folder"])


class Launcher:
    """Runs a specification; remembers what its cache knows from run to run."""

    def __init__(
        self, specification: Path, project, store: str = STORE, tasks: tuple[Path, Path] | None = None
    ) -> None:
        """Args: store: where the platform says that artifacts are; tasks: the tasks' own folder, here and in there."""
        self._store = store
        self._here, self._there = tasks or (project.folder / "launcher", project.folder / "launcher")
        document = next(yaml.safe_load_all(specification.read_text()))
        document = document.get("pipelineSpec", document)
        self.spec = json_format.ParseDict(document, pb.PipelineSpec())
        self.deployment = json_format.ParseDict(document["deploymentSpec"], pb.PipelineDeploymentConfig())
        self._project = project
        self._cache: dict[str, tuple[dict, dict]] = {}

    def order(self) -> list[str]:
        """The tasks, each after those that it waits for."""
        tasks, done = dict(self.spec.root.dag.tasks), []
        while tasks:
            ready = sorted(name for name, task in tasks.items() if set(task.dependent_tasks) <= set(done))
            assert ready, f"these wait for each other: {sorted(tasks)}"
            done += ready
            for name in ready:
                del tasks[name]
        return done

    def run(self, until: str | None = None, fresh: Collection[str] = (), **given: object) -> Run:
        """Args: until: the last task; fresh: tasks that `project.process` runs; given: run-time parameters."""
        run, run_id, failed = Run(), uuid.uuid4().hex, set()
        for name in self.order():
            task = self.spec.root.dag.tasks[name]
            if failed & set(task.dependent_tasks):
                failed.add(name)
                continue
            if self._one(run, run_id, name, task, given, name in fresh) != 0:
                failed.add(name)
            if name == until:
                break
        return run

    def _one(self, run: Run, run_id: str, name: str, task, given: dict, fresh: bool) -> int:
        component = self.spec.components[task.component_ref.name]
        told = self._told(run, run_id, name, task, component, given)
        container = self.deployment.executors[component.executor_label].container
        names = {key: [item.name for item in found.artifacts] for key, found in told.inputs.artifacts.items()}
        values = {key: json_format.MessageToDict(value) for key, value in told.inputs.parameter_values.items()}
        command = [*container.command, *container.args]
        key = json.dumps([container.image, command, names, values], sort_keys=True)
        if task.caching_options.enable_cache and key in self._cache:
            artifacts, parameters = self._cache[key]
            run.cached.add(name)
        else:
            argv = [part.replace("{{$}}", json_format.MessageToJson(told, indent=None)) for part in command]
            run.status[name], run.stderr[name] = self._process(argv, container, fresh)
            output = self._here / Path(told.outputs.output_file).relative_to(self._there)
            if run.status[name] != 0:
                return run.status[name]
            answer = json_format.Parse(output.read_text(), pb.ExecutorOutput())
            artifacts, parameters = self._collect(told, answer)
            self._cache[key] = (artifacts, parameters)
        run.artifacts.update({(name, key): found for key, found in artifacts.items()})
        run.parameters.update({(name, key): found for key, found in parameters.items()})
        return 0

    def _told(self, run: Run, run_id: str, name: str, task, component, given: dict) -> pb.ExecutorInput:
        told = pb.ExecutorInput()
        for key, source in task.inputs.parameters.items():
            value = told.inputs.parameter_values[key]
            if source.WhichOneof("kind") == "component_input_parameter":
                root = self.spec.root.input_definitions.parameters[source.component_input_parameter]
                value.CopyFrom(root.default_value)
                if source.component_input_parameter in given:
                    json_format.ParseDict(given[source.component_input_parameter], value)
            else:
                producer = source.task_output_parameter
                value.string_value = run.parameters[producer.producer_task, producer.output_parameter_key]
        for key, source in task.inputs.artifacts.items():
            producer = source.task_output_artifact
            found = run.artifacts[producer.producer_task, producer.output_artifact_key]
            told.inputs.artifacts[key].artifacts.append(found)
        (self._here / run_id / name).mkdir(parents=True)
        folder = self._there / run_id / name
        for key, definition in component.output_definitions.artifacts.items():
            artifact = told.outputs.artifacts[key].artifacts.add(uri=f"{self._store}/{run_id}/{name}/{key}")
            artifact.type.CopyFrom(definition.artifact_type)
        for key in component.output_definitions.parameters:
            told.outputs.parameters[key].output_file = str(folder / key)
        told.outputs.output_file = str(folder / "output_metadata.json")
        return told

    @staticmethod
    def _collect(told: pb.ExecutorInput, answer: pb.ExecutorOutput) -> tuple[dict, dict]:
        artifacts = {}
        for key, declared in told.outputs.artifacts.items():
            artifact = declared.artifacts[0]
            artifact.name = uuid.uuid4().hex
            for found in answer.artifacts[key].artifacts:
                artifact.uri = found.uri or artifact.uri
                artifact.metadata.MergeFrom(found.metadata)
            artifacts[key] = artifact
        assert set(answer.parameter_values) == set(told.outputs.parameters)
        return artifacts, {key: value.string_value for key, value in answer.parameter_values.items()}

    def _process(self, argv: list[str], container, fresh: bool) -> tuple[int, str]:
        environment = {item.name: item.value for item in container.env}
        if fresh:
            return self._project.process(argv, environment)
        return run_forked(self._project, argv, environment)


def run_forked(project, argv: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """A command `python -m module argv…` in a fork of the project's warm process."""
    assert argv[:2] == ["python", "-m"]
    project.start(argv[3:], module=argv[2], environment=environment)
    done = project.wait()
    return done.status, done.stderr


def run_process(argv: list[str], environment: dict[str, str], cwd: Path) -> tuple[int, str]:
    """A command in a process of its own."""
    done = subprocess.run(argv, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr
