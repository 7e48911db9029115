"""To its last step on Beam through a portable job server, as on Flink or Spark; from statistics to Transform by Beam in
many processes: the same artifacts as in this process."""

import gzip
import hashlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_metadata.proto.v0 import statistics_pb2

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of Beam's own job server."""
    folder = tmp_path_factory.mktemp("jobs")
    port = folder / "port"
    command = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", "0", "--port_file", str(port), "--staging_dir", str(folder / "staged")],
            stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    end = time.monotonic() + 120
    while not port.exists() or not port.read_text():
        assert server.poll() is None, (folder / "log").read_text()[-2000:]
        assert time.monotonic() < end, "the job server did not start"
        time.sleep(0.1)
    yield f"localhost:{port.read_text().strip()}"
    server.terminate()
    server.wait(30)


def run(project, name: str, *overrides: str, options: tuple[str, ...] = ()) -> dict:
    """A run on a root of its own; the folders of its newest artifacts by step and output."""
    root = project.folder / name
    argv = ["run", str(project.config), "--json", *options]
    quick = ("training.epochs=1", "evaluation.bootstrap_samples=0")
    for value in (f"paths.root={root}", *quick, *overrides):
        argv += ["--set", value]
    project.start(argv)
    done = project.wait()
    assert done.status == 0, done.stderr
    assert done.json["status"] == ("partial" if options else "pushed")
    found = {}
    for output in (root / "artifacts").glob("*/*"):
        executions = sorted((path for path in output.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
        if executions:
            found[output.parent.name, output.name] = executions[-1]
    return {"record": done.json, "artifacts": found}


@pytest.fixture(scope="module")
def direct(project) -> dict:
    """The run in this process."""
    return run(project, "direct")


@pytest.fixture(scope="module")
def processes(project) -> dict:
    """Statistics to Transform in many processes, of examples that were made in this one."""
    run(project, "processes", options=("--to", "examples"))
    many = ("beam.mode=multi_processing", "beam.workers=2")
    return run(project, "processes", *many, options=("--from", "statistics", "--to", "transform"))


@pytest.fixture(scope="module")
def portable(project, job_server: str) -> dict:
    """The run by the job server, whose workers call back to this process."""
    flags = ["--runner=PortableRunner", f"--job_endpoint={job_server}", "--environment_type=LOOPBACK"]
    return run(project, "portable", f"beam.pipeline_args={json.dumps(flags)}")


def records(folder: Path) -> dict[str, list[str]]:
    """Split → the sorted digests of its TFRecords, whatever the shards."""
    from tensorflow.core.example import example_pb2

    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("Split-*/*.gz")):
        data, position = gzip.decompress(file.read_bytes()), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)  # then a checksum of 4 bytes, the record, another
            # The order of a map's entries in the bytes is no matter.
            example = example_pb2.Example.FromString(data[position + 12 : position + 12 + length])
            digest = hashlib.sha256(example.SerializeToString(deterministic=True)).hexdigest()
            found.setdefault(file.parent.name, []).append(digest)
            position += 16 + length
    return {split: sorted(digests) for split, digests in found.items()}


@pytest.mark.parametrize(
    ("there", "artifact"),
    [
        ("portable", ("examples", "examples")), ("portable", ("transform", "transformed_examples")),
        ("processes", ("transform", "transformed_examples")),
    ],
)  # fmt: skip
def test_examples_are_the_same(
    direct: dict, request: pytest.FixtureRequest, there: str, artifact: tuple[str, str]
) -> None:
    one, other = (records(run["artifacts"][artifact]) for run in (direct, request.getfixturevalue(there)))
    assert len(one["Split-train"]) == 600
    assert one == other


@pytest.mark.parametrize("there", ["portable", "processes"])
def test_statistics_and_schema_are_the_same(direct: dict, request: pytest.FixtureRequest, there: str) -> None:
    elsewhere = request.getfixturevalue(there)
    for split in ("train", "eval", "test"):
        one, other = (
            statistics_pb2.DatasetFeatureStatisticsList.FromString(
                (run["artifacts"]["statistics", "statistics"] / f"Split-{split}" / "FeatureStats.pb").read_bytes()
            )
            for run in (direct, elsewhere)
        )
        for found in (one, other):
            found.datasets[0].features.sort(key=lambda feature: feature.path.step[0])
        assert len(one.datasets[0].features) > 3
        assert one == other
    schemas = [(run["artifacts"]["schema", "schema"] / "schema.pbtxt").read_text() for run in (direct, elsewhere)]
    assert schemas[0] == schemas[1]


def test_model_metrics_and_gates_are_the_same(direct: dict, portable: dict) -> None:
    one, other = direct["record"], portable["record"]
    assert one["data"]["splits"] == other["data"]["splits"]
    for name, metric in one["metrics"].items():
        if isinstance(metric, dict) and metric.get("value") is not None:
            assert other["metrics"][name]["value"] == pytest.approx(metric["value"], abs=1e-6), name
    assert [gate["passed"] for gate in one["gates"]] == [gate["passed"] for gate in other["gates"]]
    assert one["baseline"] == other["baseline"]


def test_one_version_with_the_same_weights_is_pushed(direct: dict, portable: dict) -> None:
    one, other = (
        tf.train.load_checkpoint(f"{run['record']['model_path']}/variables/variables") for run in (direct, portable)
    )
    names = {name for name, dtype in one.get_variable_to_dtype_map().items() if dtype.is_floating}
    assert len(names) > 5
    for name in names:
        np.testing.assert_allclose(other.get_tensor(name), one.get_tensor(name), atol=1e-6, err_msg=name)
    folders = [path for path in Path(portable["record"]["model_path"]).parent.iterdir() if path.name.isdigit()]
    assert len(folders) == 1
