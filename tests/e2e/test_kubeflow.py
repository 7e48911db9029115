"""The compiled pipeline, run container by container: the command lines as they stand, on a real pipeline root."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("kubeflow_launcher", HERE / "kubeflow_launcher.py")
kubeflow_launcher = importlib.util.module_from_spec(_spec)
sys.modules["kubeflow_launcher"] = kubeflow_launcher
_spec.loader.exec_module(kubeflow_launcher)


@pytest.fixture(scope="module")
def compiled(project, libraries):
    """The small project's pipeline, compiled for Kubeflow; its launcher."""
    alone = project.beside(libraries)
    project.process = lambda argv, environment: kubeflow_launcher.run_forked(alone, argv, environment)
    return compile_for(project)


def run_process(argv: list[str], environment: dict[str, str], cwd: Path) -> tuple[int, str]:
    """A command line as it stands, where `python` is that of the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    whole = {**os.environ, **environment, "PATH": path, "PYTHONPATH": str(HERE.parents[1])}
    return kubeflow_launcher.run_process(argv, whole, cwd)


def compile_for(project, *overrides: str):
    output = project.folder / "pipeline.yaml"
    volume = f'kubeflow.volumes={{"{project.folder}"="claim"}}'
    there = f"kubeflow.set=['paths.root={project.root}']"
    argv = project.command("compile", overrides=(volume, there, *overrides))
    project.start([*argv, "--target", "kubeflow", "--output", str(output), "--json"])
    done = project.wait()
    assert done.status == 0, done.stderr
    launcher = kubeflow_launcher.Launcher(output, project)
    assert done.json["tasks"] == sorted(launcher.order())
    return launcher


@pytest.fixture(scope="module")
def first(compiled):
    """The first run, each task in a process that knows nothing of this project before, as in containers."""
    return compiled.run(fresh=compiled.order())


def test_every_container_does_its_work_and_one_version_is_pushed(project, compiled, first) -> None:
    assert first.status == dict.fromkeys(compiled.order(), 0), first.stderr
    (version,) = project.versions
    lineage = json.loads((project.serving_dir / str(version) / "assets.extra" / "lineage.json").read_text())
    assert lineage["run"]["configuration"]["name"] == "small"
    assert lineage["data"]["rows"] == 870
    assert lineage["artifacts"]["model"]["uri"] == str(first.folder("trainer", "model"))
    assert (first.folder("trainer", "model") / "Format-Serving" / "saved_model.pb").exists()
    report = json.loads((first.folder("examples", "examples") / "ingest_report.json").read_text())
    assert {split: values["rows"] for split, values in report["splits"].items()} == {
        "train": 600, "eval": 120, "test": 150,
    }  # fmt: skip
    (approval,) = (project.root / "approvals").glob("*.json")
    assert json.loads(approval.read_text())["schema"]["uri"] == str(first.folder("schema", "schema"))


def test_second_run_is_answered_from_the_cache_up_to_the_gate_that_it_breaks(project, compiled, first) -> None:
    bounds = '{metric="accuracy", min=0.999}, {metric="macro_f1", min_gain_over_blessed=-0.5}'
    again = compiled.run(set=[f"evaluation.gates=[{bounds}]"])
    assert again.status == {"resolve": 0, "evaluator": 3}, again.stderr
    assert again.cached == set(compiled.order()) - {"resolve", "evaluator", "serving-check", "push"}
    assert "step evaluator: the model was not blessed: accuracy >= 0.999" in again.stderr["evaluator"]
    assert "blessed" not in again.stderr["evaluator"].partition("accuracy")[2], "only the broken gate is named"
    # Of the same data's own schema nothing is taken, and the live model was compared with.
    assert again.parameters["resolve", "lookup_previous_schema"] == ""
    live = json.loads(again.parameters["resolve", "lookup_live_model"])
    assert live["uri"] == str(first.folder("trainer", "model"))
    gates = max((project.root / "artifacts" / "evaluator" / "evaluation").glob("*/gates.json"), key=os.path.getmtime)
    compared = [gate for gate in json.loads(gates.read_text())["gates"] if "blessed" in gate["gate"]]
    assert [(gate["passed"], gate["value"] is not None) for gate in compared] == [(True, True)]
    assert len(project.versions) == 1


def test_data_that_is_refused_fails_the_gates_task_with_its_reason_and_no_text(project, compiled, first) -> None:
    refused = compiled.run(set=["validation.min_label_count=10000"])
    assert refused.status == {"resolve": 0, "data-gate": 1}
    assert "too few rows of" in refused.stderr["data-gate"]
    assert "Traceback" not in refused.stderr["data-gate"]
    assert len(list((project.root / "approvals").glob("*.json"))) == 1


def test_what_is_settled_when_compiled_cannot_be_changed_by_a_run(compiled) -> None:
    refused = compiled.run(set=["beam.workers=3"])
    assert refused.status == {"resolve": 2}
    assert "set: beam.workers=3: is settled when the pipeline is compiled" in refused.stderr["resolve"]


def test_window_of_spans_is_found_when_the_pipeline_runs(project, compiled) -> None:
    rows = project.folder / "rows"
    for span in (1, 2, 3):
        (rows / f"span-{span}").mkdir()
        for name in ("train", "dev", "test"):
            text = (rows / f"{name}.csv").read_text().splitlines(keepends=True)
            (rows / f"span-{span}" / f"{name}.csv").write_text("".join([text[0], *text[span : 60 + span]]))
    launcher = compile_for(
        project,
        'data.splits={train="span-{SPAN}/train.csv", eval="span-{SPAN}/dev.csv", test="span-{SPAN}/test.csv"}',
        "window.last=3",
    )
    older = launcher.run(until="examples", span="2")
    assert set(older.status.values()) == {0}, older.stderr
    assert older.artifacts["examples-2", "examples"].metadata["absent"] == 1
    report = json.loads((older.folder("examples", "examples") / "ingest_report.json").read_text())
    assert [span["span"] for span in report["spans"]] == [1, 2]
    newest = launcher.run(until="examples")
    report = json.loads((newest.folder("examples", "examples") / "ingest_report.json").read_text())
    assert [span["span"] for span in report["spans"]] == [1, 2, 3]
    assert report["rows"] == 3 * 180
    # Two of the three spans were known, at other places of the window.
    assert newest.folder("examples-2", "examples").exists()
    for member in newest.folder("examples", "examples").glob("Split-train/*"):
        assert member.name.startswith("span-")


# The root folder of the machine with one more in it, in a mount namespace of the command's own.
WITH_BUCKETS = """
set -e
new=$1 buckets=$2
shift 2
mount -t tmpfs none "$new"
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "$new$entry"
  elif [ -d "$entry" ]; then mkdir "$new$entry"; mount --rbind "$entry" "$new$entry"
  fi
done
mkdir "$new/gcs"
mount --bind "$buckets" "$new/gcs"
exec chroot "$new" env -C /gcs "$@"
"""


@pytest.fixture
def vertex(project, tmp_path: Path):
    """The small project's pipeline, compiled for Vertex AI; a bucket is mounted under /gcs, as there."""
    buckets, new = tmp_path / "gcs", tmp_path / "new"
    for folder in (buckets / "bucket", new):
        folder.mkdir(parents=True)
    shutil.copytree(project.folder / "rows", buckets / "bucket" / "rows", ignore=shutil.ignore_patterns("span-*"))
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", WITH_BUCKETS, "sh", str(new), str(buckets)]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("a folder /gcs of a process's own needs user namespaces")
    output = tmp_path / "pipeline.json"
    there = "kubeflow.set=['paths.root=/gcs/bucket/root', 'data.input=/gcs/bucket/rows']"
    argv = project.command("compile", overrides=("kubeflow.bucket=gs://bucket/runs", there))
    project.start([*argv, "--target", "vertex", "--output", str(output)])
    done = project.wait()
    assert done.status == 0, done.stderr
    machine = SimpleNamespace(
        folder=tmp_path, process=lambda argv, environment: run_process([*alone, *argv], environment, tmp_path)
    )
    tasks = (buckets / "bucket" / "tasks", Path("/gcs/bucket/tasks"))
    return kubeflow_launcher.Launcher(output, machine, "gs://bucket/runs", tasks), buckets


def test_command_lines_for_vertex_run_as_they_stand_on_a_mounted_bucket(vertex) -> None:
    launcher, buckets = vertex
    run = launcher.run(until="examples", fresh=("resolve", "examples"))
    assert run.status == {"resolve": 0, "examples": 0}, run.stderr
    artifact = run.artifacts["examples", "examples"]
    assert artifact.uri.startswith("gs://bucket/runs/")
    folder = buckets / artifact.uri.removeprefix("gs://")
    report = json.loads((folder / "ingest_report.json").read_text())
    assert (report["splits"]["train"]["rows"], report["splits"]["test"]["rows"]) == (600, 150)
    assert sorted(path.name for path in folder.glob("Split-*")) == ["Split-eval", "Split-test", "Split-train"]
