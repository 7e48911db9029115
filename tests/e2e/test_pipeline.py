"""The main job, small: killed in every step, pushed, served, queried by a stranger, refused by each gate.

The tests of this file follow one another on one pipeline root, as a team's days do.
"""

import csv
import gzip
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from pipeline.steps import STEPS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ENCODER_LAYERS = 1
FOLDER = "Studie Übelkeit (1) "
TEXT = "Patients were randomly assigned to receive aspirin or placebo for twelve weeks."


def test_run_that_is_killed_in_each_step_goes_on_and_pushes_one_version(project) -> None:
    done_before: set[str] = set()
    for number, step in enumerate(STEPS):
        killed = project.run_and_kill(step, delay=0.05 * (number % 4))
        assert killed.status == -signal.SIGKILL, (step, killed.stderr)
        assert project.versions == [], f"a version appeared before the push, killed in {step}"
        for earlier in done_before:
            assert f"{earlier:<20} unchanged" in killed.stderr, f"{earlier} ran again after a kill in {step}"
        done_before = set(STEPS[:number])

    ended = project.run()
    assert ended.status == 0, ended.stderr
    assert ended.json["status"] == "pushed"
    assert project.versions == [ended.json["version"]]
    assert Path(ended.json["model_path"]) == project.serving_dir / str(ended.json["version"])
    assert {gate["gate"]: gate["passed"] for gate in ended.json["gates"]} != {}
    assert 0.3 < ended.json["metrics"]["accuracy"]["value"] <= 1.0
    assert 0.0 < ended.json["baseline"]["macro_f1"] <= 1.0
    assert set(ended.json["truncated"]) == {"train", "eval", "test"}
    assert not [path.name for path in project.serving_dir.iterdir() if path.name.endswith("tmp")]


def test_pushed_version_is_complete_and_carries_its_lineage(project) -> None:
    version = project.serving_dir / str(project.versions[-1])
    assert (version / "saved_model.pb").exists()
    records = tf.compat.v1.io.tf_record_iterator(str(version / "assets.extra" / "tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    asked = [getattr(log, log.WhichOneof("log_type")).request.model_spec.signature_name for log in logs]
    assert asked[-3:] == ["explain", "serialized_examples", "classify"]
    lineage = json.loads((version / "assets.extra" / "lineage.json").read_text())
    text = json.dumps(lineage)
    for expected in ("train.csv", "macro_f1", '"seed"', "sha256"):
        assert expected in text
    assert "randomly" not in text, "a text of the data in the lineage"


def test_second_run_has_nothing_to_do_and_imports_nothing_heavy(project) -> None:
    code = (
        "import sys, time; from pipeline.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'tensorflow', 'tfx', 'apache_beam', 'keras', 'pandas'} & set(sys.modules)\n"
        "sys.exit(99 if heavy else status)"
    )
    argv = [*project.command("run"), "--json"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=project.folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "unchanged"
    assert json.loads(done.stdout)["version"] == project.versions[-1]


def test_pushed_model_answers_a_client_that_knows_nothing_of_this_project(project) -> None:
    """And the server logs what it was asked, for the comparison further below."""
    models = project.folder / "models.config"
    models.write_text(
        f'model_config_list {{ config {{ name: "biobert_cnn" base_path: "{project.serving_dir}" '
        f'model_platform: "tensorflow" logging_config {{ sampling_config {{ sampling_rate: 1 }} '
        f'log_collector_config {{ type: "file" filename_prefix: "{project.folder}/log/served" }} }} }} }}'
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "serving.server", "--port=0", f"--model_config_file={models}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        port = None
        for line in server.stdout:
            found = re.search(r"listening on grpc 127\.0\.0\.1:(\d+)", line)
            if found:
                port = found.group(1)
                break
        assert port, "the server did not say where it listens"
        done = subprocess.run(
            [sys.executable, str(HERE / "plain_client.py"), f"127.0.0.1:{port}", "biobert_cnn", TEXT, ""],
            capture_output=True, text=True, cwd=project.folder, env={**os.environ, "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
    answer = json.loads(done.stdout)
    assert answer["own"] == []
    assert answer["version"] == project.versions[-1]
    assert answer["classes"][0] == ["BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS"]
    for row, label in zip(answer["probabilities"], answer["label"], strict=True):
        assert abs(sum(row) - 1.0) < 1e-5
        assert label == answer["classes"][0][row.index(max(row))]


@pytest.mark.parametrize(
    ("gate", "named"),
    [
        ('{metric="accuracy", min=0.999}', "accuracy"),
        ('{metric="macro_f1", min_gain_over_baseline=0.9}', "macro_f1"),
        ('{metric="macro_f1", min_gain_over_blessed=0.9}', "macro_f1"),
        ('{label="OBJECTIVE", measure="recall", min=1.0}', "OBJECTIVE"),
    ],
)
def test_model_that_breaks_a_gate_is_not_pushed_and_the_bound_is_named(project, gate: str, named: str) -> None:
    before = project.versions
    done = project.run(f"evaluation.gates=[{gate}]")
    assert done.status == 3, done.stderr
    assert done.json["status"] == "not_blessed"
    (result,) = done.json["gates"]
    assert not result["passed"]
    assert named in result["gate"]
    assert result["value"] < result["bound"]
    assert project.versions == before


def test_serving_check_that_fails_stops_the_push(project) -> None:
    before = project.versions
    done = project.run("serving.max_latency_ms=0.001", "training.seed=7")
    assert done.status == 3, done.stderr
    assert "latency" in done.json["serving_check"]["reason"]
    assert "(serving.max_latency_ms)" in done.json["serving_check"]["reason"]
    assert project.versions == before
    # This run trained: what its user saw, and what TensorBoard can show.
    for step in ("trainer", "evaluator", "serving_check"):
        assert re.search(rf"^  {step:<20} started\n(.*\n)*?  {step:<20} done  +\d+\.\d s$", done.stderr, re.MULTILINE)
    epoch = r"^    epoch 2/2  loss \d\.\d{3}  metric \d\.\d{3}  \d+ texts/s  0 s left$"
    assert re.search(epoch, done.stderr, re.MULTILINE), done.stderr
    runs = (project.root / "artifacts" / "trainer" / "model_run").iterdir()
    assert list(max(runs, key=lambda run: int(run.name)).glob("logs/events.out.tfevents.*"))


def test_exported_model_that_answers_differently_from_the_trainer_is_not_pushed(project) -> None:
    """The model of the test before, which was trained and evaluated already, with another's export in its place."""
    before = project.versions
    export = Path(project.record["model"]) / "Format-Serving"
    shutil.rmtree(export)
    shutil.copytree(project.serving_dir / str(before[-1]), export)
    done = project.run("training.seed=7")
    assert done.status == 3, done.stderr
    assert done.json["status"] == "not_blessed"
    assert all(gate["passed"] for gate in done.json["gates"])
    assert re.fullmatch(
        r"\d of 8 texts, sent in one batch, differ from the trainer's probabilities by more than 1e-05 "
        r"\(serving\.tolerance\); the greatest difference is 0\.\d+",
        done.json["serving_check"]["reason"],
    )
    assert project.versions == before


def refused_data(project, *overrides: str) -> str:
    """Why the data gate refuses: before training, in words, and nothing is pushed."""
    before = project.versions
    done = project.run(*overrides)
    assert (done.status, done.json["status"]) == (1, "failed"), done.stderr
    assert (done.json["step"], done.json["error_kind"]) == ("data_gate", "DataError")
    assert done.json["error"] in done.stderr
    assert "Traceback" not in done.stderr
    assert f"{'trainer':<20} started" not in done.stderr
    assert project.versions == before
    return done.json["error"]


def test_data_that_is_too_poor_is_refused_before_training(project) -> None:
    why = refused_data(project, "validation.min_label_count=10000")
    assert "split train, feature label: too few rows of: BACKGROUND " in why
    assert "(validation.min_label_count = 10000). Add rows of these labels" in why


def test_data_that_differs_from_what_is_served_is_refused(project) -> None:
    """Against the log of the server above, which was asked two texts, one of them empty."""
    why = refused_data(project, f"validation.serving_logs={project.folder}/log/*", "validation.length_skew=0.2")
    assert "split train, feature tokens: is skewed against the serving logs: " in why
    assert "raise validation.length_skew" in why


def test_data_that_breaks_the_curated_schema_is_refused(project) -> None:
    schema = project.folder / "small.schema.pbtxt"
    project.start(project.command("schema", "freeze"))
    assert project.wait().status == 0
    inferred = schema.read_text()
    tokens = re.search(r'feature \{\n  name: "tokens"\n(.*\n)*?  int_domain \{\n    min: 0\n', inferred).group()
    schema.write_text(inferred.replace(tokens, tokens + "    max: 20\n"))
    why = refused_data(project, f"validation.schema_file={schema}")
    for split in ("train", "eval", "test"):
        assert re.search(rf"split {split}, feature tokens: Unexpectedly large value: \d+\.", why)
    assert "feature label" not in why
    assert "change the curated schema" in why


def test_too_many_bad_rows_stop_the_run_and_are_kept(project) -> None:
    rows = project.folder / "rows" / "train.csv"
    good = rows.read_bytes()
    try:
        rows.write_bytes(good + b"1,0,Confidential words,NOSUCHLABEL\n" * 50)
        done = project.run()
    finally:
        rows.write_bytes(good)
    assert done.status == 1
    assert "data.max_bad_share" in done.stderr
    assert "50" in done.stderr
    assert "Confidential" not in done.stderr
    kept = [path for path in project.root.rglob("*dead_letters*") if path.is_file()]
    kept += [path for folder in project.root.rglob("dead_letters") for path in folder.rglob("*") if path.is_file()]
    assert any("Confidential" in path.read_text() for path in kept)
    logs = "".join(path.read_text(errors="replace") for path in (project.root / "logs").rglob("*.log"))
    assert "Confidential" not in logs


def test_second_run_at_once_is_refused(project) -> None:
    pid = project.start([*project.command("run", overrides=("training.seed=2",)), "--json"])
    try:
        while not (project.root / "run.lock").exists() or (project.root / "run.lock").read_text() != str(pid):
            assert Path(f"/proc/{pid}").exists()
        second = project.process(*project.command("run"))
        assert second.status == 1
        assert f"another run (process {pid}) holds the pipeline root" in second.stderr
    finally:
        first = project.wait()
    assert first.status == 0, first.stderr
    assert first.json["version"] == project.versions[-1]
    assert len(project.versions) == 2


def test_rollback_holds_against_a_run_with_nothing_new(project) -> None:
    older, newer = project.versions
    project.start([*project.command("rollback"), "--json"])
    done = project.wait()
    assert done.status == 0, done.stderr
    assert done.json["version"] == older
    assert project.versions[-1] == older
    again = project.run("training.seed=2")
    assert again.status == 0, again.stderr
    assert again.json["status"] == "unchanged"
    assert newer not in project.versions


def test_history_lists_every_run(project) -> None:
    project.start([*project.command("history"), "--json"])
    done = project.wait()
    runs = done.json["runs"]
    assert [run["status"] for run in runs].count("interrupted") == len(STEPS), "the runs that were killed"
    assert [run["status"] for run in runs].count("pushed") == 2
    assert [run["status"] for run in runs].count("not_blessed") == 6
    assert all(run["run_id"] for run in runs)
    pushed = next(run for run in runs if run["status"] == "pushed")
    assert (pushed["steps"]["trainer"], pushed["steps"]["push"]) == ("cached", "done")  # killed in the push before
    assert set(pushed["steps"]) == set(STEPS)


def needles(folder: Path) -> list[bytes]:
    """Forty characters out of some texts of each file."""
    found = []
    for path in folder.glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            texts = [row["text"][5:45] for row in csv.DictReader(file)][::20]
        found += [text.encode() for text in texts if len(text) == 40 and re.fullmatch(r"[\w ,.()-]+", text, re.ASCII)]
    return found


def test_texts_of_the_data_stand_in_the_examples_and_nowhere_else(project) -> None:
    wanted = needles(project.folder / "rows")
    assert len(wanted) > 20
    any_of = re.compile(b"|".join(map(re.escape, wanted)))
    examples = project.root / "artifacts" / "examples"
    files = [path for path in project.root.rglob("*") if path.is_file() and not path.is_symlink()]
    held = {
        path
        for path in files
        if any_of.search(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    }
    assert {path for path in held if path.suffix == ".gz" and path.is_relative_to(examples)}, (
        "what is looked for is there"
    )
    assert not {path for path in held if not path.is_relative_to(examples)}
    assert {"metadata.sqlite", "metrics.json", "lineage.json", "trainer.log"} <= {path.name for path in files}
    assert stat.S_IMODE((project.root / "artifacts").stat().st_mode) == 0o700


def test_nothing_is_written_to_the_home_folder(project) -> None:
    assert list(project.home.rglob("*")) == []
