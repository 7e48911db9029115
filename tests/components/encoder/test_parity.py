"""Our hidden states and token ids against PyTorch's and Hugging Face's, on real weights and at BERT-base's size.

What PyTorch gives is stored beside its script: `reference/make.py`, which also compares live.
"""

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file
from transformers import BertTokenizer

from components.encoder.bert import BertEncoder
from components.encoder.checkpoint import load_weights
from components.encoder.config import read_geometry
from components.encoder.torch_pickle import read_state_dict
from components.export.encoder import EncoderFunction, Float32
from components.transform.wordpiece import WordPiece

REFERENCE = Path(__file__).parent / "reference"
SHIPPED = Path(__file__).parents[3] / "pipeline" / "data" / "pmc_rct_sections" / "test.csv"
HOSTILE = [
    "", " ", "\x00", "a\u200db", "a\u00adb", "a\u00a0b", "\u3000x\u2028y", "\ufffd\ufeff", "\ue000", "\U0010ffff",
    "\u212bngstr\u00f6m \u0130stanbul \u0391\u03a3 \ufb01n \u00bd \u1e9e stra\u00dfe", "e\u0301\u0301a\u0327\u0301b",
    "\uac01\ub09c \uac01", "[CLS] [SEP] [UNK] [MASK]", "##ing ### ##", "x" * 100, "x" * 101, "\u00e9" * 101,
    "\U0001f469\u200d\u2695\ufe0f PAIN", "DON'T -- P<0.05", "mg\u00b7kg\u207b\u00b9 \u0392-BLOCKER",
    "\u6f22\u5b57 KANJI \u30ab\u30bf\u30ab\u30ca",
]  # fmt: skip


def stored(name):
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def hidden_states(encoder, reference):
    """All texts of the reference in one packed batch, by the encoder that trains and by the one that is exported."""
    batch = {"ids": reference["ids"], "segments": reference["segments"], "row_lengths": reference["lengths"]}
    return [
        tf.function(lambda batch, encode=encode: encode(batch), autograph=False)(batch).numpy()
        for encode in (encoder, EncoderFunction(encoder, Float32(encoder)))
    ]


def load(folder, vocab_file):
    encoder = BertEncoder(read_geometry(folder / "config.json"))
    encoder.build()
    return encoder, load_weights(encoder, str(folder), vocab_file, True)


@pytest.mark.slow
def test_hidden_states_of_the_pretrained_minilm_are_pytorchs(minilm):
    reference = stored("minilm")
    encoder, loaded = load(minilm, minilm / "vocab.txt")
    assert loaded.unused == ("embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight")
    for found in hidden_states(encoder, reference):
        assert found.shape == (266, 384)
        np.testing.assert_allclose(found, reference["hidden"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_hidden_states_of_a_random_bert_base_are_pytorchs(tmp_path):
    reference = stored("bert_base")
    make = runpy.run_path(str(REFERENCE / "make.py"))
    tensors = make["random_tensors"]()
    assert make["digest"](tensors) == str(reference["weights"]), "NumPy draws other numbers: reference/make.py --write"
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(str(reference["config"]))
    vocab_file = tmp_path / "vocab-in-use.txt"
    vocab_file.write_text("\n".join(f"t{n}" for n in range(make["VOCABULARY"])))
    encoder, _ = load(tmp_path, vocab_file)
    for found in hidden_states(encoder, reference):
        assert found.shape == (131, 768)
        np.testing.assert_allclose(found, reference["hidden"], rtol=0, atol=1e-5)


def test_the_pretrained_minilms_texts_have_the_ids_that_pytorch_was_given(minilm):
    reference = stored("minilm")
    wordpiece = WordPiece(minilm / "vocab.txt", lower_case=True)
    *singles, pair = json.loads(str(reference["texts"]))
    texts = wordpiece.encode([text for (text,) in singles], max_length=512)
    second = wordpiece.encode([pair[0]], [pair[1]], max_length=512)
    ids, segments = (tf.concat([one, two], 0) for one, two in zip(texts[:2], second[:2], strict=True))
    np.testing.assert_array_equal(ids.row_lengths(), reference["lengths"])
    np.testing.assert_array_equal(ids.values, reference["ids"])
    np.testing.assert_array_equal(segments.values, reference["segments"])


def test_uncased_ids_are_transformers_on_real_sentences_and_hostile_strings(minilm):
    tokens = (minilm / "vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(vocab={token: n for n, token in enumerate(tokens)}, do_lower_case=True)
    with SHIPPED.open(encoding="utf-8", newline="") as stream:
        texts = [*HOSTILE, *(row["text"] for row in csv.DictReader(stream))]
    assert len(texts) > 2000
    expected = tokenizer(texts, split_special_tokens=True, truncation=True, max_length=128)["input_ids"]
    found = WordPiece(tokens, lower_case=True).encode(texts, max_length=128).input_ids.to_list()
    assert [n for n, (ours, theirs) in enumerate(zip(found, expected, strict=True)) if ours != theirs] == []


@pytest.mark.parametrize("name", ["state_dict.bin", "state_dict_legacy.bin"])
def test_what_torch_save_writes_is_read(name):
    found = read_state_dict(REFERENCE / name)
    eighths = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
    expected = {
        "float32": eighths, "transposed": eighths.T, "slice": np.array([2, 3, 4], np.float32),
        "parameter": eighths[0] * 8, "float16": eighths.astype(np.float16), "bfloat16": eighths,
        "position_ids": np.arange(5)[None], "scalar": np.array(2.5, np.float32),
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        np.testing.assert_array_equal(found[key], value)
