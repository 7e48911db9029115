"""Weights in from three formats, every tensor accounted for, and nothing run that a pickle asks for."""

import json
import pickle
import sys
import threading
import types
import zipfile
from collections import OrderedDict
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save, save_file

from components.encoder.bert import BertEncoder
from components.encoder.checkpoint import load_weights, read_weights
from components.encoder.config import BertGeometry
from components.encoder.conversion import convert
from components.encoder.sources import find_source
from components.encoder.torch_pickle import read_state_dict
from components.errors import CheckpointError

GEOMETRY = BertGeometry(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=6,
)
CONFIG = {
    "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 6,
}  # fmt: skip


def hugging_face_tensors(prefix="bert."):
    """All tensors of a BERT as Hugging Face names and lays them out, with pooler and pretraining head."""
    rng = np.random.default_rng(3)
    shapes = {
        "embeddings.word_embeddings.weight": (11, 8),
        "embeddings.position_embeddings.weight": (6, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "pooler.dense.weight": (8, 8),
        "pooler.dense.bias": (8,),
    }
    norms = ["embeddings"]
    for n in range(2):
        layer = f"encoder.layer.{n}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{layer}.{name}.weight": (8, 8), f"{layer}.{name}.bias": (8,)}
        shapes |= {f"{layer}.intermediate.dense.weight": (12, 8), f"{layer}.intermediate.dense.bias": (12,)}
        shapes |= {f"{layer}.output.dense.weight": (8, 12), f"{layer}.output.dense.bias": (8,)}
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    for name in norms:
        shapes |= {f"{name}.LayerNorm.weight": (8,), f"{name}.LayerNorm.bias": (8,)}
    tensors = {prefix + name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {"cls.predictions.bias": rng.normal(size=11).astype(np.float32)}


def write_safetensors(folder, tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


def write_tf1(folder, tensors):
    """A TensorFlow 1 checkpoint with the names of Google's release, optimiser slots and all."""
    folder.mkdir(exist_ok=True)
    variables = {}
    for name, value in tensors.items():
        if name.endswith(".weight") and name.rpartition(".")[0].rpartition(".")[2] not in ("LayerNorm",):
            if "_embeddings" in name:
                name = name.removesuffix(".weight")
            else:
                name, value = name.removesuffix("weight") + "kernel", value.T
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        name = name.replace("encoder.layer.", "encoder.layer_").replace(
            "cls.predictions.bias", "cls.predictions.output_bias"
        )
        variables[name.replace(".", "/")] = value
    variables |= {f"{name}/adam_m": value for name, value in list(variables.items())}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = [tf.compat.v1.get_variable(name, initializer=value) for name, value in variables.items()]
        made.append(tf.compat.v1.train.create_global_step())
        session.run(tf.compat.v1.global_variables_initializer())
        prefix = str(folder / "model.ckpt")
        return tf.compat.v1.train.Saver(made).save(session, prefix, global_step=1000)


class FloatStorage:
    """Stands for torch's class of that name while a file is written."""

    __module__ = "torch"


class HalfStorage:
    """Likewise."""

    __module__ = "torch"


class Written:
    """A tensor on its way into a file."""

    def __init__(self, key, array, storage=FloatStorage):
        self.key, self.array, self.storage = key, array, storage

    def __reduce__(self):
        shape = self.array.shape
        strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (self.place(), 0, shape, strides, False, OrderedDict())

    def place(self):
        return Place(self)


class Place:
    def __init__(self, written):
        self.written = written


class TorchPickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, item):
        if isinstance(item, Place):
            written = item.written
            view = (None,) if self.legacy else ()
            return ("storage", written.storage, written.key, "cpu", written.array.size, *view)
        return None


@pytest.fixture
def torch_modules(monkeypatch):
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        raise AssertionError("only named, never called")

    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    for storage in (FloatStorage, HalfStorage):
        setattr(torch, storage.__name__, storage)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def write_torch(folder, tensors, legacy=False):
    folder.mkdir(exist_ok=True)
    state = OrderedDict((name, Written(str(n), value)) for n, (name, value) in enumerate(tensors.items()))
    path = folder / "pytorch_model.bin"
    if legacy:
        with path.open("wb") as file:
            pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
            pickle.dump(1001, file, protocol=2)
            pickle.dump({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, file, protocol=2)
            pickler = TorchPickler(file, protocol=2)
            pickler.legacy = True
            pickler.dump(state)
            pickle.dump([written.key for written in state.values()], file, protocol=2)
            for written in state.values():
                file.write(written.array.size.to_bytes(8, "little") + written.array.tobytes())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("archive/data.pkl", "w") as file:
                TorchPickler(file, protocol=2).dump(state)
            archive.writestr("archive/byteorder", "little")
            for written in state.values():
                archive.writestr(f"archive/data/{written.key}", written.array.tobytes())
    return str(folder)


def encoder_of(geometry=GEOMETRY):
    encoder = BertEncoder(geometry)
    encoder.build()
    return encoder


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "vocab-in-use.txt"
    path.write_text("\n".join(f"t{n}" for n in range(11)))
    return path


def test_every_format_gives_the_same_encoder(tmp_path, vocab_file, torch_modules):
    tensors = hugging_face_tensors()
    sources = {
        "safetensors": write_safetensors(tmp_path / "s", tensors),
        "tf1": write_tf1(tmp_path / "t", tensors),
        "torch": write_torch(tmp_path / "b", tensors),
        "torch, before 1.6": write_torch(tmp_path / "l", tensors, legacy=True),
        "without bert.": write_safetensors(tmp_path / "p", hugging_face_tensors(prefix="")),
    }
    encoders = {}
    digests = set()
    for name, source in sources.items():
        encoders[name] = encoder_of()
        digests.add(convert(source, GEOMETRY, vocab_file, False).sha256)
        loaded = load_weights(encoders[name], source, vocab_file, False)
        assert name.startswith(loaded.format) or name == "without bert."
        assert "pooler.dense.bias" in loaded.unused
    assert len(digests) == 1
    first = encoders.pop("safetensors")
    qkv = first.blocks[1].attention.qkv.kernel.numpy()
    np.testing.assert_array_equal(qkv[:, 8:16], tensors["bert.encoder.layer.1.attention.self.key.weight"].T)
    np.testing.assert_array_equal(first.embeddings.word.numpy(), tensors["bert.embeddings.word_embeddings.weight"])
    for encoder in encoders.values():
        for expected, variable in zip(first.weights, encoder.weights, strict=True):
            np.testing.assert_array_equal(variable.numpy(), expected.numpy())


def write_by_hand(folder, tensors, kind):
    """safetensors of a type that NumPy may not have: the header, its length before it, and the bytes."""
    folder.mkdir()
    kinds = {"F64": "<f8", "F16": "<f2"}
    header, data = {}, b""
    for name, value in tensors.items():
        cut = (value.view("<u4") >> 16).astype("<u2") if kind == "BF16" else value.astype(kinds[kind])
        place = [len(data), len(data) + cut.nbytes]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": place}
        data += cut.tobytes()
    encoded = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return str(folder)


def rounded(value, kind):
    """float32 values that the type holds exactly: without the bits of the mantissa that it lacks."""
    lacking = {"BF16": 16, "F16": 13, "F64": 0, "F32": 0}[kind]
    return (value.view("<u4") >> lacking << lacking).view("<f4")


@pytest.mark.parametrize(
    ("form", "kind"),
    [("safetensors", "BF16"), ("safetensors", "F16"), ("safetensors", "F64"), ("tf1", "BF16"), ("tf1", "F16")],
)
def test_values_of_other_precisions_are_read_to_the_bit(tmp_path, vocab_file, form, kind):
    tensors = {name: rounded(value, kind) for name, value in hugging_face_tensors().items()}
    if form == "safetensors":
        source = write_by_hand(tmp_path / "s", tensors, kind)
    else:
        half = {"BF16": tf.bfloat16, "F16": tf.float16}[kind].as_numpy_dtype
        source = write_tf1(tmp_path / "t", {name: value.astype(half) for name, value in tensors.items()})
    found, _ = read_weights(source, GEOMETRY, vocab_file, False)
    assert len(found) == 37
    for name, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, tensors[f"bert.{name}"])


def test_a_folder_with_one_tensorflow_checkpoint_is_found(tmp_path):
    prefix = write_tf1(tmp_path, hugging_face_tensors())
    source = find_source(str(tmp_path))
    assert (source.format, source.prefix) == ("tf1", prefix)
    assert source == find_source(prefix)


def test_shards_are_read_together(tmp_path, vocab_file):
    tensors = hugging_face_tensors()
    names = sorted(tensors)
    for n, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"model-{n}.safetensors")
    index = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    encoder = encoder_of()
    load_weights(encoder, str(tmp_path), vocab_file, False)
    np.testing.assert_array_equal(encoder.embeddings.word.numpy(), tensors["bert.embeddings.word_embeddings.weight"])


def test_shards_of_pickles_are_read_together(tmp_path, vocab_file, torch_modules):
    tensors = hugging_face_tensors()
    index = {}
    for n in range(2):
        part = dict(list(tensors.items())[n::2])
        write_torch(tmp_path, part)
        (tmp_path / "pytorch_model.bin").rename(tmp_path / f"pytorch_model-{n}.bin")
        index |= dict.fromkeys(part, f"pytorch_model-{n}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    found, loaded = read_weights(str(tmp_path), GEOMETRY, vocab_file, False)
    assert (loaded.format, len(found)) == ("torch", 37)
    np.testing.assert_array_equal(found["embeddings.LayerNorm.bias"], tensors["bert.embeddings.LayerNorm.bias"])


def test_rows_of_words_beyond_the_vocabulary_beside_the_weights_stay_behind(tmp_path, vocab_file):
    tensors = hugging_face_tensors()
    name = "bert.embeddings.word_embeddings.weight"
    tensors[name] = np.concatenate([tensors[name], np.zeros((5, 8), np.float32)])
    source = write_safetensors(tmp_path / "s", tensors)
    (tmp_path / "s" / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 16}))
    with pytest.raises(
        CheckpointError, match="vocab_size 16, but the vocabulary has 11 entries, and none stands beside"
    ):
        read_weights(source, GEOMETRY, vocab_file, False)
    (tmp_path / "s" / "vocab.txt").write_bytes(vocab_file.read_bytes())
    found, loaded = read_weights(source, GEOMETRY, vocab_file, False)
    np.testing.assert_array_equal(found["embeddings.word_embeddings.weight"], tensors[name][:11])
    assert "embeddings.word_embeddings.weight[11:16]" in loaded.unused
    (tmp_path / "s" / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 10}))
    with pytest.raises(CheckpointError, match="has vocab_size 10, but the encoder is configured with 11"):
        read_weights(source, GEOMETRY, vocab_file, False)


def test_what_optimisers_leave_in_a_checkpoint_stays_behind(tmp_path, vocab_file):
    tensors = hugging_face_tensors()
    slots = (
        "beta1_power",
        "beta2_power",
        "bert.embeddings.LayerNorm.beta/Adam",
        "bert.embeddings.LayerNorm.beta/Adam_1",
    )
    source = write_safetensors(tmp_path / "s", tensors | {name: np.zeros(1, np.float32) for name in slots})
    _, loaded = read_weights(source, GEOMETRY, vocab_file, False)
    assert {"beta1_power", "embeddings.LayerNorm.beta.Adam_1"} <= set(loaded.unused)


def test_fewer_layers_take_the_lower_ones(tmp_path, vocab_file):
    tensors = hugging_face_tensors()
    encoder = encoder_of(replace(GEOMETRY, num_hidden_layers=1, layers_chosen=True))
    source = write_safetensors(tmp_path / "s", tensors)
    (tmp_path / "s" / "config.json").write_text(json.dumps(CONFIG))
    loaded = load_weights(encoder, source, vocab_file, False)
    expected = tensors["bert.encoder.layer.0.output.dense.weight"].T
    np.testing.assert_array_equal(encoder.blocks[0].output_dense.kernel.numpy(), expected)
    assert "encoder.layer.1.output.dense.weight" in loaded.unused


def test_another_number_of_layers_is_refused_unless_it_was_chosen(tmp_path, vocab_file):
    source = write_safetensors(tmp_path / "s", hugging_face_tensors())
    one = replace(GEOMETRY, num_hidden_layers=1)
    message = "has 2 layers, but the configuration of the encoder says 1; set encoder.num_hidden_layers to 1"
    with pytest.raises(CheckpointError, match=message):
        read_weights(source, one, vocab_file, False)
    for layers, geometry in ((2, one), (3, GEOMETRY)):
        (tmp_path / "s" / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
        with pytest.raises(CheckpointError, match=f"has num_hidden_layers {layers}, but the encoder"):
            read_weights(source, geometry, vocab_file, False)
        read_weights(source, replace(geometry, layers_chosen=True), vocab_file, False)
    with pytest.raises(CheckpointError, match=r"16 missing: encoder\.layer\.2\."):
        read_weights(source, replace(GEOMETRY, num_hidden_layers=3, layers_chosen=True), vocab_file, False)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("bert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"),
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"),
    ],
)
def test_one_tensor_by_two_names_is_refused(tmp_path, vocab_file, first, second):
    tensors = hugging_face_tensors()
    source = write_safetensors(tmp_path / "s", tensors | {second: np.zeros_like(tensors[first])})
    with pytest.raises(CheckpointError, match="has one tensor by two names") as error:
        read_weights(source, GEOMETRY, vocab_file, False)
    assert first in str(error.value)
    assert second in str(error.value)


def test_two_names_of_a_tensor_that_stays_behind_do_no_harm(tmp_path, vocab_file):
    tensors = hugging_face_tensors()
    source = write_safetensors(tmp_path / "s", tensors | {"pooler.dense.bias": np.zeros(8, np.float32)})
    read_weights(source, GEOMETRY, vocab_file, False)


def test_a_tensor_in_two_shards_is_refused(tmp_path, vocab_file):
    tensors = hugging_face_tensors()
    save_file(tensors, tmp_path / "model-1.safetensors")
    save_file({"bert.pooler.dense.bias": np.zeros(8, np.float32)}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"-2.safetensors: bert\.pooler\.dense\.bias stands in model-1"):
        read_weights(str(tmp_path), GEOMETRY, vocab_file, False)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_weights_that_are_no_finite_numbers_are_named(tmp_path, vocab_file, value):
    tensors = hugging_face_tensors()
    bias = np.zeros(8)
    bias[3] = value
    tensors["bert.encoder.layer.0.output.dense.bias"] = bias
    tensors["bert.pooler.dense.bias"][0] = np.nan  # stays behind
    with pytest.raises(CheckpointError, match=r"numbers in 1 tensors: encoder\.layer\.0\.output\.dense\.bias; fetch"):
        read_weights(write_safetensors(tmp_path / "s", tensors), GEOMETRY, vocab_file, False)


def test_only_what_is_needed_must_be_of_floating_point(tmp_path, vocab_file):
    tensors = hugging_face_tensors()
    beside = {"bert.pooler.dense.weight": np.zeros((8, 8), np.int16)}
    beside |= {"bert.embeddings.position_ids": np.zeros((1, 6), np.uint8)}
    _, loaded = read_weights(write_safetensors(tmp_path / "s", tensors | beside), GEOMETRY, vocab_file, False)
    assert {"pooler.dense.weight", "embeddings.position_ids"} <= set(loaded.unused)
    name = "bert.encoder.layer.0.output.dense.bias"
    source = write_safetensors(tmp_path / "s", tensors | {name: np.zeros(8, np.int8)})
    with pytest.raises(CheckpointError, match=f"{name} has the unsupported type I8"):
        read_weights(source, GEOMETRY, vocab_file, False)


@pytest.mark.parametrize(
    "text", ["{}", "{", "[]", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_a_damaged_index_of_shards_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: is no index of shards"):
        find_source(str(tmp_path))


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path, vocab_file):
    tensors = hugging_face_tensors()
    del tensors["bert.encoder.layer.0.output.dense.bias"]
    tensors["bert.encoder.layer.0.adapter.weight"] = np.zeros(2, np.float32)
    tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((12, 8), np.float32)
    encoder = encoder_of()
    before = [variable.numpy() for variable in encoder.weights]
    with pytest.raises(CheckpointError) as error:
        load_weights(encoder, write_safetensors(tmp_path / "s", tensors), vocab_file, False)
    message = str(error.value)
    assert "1 missing: encoder.layer.0.output.dense.bias" in message
    assert "1 unexpected: encoder.layer.0.adapter.weight" in message
    assert "1 misshapen: embeddings.word_embeddings.weight [12, 8] instead of [11, 8]" in message
    for variable, value in zip(encoder.weights, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_attention_heads": 4}, "num_attention_heads 4"), ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05")],
)
def test_another_configuration_beside_the_weights_is_refused(tmp_path, vocab_file, change, message):
    source = write_safetensors(tmp_path / "s", hugging_face_tensors())
    (tmp_path / "s" / "config.json").write_text(json.dumps(CONFIG))
    load_weights(encoder_of(), source, vocab_file, False)
    (tmp_path / "s" / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(CheckpointError, match=message):
        load_weights(encoder_of(), source, vocab_file, False)


def test_another_vocabulary_beside_the_weights_is_refused(tmp_path, vocab_file):
    source = write_safetensors(tmp_path / "s", hugging_face_tensors())
    (tmp_path / "s" / "vocab.txt").write_text("\n".join(f"u{n}" for n in range(11)))
    with pytest.raises(CheckpointError, match="is not the vocabulary of the weights"):
        load_weights(encoder_of(), source, vocab_file, False)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch pwned",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    if legacy:
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"weight": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match="system"):
        read_state_dict(path)
    assert not (tmp_path / "pwned").exists()


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, torch_modules):
    wide = np.lib.stride_tricks.as_strided(np.zeros(2, np.float32), (3, 4), (16, 4))  # 12 values of 2
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            TorchPickler(file, protocol=2).dump({"w": Written("0", wide)})
        archive.writestr("archive/data/0", np.zeros(2, np.float32).tobytes())
    with pytest.raises(CheckpointError, match="beyond its storage"):
        read_state_dict(path)


def test_transposed_and_half_precision_tensors_are_read(tmp_path, torch_modules):
    value = np.arange(6, dtype=np.float16).reshape(2, 3)
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            TorchPickler(file, protocol=2).dump({"w": Written("0", value.T, HalfStorage)})
        archive.writestr("archive/data/0", value.tobytes())
    assert read_state_dict(path)["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_damaged_archive_that_is_compressed_is_named(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
    data = bytearray(path.read_bytes())
    data[30 + len("archive/data.pkl")] ^= 0xFF  # the first byte after the entry's header
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: a damaged state dict \(error\)"):
        read_state_dict(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_cut_off_file_is_named(tmp_path, torch_modules, share, legacy):
    write_torch(tmp_path, hugging_face_tensors(), legacy)
    path = tmp_path / "pytorch_model.bin"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        read_state_dict(path)


def test_a_cut_off_safetensors_file_is_named(tmp_path, vocab_file):
    source = write_safetensors(tmp_path / "s", hugging_face_tensors())
    file = tmp_path / "s" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_weights(encoder_of(), source, vocab_file, False)


@pytest.mark.parametrize("name", ["absent", "dmis-lab/biobert-v1.1", "dmis-lab/biobert-v1.1@main"])
def test_a_name_that_is_no_pinned_source_is_refused(name):
    with pytest.raises(CheckpointError, match="pinned revision"):
        find_source(name)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds neither"):
        find_source(str(tmp_path))


def test_a_folder_with_several_checkpoints_is_refused(tmp_path):
    for name in ("model.ckpt-1.index", "model.ckpt-2.index"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"model\.ckpt-1, model\.ckpt-2"):
        find_source(str(tmp_path))


REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Hugging Face's own client, told to stay offline, and its cache: a folder in it is a repository at REVISION."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def make(repository):
        folder = tmp_path / "cache" / f"models--{repository.replace('/', '--')}" / "snapshots" / REVISION
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "vocab.txt").write_text("\n".join(f"t{n}" for n in range(11)))
        return folder

    return make


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_offline_a_hub_name_is_read_from_the_cache_at_its_revision(hub, vocab_file, torch_modules, form):
    tensors = hugging_face_tensors()
    folder = hub("organisation/name")
    (write_safetensors if form == "safetensors" else write_torch)(folder, tensors)
    encoder = encoder_of()
    loaded = load_weights(encoder, f"organisation/name@{REVISION}", vocab_file, False)
    assert loaded.format == form
    np.testing.assert_array_equal(encoder.embeddings.word.numpy(), tensors["bert.embeddings.word_embeddings.weight"])
    source = find_source(f"organisation/name@{REVISION}")
    assert (source.config, source.vocab) == (folder / "config.json", folder / "vocab.txt")
    with pytest.raises(CheckpointError, match=r"organisation/name@0{40} is not in the local cache"):
        find_source("organisation/name@" + "0" * 40)


class Hub(BaseHTTPRequestHandler):
    """As much of Hugging Face's hub as its client asks for, one repository at REVISION."""

    files: ClassVar[dict[str, bytes]] = {}
    fetched: ClassVar[list[str]] = []

    def do_GET(self):
        if "/api/" in self.path:
            found = [{"type": "file", "path": n, "size": len(f), "oid": f"oid-{n}"} for n, f in self.files.items()]
            self.answer(json.dumps(found).encode(), {"Content-Type": "application/json"})
            return
        name = self.path.partition(f"/resolve/{REVISION}/")[2]
        self.fetched.append(f"{self.command} {name}")
        self.answer(self.files[name], {"ETag": f'"oid-{name}"', "X-Repo-Commit": REVISION})

    do_HEAD = do_GET

    def answer(self, data, headers):
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_what_was_read_once_is_not_downloaded_again(hub, monkeypatch, vocab_file):
    import huggingface_hub.constants as settings

    tensors = hugging_face_tensors()
    names = ["config.json", "model.safetensors", "vocab.txt"]
    vocabulary = vocab_file.read_bytes()
    Hub.files = dict(zip(names, (json.dumps(CONFIG).encode(), save(tensors), vocabulary), strict=True))
    Hub.files["onnx/model.safetensors"] = b"of another model"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(settings, "ENDPOINT", endpoint)
    monkeypatch.setattr(settings, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    first, _ = read_weights(f"organisation/name@{REVISION}", GEOMETRY, vocab_file, False)
    assert sorted(name for name in Hub.fetched if name.startswith("GET")) == [f"GET {name}" for name in names]
    Hub.fetched.clear()
    again, _ = read_weights(f"organisation/name@{REVISION}", GEOMETRY, vocab_file, False)
    assert Hub.fetched == []
    server.shutdown()
    server.server_close()
    read_weights(f"organisation/name@{REVISION}", GEOMETRY, vocab_file, False)  # nor is there anyone to be asked
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)


def test_a_repository_of_the_hub_without_weights_is_named(hub):
    hub("organisation/empty")
    with pytest.raises(CheckpointError, match=f"organisation/empty@{REVISION} has neither safetensors nor pytorch"):
        find_source(f"organisation/empty@{REVISION}")


@pytest.mark.parametrize(
    ("files", "asked"),
    [
        (["model.safetensors", "pytorch_model.bin"], 1),
        (["pytorch_model.bin"], 2),
        (["pytorch_model.bin", "adapter.safetensors", "model.fp16.safetensors", "onnx/model.safetensors"], 2),
    ],
)
def test_of_a_repository_that_has_both_the_pickle_is_not_fetched(monkeypatch, tmp_path, files, asked):
    import fnmatch

    import huggingface_hub

    there = {"config.json", "vocab.txt", "README.md", "tf_model.h5", *files}
    calls = []

    def snapshot_download(repository, revision, allow_patterns):
        calls.append((repository, revision))
        for name in there:
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = find_source(f"organisation/name@{REVISION}")
    assert [file.name for file in source.files] == files[:1]
    assert calls == [("organisation/name", REVISION)] * asked
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "vocab.txt", files[0]}


def test_what_the_hubs_client_meets_is_named_without_its_message(monkeypatch):
    import huggingface_hub

    class ProxyError(Exception):
        pass

    def snapshot_download(*_, **__):
        raise ProxyError("user:password@proxy")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=f"organisation/name@{REVISION}: ProxyError from the hub$"):
        find_source(f"organisation/name@{REVISION}")


@pytest.mark.parametrize("fault", [AttributeError, NameError, TypeError])
def test_a_fault_of_the_program_is_not_told_as_one_of_the_hub(monkeypatch, fault):
    import huggingface_hub

    def snapshot_download(*_, **__):
        raise fault("of the program")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(fault, match="of the program"):
        find_source(f"organisation/name@{REVISION}")
