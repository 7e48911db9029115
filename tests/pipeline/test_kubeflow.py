"""What `biobert-cnn compile` writes, read with Kubeflow's own messages, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp import components as kfp_components
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

from components.errors import ConfigError
from pipeline.config import load_config
from pipeline.environment import library_settings
from pipeline.kubeflow import ledger
from pipeline.kubeflow.target import compile_to

ROOT = Path(__file__).parents[2]
TASKS = (
    "anomalies", "data-gate", "evaluator", "examples", "push", "resolve", "schema", "serving-check", "statistics",
    "trainer", "transform",
)  # fmt: skip
WHEN_TFX_IS_IMPORTED = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name in ("tensorflow", "tfx"):
            print(os.environ.get("KERAS_HOME"), os.environ.get("TF_CPP_MIN_LOG_LEVEL"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
__import__(sys.argv[1])
"""
GPU = 'kubeflow.steps.trainer={gpus=1, gpu_type="%s", memory="16Gi", cpu=8, retries=2}'


def settings(minimal: Path, *more: str) -> list[str]:
    """Overrides with which the smallest configuration compiles for both targets."""
    return [
        "kubeflow.volumes={'/mnt'='claim'}", "kubeflow.bucket='gs://bucket/runs'",
        "kubeflow.set=['paths.root=/mnt/root', 'data.input=/mnt/rows']", *more,
    ]  # fmt: skip


def compiled(minimal: Path, target: str, suffix: str, *more: str) -> tuple[dict, list[dict]]:
    output = minimal.parent / f"out{suffix}"
    tasks = compile_to(load_config(minimal, settings(minimal, *more)), target, output)
    documents = list(yaml.safe_load_all(output.read_text()))
    found = documents[0]["pipelineSpec"] if suffix == ".json" else documents[0]
    assert tasks == sorted(found["root"]["dag"]["tasks"])
    return found, documents


def parts(found: dict) -> tuple[pb.PipelineSpec, pb.PipelineDeploymentConfig]:
    spec = json_format.ParseDict(found, pb.PipelineSpec())
    return spec, json_format.ParseDict(found["deploymentSpec"], pb.PipelineDeploymentConfig())


@pytest.fixture
def kubeflow(minimal: Path) -> tuple[pb.PipelineSpec, pb.PipelineDeploymentConfig, list[dict]]:
    found, documents = compiled(
        minimal, "kubeflow", ".yaml", GPU % "nvidia.com/gpu", "kubeflow.default={cpu=1, memory='2Gi'}",
        "kubeflow.steps.transform={node_selector={pool='large'}, cache=false}", "beam.workers=4",
        "beam.mode='multi_processing'", "beam.parallel_above_mb=1",
    )  # fmt: skip
    return *parts(found), documents


def test_kubeflows_own_reader_takes_the_specification(minimal: Path, kubeflow) -> None:
    loaded = kfp_components.load_component_from_file(str(minimal.parent / "out.yaml"))
    assert loaded.name == "mine"
    assert set(loaded.component_spec.inputs) == {"config", "set", "span"}
    assert all(item.optional for item in loaded.component_spec.inputs.values())


def test_every_input_comes_from_an_output_of_the_same_type_of_a_task_that_is_waited_for(kubeflow) -> None:
    spec, _, _ = kubeflow
    tasks = spec.root.dag.tasks
    assert tuple(sorted(tasks)) == TASKS
    for name, task in tasks.items():
        component = spec.components[task.component_ref.name]
        assert set(task.inputs.artifacts) == set(component.input_definitions.artifacts), name
        assert set(task.inputs.parameters) == set(component.input_definitions.parameters), name
        for key, source in task.inputs.artifacts.items():
            producer = source.task_output_artifact
            assert producer.producer_task in task.dependent_tasks
            given = spec.components[tasks[producer.producer_task].component_ref.name].output_definitions.artifacts
            wanted = component.input_definitions.artifacts[key].artifact_type
            assert given[producer.output_artifact_key].artifact_type == wanted
            assert yaml.safe_load(wanted.instance_schema)["title"].split(".")[0] in ("tfx", "biobert_cnn")
        for source in task.inputs.parameters.values():
            if source.WhichOneof("kind") == "task_output_parameter":
                producer = source.task_output_parameter
                assert producer.producer_task == "resolve"
                given = spec.components["comp-resolve"].output_definitions.parameters
                assert given[producer.output_parameter_key].parameter_type == pb.ParameterType.STRING
            else:
                assert source.component_input_parameter in spec.root.input_definitions.parameters
    title = yaml.safe_load(
        spec.components["comp-data-gate"].output_definitions.artifacts["approval"].artifact_type.instance_schema
    )
    assert title == {"title": "biobert_cnn.DataApproval", "type": "object"}


def test_edges_are_those_of_the_graph(kubeflow) -> None:
    spec, _, _ = kubeflow
    tasks = spec.root.dag.tasks
    assert set(tasks["resolve"].dependent_tasks) == set()
    assert set(tasks["transform"].dependent_tasks) == {"resolve", "examples", "schema", "data-gate"}
    assert set(tasks["push"].dependent_tasks) == {
        "resolve", "trainer", "evaluator", "serving-check", "examples",
    }  # fmt: skip
    lookups = {
        (name, parameter): source.task_output_parameter.output_parameter_key
        for name, task in tasks.items()
        for parameter, source in task.inputs.parameters.items()
        if parameter.startswith("lookup_")
    }
    assert lookups == {
        ("schema", "lookup_previous_schema"): "lookup_previous_schema",
        ("data-gate", "lookup_previous_statistics"): "lookup_previous_statistics",
        ("evaluator", "lookup_baseline_model"): "lookup_live_model",
    }


def test_images_command_lines_and_resources(kubeflow) -> None:
    spec, deployment, _ = kubeflow
    assert sorted(deployment.executors) == sorted(f"exec-{name}" for name in TASKS)
    for name in TASKS:
        container = deployment.executors[f"exec-{name}"].container
        gpu = name == "trainer"
        assert container.image == f"biobert-cnn-pipeline{'-gpu' if gpu else ''}:0.1.0"
        module = "resolve" if name == "resolve" else "step"
        assert list(container.command) == ["python", "-m", f"pipeline.kubeflow.{module}"]
        assert "{{$}}" in container.args
        assert container.resources.resource_memory_limit == ("16Gi" if gpu else "2Gi")
        assert container.resources.resource_cpu_limit == ("8" if gpu else "1")
        assert container.resources.memory_limit == pytest.approx(17.179869184 if gpu else 2.147483648)
        assert container.resources.accelerator.resource_type == ("nvidia.com/gpu" if gpu else "")
        assert container.resources.accelerator.resource_count == ("1" if gpu else "")
    retry = spec.root.dag.tasks["trainer"].retry_policy
    assert (retry.max_retry_count, retry.backoff_duration.seconds) == (2, 60)
    args = list(deployment.executors["exec-transform"].container.args)
    assert args[: args.index("--")] == [
        "--step", "transform", "--executor", "tfx.components.transform.executor.Executor", "--artifacts",
        "/mnt/root/artifacts", "--input", "{{$}}",
    ]  # fmt: skip
    assert args[args.index("--") + 1 :][:3] == [
        "--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=4",
    ]  # fmt: skip
    assert "--" not in deployment.executors["exec-trainer"].container.args


def test_every_executor_is_a_class_that_there_is(kubeflow) -> None:
    from tfx.utils import import_utils

    _, deployment, _ = kubeflow
    for name, executor in deployment.executors.items():
        args = list(executor.container.args)
        if name != "exec-resolve":
            assert hasattr(import_utils.import_class_by_path(args[args.index("--executor") + 1]), "Do")


def test_what_looks_at_the_world_is_never_answered_from_the_cache(minimal: Path, kubeflow) -> None:
    spec, _, _ = kubeflow
    cached = {name for name, task in spec.root.dag.tasks.items() if task.caching_options.enable_cache}
    assert cached == set(TASKS) - {"resolve", "serving-check", "push", "transform"}
    off, _ = parts(compiled(minimal, "kubeflow", ".yaml", "kubeflow.cache=false")[0])
    assert not any(task.caching_options.enable_cache for task in off.root.dag.tasks.values())


def test_platform_specification_mounts_the_volume_everywhere_and_selects_nodes(kubeflow) -> None:
    _, _, documents = kubeflow
    platform = json_format.ParseDict(documents[1], pb.PlatformSpec())
    executors = json_format.MessageToDict(platform.platforms["kubernetes"].deployment_spec)["executors"]
    assert sorted(executors) == sorted(f"exec-{name}" for name in TASKS)
    for name, values in executors.items():
        config = json_format.ParseDict(values, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
        (mount,) = config.pvc_mount
        assert (mount.mount_path, mount.constant) == ("/mnt", "claim")
        assert mount.pvc_name_parameter.runtime_value.constant.string_value == "claim"
        assert dict(config.node_selector.labels) == ({"pool": "large"} if name == "exec-transform" else {})


def test_vertex_takes_a_job_with_mounted_buckets_and_dataflow(minimal: Path) -> None:
    dataflow = (
        "--runner=DataflowRunner", "--project=p", "--region=europe-west4", "--temp_location=gs://bucket/tmp",
        "--sdk_container_image=registry/worker:0.1.0",
    )  # fmt: skip
    found, (job,) = compiled(
        minimal, "vertex", ".json", GPU % "NVIDIA_L4", f"beam.pipeline_args={json.dumps(dataflow)}",
        "kubeflow.set=['paths.root=/gcs/bucket/root', 'data.input=/gcs/bucket/rows']",
        "kubeflow.steps.examples.beam_pipeline_args=['--runner=FnApiRunner']",
    )  # fmt: skip
    message = json_format.ParseDict(job, pb.PipelineJob())
    assert message.runtime_config.gcs_output_directory == "gs://bucket/runs"
    _, deployment = parts(found)
    accelerator = deployment.executors["exec-trainer"].container.resources.accelerator
    assert (accelerator.type, accelerator.count) == ("NVIDIA_L4", 1)
    for name in TASKS:
        args = list(deployment.executors[f"exec-{name}"].container.args)
        on_dataflow = name in ("statistics", "data-gate", "transform", "evaluator")
        assert ("--remote" in args) == on_dataflow
        assert ("--runner=DataflowRunner" in args) == on_dataflow
        assert "--artifacts" not in args
    assert "--runner=FnApiRunner" in deployment.executors["exec-examples"].container.args


FLINK = ("--runner=FlinkRunner", "--flink_master=flink:8081", "--environment_type=EXTERNAL", "--parallelism=4")
DATAFLOW = ("--runner=DataflowRunner", "--project=p", "--region=europe-west4", "--temp_location=gs://bucket/tmp")
BUCKET = (
    "kubeflow.volumes={'/gcs/bucket'='claim'}",
    "kubeflow.set=['paths.root=/gcs/bucket/root', 'data.input=/gcs/bucket/rows']",
    "kubeflow.steps.examples.beam_pipeline_args=['--runner=FnApiRunner']",
)
ON_BEAM = ("examples", "statistics", "data-gate", "transform", "evaluator")


@pytest.mark.parametrize(
    ("target", "flags", "more", "by_address"),
    [
        ("kubeflow", FLINK, (), False),  # its workers mount the same volume
        ("kubeflow", DATAFLOW, BUCKET, True),
        ("vertex", FLINK, BUCKET, True),
        ("vertex", DATAFLOW, BUCKET, True),
    ],
)
def test_beam_runs_where_it_is_told(minimal: Path, target: str, flags: tuple, more: tuple, by_address: bool) -> None:
    given = f"beam.pipeline_args={json.dumps(flags)}"
    _, deployment = parts(compiled(minimal, target, ".yaml", *more, given)[0])
    for name in TASKS:
        args = list(deployment.executors[f"exec-{name}"].container.args)
        elsewhere = name in ON_BEAM and not (more and name == "examples")
        told = tuple(args[args.index("--") + 1 :]) if "--" in args else ()
        assert told == (flags if elsewhere else ("--runner=FnApiRunner",) if name in ON_BEAM else ())
        assert ("--remote" in args) == (elsewhere and by_address)
        root = "/gcs/bucket/root" if more else "/mnt/root"
        assert (f"{root}/artifacts" in args) == (target == "kubeflow" and name != "resolve")


def test_configuration_in_the_specification_is_the_one_that_was_compiled(minimal: Path, kubeflow) -> None:
    spec, _, _ = kubeflow
    values = json.loads(spec.root.input_definitions.parameters["config"].default_value.string_value)
    assert values["kubeflow"]["set"] == ["paths.root=/mnt/root", "data.input=/mnt/rows"]
    assert values["data"]["input"] == str(minimal.parent / "rows")
    assert (values["task"], values["labels"]) == ("binary", ["no", "yes"])


@pytest.mark.parametrize(
    ("target", "override", "expected"),
    [
        ("kubeflow", "kubeflow.volumes={}", "kubeflow.volumes: name the volume that all steps share"),
        ("kubeflow", "kubeflow.set=[]", "step push: paths.root: name a folder below /mnt"),
        ("kubeflow", "kubeflow.set=['paths.root=/mnt/root']", "step examples: data.input: "),
        (
            "vertex",
            "kubeflow.set=['paths.root=/mnt/root']",
            "step push: paths.root: /mnt/root is not in the containers",
        ),
        ("kubeflow", "kubeflow.steps.trainer={gpus=1}", "trainer: gpus needs gpu_type beside it"),
        ("vertex", "kubeflow.default.node_selector={a='b'}", "default: node_selector: Vertex AI chooses the machine"),
        ("kubeflow", "name='Ärzte'", "name:"),
    ],
)
def test_what_cannot_run_there_is_refused_when_compiled(minimal: Path, target: str, override: str, expected: str):
    there = () if target == "kubeflow" or "set" in override else (
        "kubeflow.set=['paths.root=/gcs/b/root', 'data.input=/gcs/b/rows']",
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        compiled(minimal, target, ".yaml", *there, override)
    assert expected in str(caught.value)


def test_ingest_on_workers_that_do_not_see_its_files_is_refused(minimal: Path) -> None:
    with pytest.raises(ConfigError, match="step examples: reads mounted files, which the workers of --runner=Dataflow"):
        compiled(
            minimal, "vertex", ".yaml", "beam.pipeline_args=['--runner=DataflowRunner', '--project=p']",
            "kubeflow.set=['paths.root=/gcs/b/root', 'data.input=/gcs/b/rows']",
        )  # fmt: skip


def test_dataflow_is_refused_where_its_workers_do_not_see_the_volume(minimal: Path) -> None:
    here = "kubeflow.steps.examples.beam_pipeline_args=['--runner=FnApiRunner']"
    with pytest.raises(
        ConfigError, match=r"step statistics: paths\.root: /mnt/root lies on a volume that the workers of"
    ):
        compiled(minimal, "kubeflow", ".yaml", here, f"beam.pipeline_args={json.dumps(DATAFLOW)}")


def test_window_of_all_spans_is_refused_for_it_has_no_fixed_steps(minimal: Path) -> None:
    shutil.copytree(minimal.parent / "rows", minimal.parent / "rows" / "span-1")
    spans = 'data.splits={train="span-{SPAN}/train.csv", eval="span-{SPAN}/dev.csv"}'
    with pytest.raises(ConfigError, match=r"step examples: window\.last = .all."):
        compiled(minimal, "kubeflow", ".yaml", spans, "window.last='all'")
    found, _ = compiled(minimal, "kubeflow", ".yaml", spans, "window.last=3")
    tasks = found["root"]["dag"]["tasks"]
    assert {"examples-0", "examples-1", "examples-2"} <= set(tasks)
    assert set(tasks["examples"]["inputs"]["artifacts"]) == {"spans__0", "spans__1", "spans__2"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("kubeflow.image='pipeline'", "kubeflow.image: must be pinned"),
        ("kubeflow.image='pipeline:latest'", "kubeflow.image: must be pinned"),
        ("kubeflow.steps.push.cache=true", "steps.push.cache: this step looks at what the platform does not see"),
        ("kubeflow.steps.trainr={}", "trainr"),
        ("kubeflow.default.memory='8GB'", "kubeflow.default.memory"),
        ("kubeflow.set=['beam.workers=2']", "is settled when the pipeline is compiled"),
        ("kubeflow.volumes={'mnt'='claim'}", "kubeflow.volumes"),
    ],
)
def test_mistakes_in_the_section_are_named(minimal: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [override])
    assert expected in str(caught.value)


def test_without_kfp_the_extra_is_named(minimal: Path) -> None:
    code = (
        "import sys; sys.modules['kfp'] = None\n"
        "from pipeline.cli import app\n"
        f"app(['compile', {str(minimal)!r}, '--target', 'kubeflow', '--output', 'out.yaml'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: compile: Kubeflow's package is not installed; pip install 'biobert-cnn[pipeline,kfp]'\n"
    )


def test_the_section_decides_nothing_of_a_runs_result(minimal: Path) -> None:
    assert load_config(minimal).decisive() == load_config(minimal, ["kubeflow.image='other:1'"]).decisive()


def test_ledger_gives_what_resolvers_give(tmp_path: Path) -> None:
    def approval(span: int, data: str) -> ledger.Approval:
        folders = {}
        for kind in ("statistics", "schema"):
            folder = tmp_path / f"{kind}-{data}"
            folder.mkdir(exist_ok=True)
            folders[kind] = {"type": "tfx.Schema", "uri": str(folder), "metadata": {}}
        return ledger.Approval(span, data, folders["statistics"], folders["schema"])

    for span, data in ((1, "a"), (2, "b"), (2, "c"), (3, "d")):
        ledger.record(tmp_path, approval(span, data))
    known = ledger.approvals(tmp_path)
    assert [item.data for item in known] == ["a", "b", "c", "d"]
    assert ledger.previous_statistics(known, 3)["uri"].endswith("statistics-c")
    assert ledger.previous_statistics(known, 1) is None
    assert ledger.previous_schema(known, "d")["uri"].endswith("schema-c")
    assert ledger.previous_schema(known[:1], "a") is None
    shutil.rmtree(tmp_path / "schema-c")
    assert [item.data for item in ledger.approvals(tmp_path)] == ["a", "b", "d"]


def test_addresses_and_mounted_folders_are_the_platforms() -> None:
    from pipeline.kubeflow import artifacts

    assert artifacts.local("gs://bucket/a/b") == "/gcs/bucket/a/b"
    assert artifacts.local("s3://bucket/a") == "/s3/bucket/a"
    assert artifacts.local("minio://bucket/a") == "/minio/bucket/a"
    assert artifacts.local("/mnt/a") == "/mnt/a"
    for uri in ("gs://bucket/a/b", "s3://bucket/a", "minio://bucket/a", "/mnt/a"):
        assert artifacts.address(artifacts.local(uri)) == uri


def artifact_at(uri: str) -> pb.RuntimeArtifact:
    found = pb.RuntimeArtifact(uri=uri)
    found.type.schema_title = "tfx.Schema"
    return found


def test_artifact_is_at_its_address_for_workers_that_see_no_folder_and_in_its_folder_for_all_others() -> None:
    from pipeline.kubeflow import artifacts

    for remote, vertex, kubeflow in (
        (False, "/gcs/bucket/runs/s", "/gcs/bucket/root/artifacts/schema/schema/"),
        (True, "gs://bucket/runs/s", "gs://bucket/root/artifacts/schema/schema/"),
    ):
        told = artifact_at("gs://bucket/runs/s")
        assert artifacts.read_output(told, {}, remote, None).uri == vertex
        assert artifacts.read_input(told, {}, remote).uri == vertex
        made = artifacts.read_output(told, {}, remote, "/gcs/bucket/root/artifacts/schema/schema")
        assert made.uri.startswith(kubeflow)
        told.CopyFrom(artifacts.write_output(made, "minio://store/s"))
        told.type.schema_title = "tfx.Schema"
        for reader, place in ((False, artifacts.local(made.uri)), (True, artifacts.address(made.uri))):
            assert artifacts.read_input(told, {}, reader).uri == place
        stored = artifacts.to_json(made)
        assert stored["uri"] == artifacts.local(made.uri), "`resolve`, which looks whether it is there, sees folders"
        assert artifacts.from_json(json.dumps(stored), remote)[0].uri == made.uri


def test_image_may_be_named_by_digest(minimal: Path) -> None:
    image = f"registry.example/pipeline@sha256:{'0' * 64}"
    _, deployment = parts(compiled(minimal, "kubeflow", ".yaml", f"kubeflow.image='{image}'")[0])
    assert {executor.container.image for executor in deployment.executors.values()} == {image}


@pytest.mark.parametrize("module", ["step", "resolve"])
@pytest.mark.parametrize(("given", "expected"), [({}, f"{os.devnull} 3"), ({"KERAS_HOME": "/k"}, "/k 3")])
def test_containers_keep_keras_out_of_the_home_folder(module: str, given: dict[str, str], expected: str) -> None:
    """Keras reads the variable when TFX brings it."""
    environment = {name: value for name, value in os.environ.items() if name not in library_settings()}
    done = subprocess.run(
        [sys.executable, "-c", WHEN_TFX_IS_IMPORTED, f"pipeline.kubeflow.{module}"],
        env={**environment, "PYTHONPATH": str(ROOT), **given}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"{expected}\n", done.stderr
