"""Weights converted once into one folder, and the pipeline's node that does it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from components.config import EncoderConfig
from components.encoder.bert import BertEncoder
from components.encoder.checkpoint import load_weights
from components.encoder.component import EncoderWeights, Executor, PretrainedWeights
from components.encoder.config import read_geometry
from components.encoder.conversion import convert, read_record
from components.errors import CheckpointError

CONFIG = {
    "model_type": "bert", "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 6, "layer_norm_eps": 1e-5,
}  # fmt: skip


@pytest.fixture
def source(tmp_path):
    """A folder with weights as published: half precision, a prefix, a pooler, and what stands beside them."""
    folder = tmp_path / "published"
    folder.mkdir()
    encoder = BertEncoder(read_geometry(write_config(tmp_path)))
    encoder.build()
    rng = np.random.default_rng(0)
    shapes = {"pooler.dense.weight": (8, 8), "pooler.dense.bias": (8,)}
    shapes |= {f"embeddings.{name}_embeddings.weight": (n, 8) for name, n in (("word", 11), ("position", 6))}
    shapes |= {"embeddings.token_type_embeddings.weight": (2, 8)}
    for n in range(2):
        layer = f"encoder.layer.{n}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{layer}.{part}.weight": (8, 8), f"{layer}.{part}.bias": (8,)}
        shapes |= {f"{layer}.intermediate.dense.weight": (12, 8), f"{layer}.intermediate.dense.bias": (12,)}
        shapes |= {f"{layer}.output.dense.weight": (8, 12), f"{layer}.output.dense.bias": (8,)}
    for name in ("embeddings", *(f"encoder.layer.{n}.{part}output" for n in range(2) for part in ("attention.", ""))):
        shapes |= {f"{name}.LayerNorm.weight": (8,), f"{name}.LayerNorm.bias": (8,)}
    tensors = {f"bert.{name}": rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    write_config(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefg"]) + "\n")
    return folder


def write_config(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def loaded(folder, geometry, vocab_file):
    encoder = BertEncoder(geometry)
    encoder.build()
    load_weights(encoder, str(folder), vocab_file, False)
    return [variable.numpy() for variable in encoder.weights]


def test_a_converted_folder_gives_the_same_encoder_and_knows_its_source(source, tmp_path):
    geometry = read_geometry(source / "config.json")
    record = convert(str(source), geometry, source / "vocab.txt", False, tmp_path / "converted")
    assert (record.source, record.format, record.tensors) == (str(source), "safetensors", 37)
    assert record.unused == ("pooler.dense.bias", "pooler.dense.weight")
    assert record.parameters == sum(value.size for value in loaded(source, geometry, source / "vocab.txt"))
    assert read_record(tmp_path / "converted") == record
    assert read_geometry(tmp_path / "converted" / "config.json") == geometry
    assert {value.dtype for value in load_file(tmp_path / "converted" / "model.safetensors").values()} == {
        np.dtype(np.float32)
    }
    first, second = (loaded(folder, geometry, source / "vocab.txt") for folder in (source, tmp_path / "converted"))
    for expected, found in zip(first, second, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_converting_again_gives_the_same_bytes(source, tmp_path):
    geometry = read_geometry(source / "config.json")
    first = convert(str(source), geometry, source / "vocab.txt", False, tmp_path / "first")
    again = convert(str(tmp_path / "first"), geometry, source / "vocab.txt", False, tmp_path / "again")
    assert again.sha256 == first.sha256
    assert again.source_sha256 != first.source_sha256
    assert again.unused == ()


def test_without_a_folder_nothing_is_written(source, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    convert(str(source), read_geometry(source / "config.json"), source / "vocab.txt", False)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_in_use_is_refused(source):
    with pytest.raises(CheckpointError, match="is not empty"):
        convert(str(source), read_geometry(source / "config.json"), source / "vocab.txt", False, source)


def test_converted_tensors_that_were_changed_are_refused(source, tmp_path):
    convert(str(source), read_geometry(source / "config.json"), source / "vocab.txt", False, tmp_path / "converted")
    path = tmp_path / "converted" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="its sha256 is"):
        read_record(tmp_path / "converted")


def node(source, **encoder):
    return PretrainedWeights(
        encoder=EncoderConfig(weights=str(source), **encoder),
        encoder_config_file=str(source / "config.json"),
        vocab_file=str(source / "vocab.txt"),
        lower_case=False,
        file_hashes=["1"],
    )


def run(component, folder):
    weights = EncoderWeights()
    weights.uri = str(folder)
    folder.mkdir()
    Executor().Do({}, {"weights": [weights]}, component.exec_properties)
    return weights


def test_the_node_writes_the_configured_layers_and_their_sha256_into_the_lineage(source, tmp_path):
    weights = run(node(source, num_hidden_layers=1), tmp_path / "node")
    record = read_record(tmp_path / "node")
    assert weights.type_name == "EncoderWeights"
    assert weights.get_string_custom_property("sha256") == record.sha256
    assert weights.get_string_custom_property("source_sha256") == record.source_sha256
    assert weights.get_string_custom_property("source") == str(source)
    assert record.tensors == 21
    assert "encoder.layer.1.output.dense.bias" in record.unused
    assert read_geometry(tmp_path / "node" / "config.json").num_hidden_layers == 1


def test_the_node_names_what_does_not_fit(source, tmp_path):
    with pytest.raises(CheckpointError, match="has hidden_size 8, but the encoder is configured with 4"):
        run(node(source, hidden_size=4), tmp_path / "node")


def test_rates_of_dropout_do_not_convert_anew(source):
    first, second = node(source), node(source, hidden_dropout_prob=0.3, trainable=False)
    assert first.exec_properties == second.exec_properties
    assert node(source, num_hidden_layers=1).exec_properties != first.exec_properties
