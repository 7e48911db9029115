"""A run from pretrained weights by way of a search: the weights are in the lineage, and the version explains itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2
from safetensors.numpy import save_file

from components.encoder.checkpoint import _places
from components.encoder.config import BertGeometry

pytestmark = pytest.mark.slow
TEXT = "Patients were randomly assigned to receive aspirin or placebo for twelve weeks."
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of weights for the project's encoder, by Hugging Face's names."""
    vocabulary = (ROOT / "pipeline" / "data" / "biobert" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    geometry = BertGeometry(
        len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    rng = np.random.default_rng(0)
    tensors = {
        f"bert.{part}": rng.normal(scale=0.05, size=place.shape).astype(np.float32)
        for place in _places(geometry)
        for part in place.parts
    }
    folder = tmp_path_factory.mktemp("weights")
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_weights_are_converted_searched_with_trained_on_and_in_the_lineage(project, weights):
    settings = (
        f"encoder.weights={weights}", "tuner.max_trials=2", "tuner.space.head.kind=['multi_width', 'global_max']",
        "training.epochs=1", "evaluation.gates=[{metric='accuracy', min=0.1}]",
    )  # fmt: skip
    done = project.run(*settings)
    assert done.status == 0, done.stderr
    assert done.json["status"] == "pushed"
    for step in ("weights", "tuner", "trainer"):
        assert f"{step:<20} started" in done.stderr

    config = metadata_store_pb2.ConnectionConfig()
    (database,) = project.root.rglob("*.sqlite")
    config.sqlite.filename_uri = str(database)
    store = metadata_store.MetadataStore(config)
    (artifact,) = store.get_artifacts_by_type("EncoderWeights")
    converted = json.loads((Path(artifact.uri) / "weights.json").read_text())
    assert artifact.custom_properties["sha256"].string_value == converted["sha256"]
    assert artifact.custom_properties["source"].string_value == str(weights)
    read_by = {
        event.execution_id
        for event in store.get_events_by_artifact_ids([artifact.id])
        if event.type == metadata_store_pb2.Event.INPUT
    }
    types = {kind.id: kind.name.rpartition(".")[2] for kind in store.get_execution_types()}
    readers = {types[execution.type_id] for execution in store.get_executions_by_id(read_by)}
    assert readers == {"PretrainedTuner", "PretrainedTrainer"}
    lineage = json.loads(
        (project.serving_dir / str(project.versions[-1]) / "assets.extra" / "lineage.json").read_text()
    )
    assert lineage["training"]["weights"]["sha256"] == converted["sha256"]
    assert lineage["training"]["hyperparameters"]["head.kind"] in ("multi_width", "global_max")

    again = project.run(*settings)
    assert again.json["status"] == "unchanged"


def test_the_pushed_version_names_the_words_that_decided(project):
    project.start([*project.command("predict"), TEXT, "--explain", "--json"])
    done = project.wait()
    assert done.status == 0, done.stderr
    (row,) = done.json["predictions"]
    (label,) = row["labels"]
    assert row["ngrams"].keys() == row["probabilities"].keys()
    assert row["ngrams"][label]
    for ngram, _ in row["ngrams"][label]:  # it may begin within a word, and blanks are not the text's own
        assert ngram.replace("##", "").replace(" ", "") in TEXT.replace(" ", "")
    # In the words of the version, whatever vocabulary the configuration names by now.
    other = project.folder / "other.txt"
    other.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    overrides = (f"tokenizer.vocab={other}",)
    project.start([*project.command("predict", overrides=overrides), TEXT, "--explain", "--json"])
    assert project.wait().json == done.json
    project.start([*project.command("predict"), TEXT, "--explain"])
    done = project.wait()
    assert done.stdout.splitlines()[1].startswith(f"  {label}: ")
    project.start([*project.command("predict"), "--file", "rows/dev.csv", "--explain"])
    assert "--explain: is for texts on the command line" in project.wait().stderr
